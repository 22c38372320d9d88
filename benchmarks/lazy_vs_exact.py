"""What the lazy loss approximates: its value and gradient beside those of the exact loss, on a trained model.

Both score the same samples, lazy on the states of the ground truth, exact on each sample's own. Beside their difference
stands the noise of sampling: how far the exact gradient of other samples of the same batch is.

    smoothloss train multi30k/mle --out runs/mle --training.max_minutes 6
    python -m benchmarks.lazy_vs_exact runs/mle --out benchmarks/results/lazy_vs_exact_multi30k.json
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.measure import Row, markdown, write_json
from smoothloss_trainer.checkpoint import load_checkpoint
from smoothloss_trainer.config import LossConfig, LossName, RewardConfig
from smoothloss_trainer.losses import TrainingLoss, build_loss
from smoothloss_trainer.models import open_checkpoints
from smoothloss_trainer.rewards import SampleWeights
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.tasks import Batch, SequenceModel, Task

REWARDS = {
    "none": RewardConfig(),
    "BLEU-4": RewardConfig(name="bleu", tau=0.5, normalize="batch", divide_by_q=False),
}
KINDS: tuple[LossName, LossName] = ("seq_lazy", "seq")
COLUMNS = {
    "reward": "reward",
    "num_samples": "L",
    "alpha": "alpha",
    "mle_loss": "MLE",
    "lazy_loss": "lazy",
    "exact_loss": "exact",
    "cosine": "cos(lazy, exact)",
    "difference": "|lazy - exact| / |exact|",
    "norm_ratio": "|lazy| / |exact|",
    "other_samples_cosine": "cos(exact, other samples)",
    "other_samples_difference": "their difference",
    "mean_cosine": "cos of the batches' means",
    "mean_difference": "their difference",
}


ALPHAS = (0.7, 1.0)  # the recipes' and the samples' share alone
OTHER_SAMPLES = 10_000  # added to a seed


class Estimate(NamedTuple):
    """A loss and its gradient, all parameters as one vector."""

    loss: float
    gradient: Tensor

    def mixed(self, other: Estimate, alpha: float) -> Estimate:
        """Return ``(1 - alpha) self + alpha other``: sequence losses are linear in alpha."""
        gradient = torch.lerp(self.gradient, other.gradient, alpha)
        return Estimate((1 - alpha) * self.loss + alpha * other.loss, gradient)


def estimate(loss: TrainingLoss, model: SequenceModel, batch: Batch, seed: int) -> Estimate:
    """Return loss and gradient, with samples drawn from a seed."""
    value = loss(model, batch, torch.Generator(batch.target.device).manual_seed(seed))
    gradients = torch.autograd.grad(value, [parameter for parameter in model.parameters() if parameter.requires_grad])
    return Estimate(float(value.detach()), torch.cat([gradient.flatten() for gradient in gradients]))


def compare(one: Tensor, reference: Tensor) -> tuple[float, float, float]:
    """Return cosine, relative difference and ratio of the norms of two vectors."""
    norm = float(reference.norm())
    cosine = float(torch.dot(one, reference)) / (float(one.norm()) * norm)
    return cosine, float((one - reference).norm()) / norm, float(one.norm()) / norm


class Tally:
    """What is compared on each batch at one alpha, and the sums of the gradients."""

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self.found: dict[str, list[float]] = {}
        self.sums: dict[str, Tensor] = {}

    def add(self, mle: Estimate, lazy: Estimate, exact: Estimate, other: Estimate) -> None:
        """Take a batch: MLE, the share of the samples lazily and exactly, and exactly with other samples."""
        lazy, exact, other = (mle.mixed(part, self.alpha) for part in (lazy, exact, other))
        cosine, difference, ratio = compare(lazy.gradient, exact.gradient)
        other_cosine, other_difference, _ = compare(other.gradient, exact.gradient)
        values = {
            "mle_loss": mle.loss,
            "lazy_loss": lazy.loss,
            "exact_loss": exact.loss,
            "cosine": cosine,
            "difference": difference,
            "norm_ratio": ratio,
            "mle_cosine": compare(mle.gradient, exact.gradient)[0],
            "other_samples_cosine": other_cosine,
            "other_samples_difference": other_difference,
        }
        for key, value in values.items():
            self.found.setdefault(key, []).append(value)
        for key, part in (("lazy", lazy), ("exact", exact)):
            self.sums[key] = self.sums[key] + part.gradient if key in self.sums else part.gradient

    def row(self) -> Row:
        """Return the means over batches, and the comparison of the gradients' means."""
        cosine, difference, _ = compare(self.sums["lazy"], self.sums["exact"])
        means = {key: statistics.mean(values) for key, values in self.found.items()}
        return {"alpha": self.alpha, **means, "mean_cosine": cosine, "mean_difference": difference}


def losses_of(task: Task, settings: LossConfig, device: torch.device) -> tuple[TrainingLoss, TrainingLoss]:
    """Return the lazy and the exact loss of the samples alone, with the same sampler."""
    weights = None
    if settings.reward.name != "none":
        weights = SampleWeights(settings.reward, task.training_references().to(device), None, device)
    size = len(task.vocabulary)
    lazy, exact = (build_loss(replace(settings, name=name), None, size, weights) for name in KINDS)
    return lazy, exact


def run(folder: Path, num_batches: int) -> tuple[list[Row], torch.device]:
    """Return a row for each reward, number of samples and alpha."""
    recipe, task, model, device = open_checkpoints([folder])
    state = load_checkpoint(RunDirectory(folder).best)[1]
    trained = {"trained": recipe.name, **{key: state[key] for key in ("step", "validation_loss")}}
    assert isinstance(model, SequenceModel)
    model.eval()  # dropout would be another difference
    batches = [task.train_batch(examples).to(device) for examples in task.train_plan(0)[:num_batches]]
    mle = build_loss(LossConfig(), None, len(task.vocabulary))
    likelihoods = [estimate(mle, model, batch, 0) for batch in batches]
    rows = []
    for (name, reward), num_samples in itertools.product(REWARDS.items(), (1, 5)):
        settings = LossConfig(alpha=1.0, tau=0.15, pool="batch", num_samples=num_samples, reward=reward)
        lazy, exact = losses_of(task, settings, device)
        tallies = [Tally(alpha) for alpha in ALPHAS]
        for number, (batch, likelihood) in enumerate(zip(batches, likelihoods, strict=True)):
            calls = ((lazy, number), (exact, number), (exact, OTHER_SAMPLES + number))
            estimates = [estimate(loss, model, batch, seed) for loss, seed in calls]
            for tally in tallies:
                tally.add(likelihood, *estimates)
        head = {**trained, "batches": num_batches, "reward": name, "num_samples": num_samples}
        rows += [head | tally.row() for tally in tallies]
    return rows, device


def main() -> None:
    """Print the table, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run directory, whose best checkpoint is measured")
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    arguments = parser.parse_args()
    rows, device = run(arguments.run, arguments.batches)
    print(markdown(rows, COLUMNS))
    write_json(arguments.out, device, rows)


if __name__ == "__main__":
    main()
