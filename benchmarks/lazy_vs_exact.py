"""What the lazy loss approximates: its value and gradient beside those of the exact loss, on a trained model.

Both score the same samples, lazy on the states of the ground truth, exact on each sample's own. Beside their difference
stands the noise of sampling: how far the exact gradient of other samples of the same batch is.

    smoothloss train recipes/translation/mle.yaml --out runs/mle --training.max_minutes 6
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
from smoothloss.trainer.config import LossConfig, LossName, RewardConfig
from smoothloss.trainer.losses import TrainingLoss, build_loss
from smoothloss.trainer.models import open_checkpoints
from smoothloss.trainer.rewards import SampleWeights
from smoothloss.trainer.tasks import Batch, SequenceModel, Task

REWARDS = {
    "none": RewardConfig(),
    "BLEU-4": RewardConfig(name="bleu", tau=0.5, normalize="batch"),
}
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


class Estimate(NamedTuple):
    """A loss and its gradient, all parameters as one vector."""

    loss: float
    gradient: Tensor


class Contest(NamedTuple):
    """Lazy and exact loss of one row, with the batches they are compared on."""

    model: SequenceModel
    batches: list[Batch]
    losses: dict[str, TrainingLoss]

    def estimate(self, kind: str, number: int, seed: int) -> Estimate:
        """Return loss and gradient of a batch, with samples drawn from a seed."""
        generator = torch.Generator(self.batches[number].target.device).manual_seed(seed)
        loss = self.losses[kind](self.model, self.batches[number], generator)
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, parameters)
        return Estimate(float(loss), torch.cat([gradient.flatten() for gradient in gradients]))


def compare(one: Tensor, reference: Tensor) -> tuple[float, float, float]:
    """Return cosine, relative difference and ratio of the norms of two vectors."""
    norm = float(reference.norm())
    cosine = float(torch.dot(one, reference)) / (float(one.norm()) * norm)
    return cosine, float((one - reference).norm()) / norm, float(one.norm()) / norm


def measure_row(contest: Contest) -> Row:
    """Return the means over batches, and the comparison of the gradients' means."""
    found: dict[str, list[float]] = {}
    sums: dict[str, Tensor] = {}
    for number in range(len(contest.batches)):
        mle = contest.estimate("mle", number, 0)
        lazy, exact = (contest.estimate(kind, number, number) for kind in ("lazy", "exact"))
        other = contest.estimate("exact", number, 10_000 + number)
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
            found.setdefault(key, []).append(value)
        for key, estimate in (("lazy", lazy), ("exact", exact)):
            sums[key] = sums[key] + estimate.gradient if key in sums else estimate.gradient
    mean_cosine, mean_difference, _ = compare(sums["lazy"], sums["exact"])
    row: Row = {key: statistics.mean(values) for key, values in found.items()}
    return row | {"mean_cosine": mean_cosine, "mean_difference": mean_difference, "batches": len(contest.batches)}


def contest_of(
    task: Task, model: SequenceModel, batches: list[Batch], settings: LossConfig, reward: RewardConfig
) -> Contest:
    """Return lazy, exact and MLE loss with the same sampler."""
    device = batches[0].target.device
    weights = None
    if reward.name != "none":
        weights = SampleWeights(reward, task.training_references().to(device), None, device)
    names: dict[str, LossName] = {"mle": "mle", "lazy": "seq_lazy", "exact": "seq"}
    size = len(task.vocabulary)
    losses = {kind: build_loss(replace(settings, name=name), None, size, weights) for kind, name in names.items()}
    return Contest(model, batches, losses)


def run(checkpoint: Path, num_batches: int) -> tuple[list[Row], torch.device]:
    """Return a row for each reward, number of samples and alpha; 1 is the samples' share alone."""
    recipe, task, model, device = open_checkpoints([checkpoint])
    assert isinstance(model, SequenceModel)
    model.eval()  # dropout would be another difference
    batches = [task.train_batch(examples).to(device) for examples in task.train_plan(0)[:num_batches]]
    state = {"task": recipe.task, "trained": recipe.name, "parameters": sum(p.numel() for p in model.parameters())}
    rows = []
    for (name, reward), num_samples, alpha in itertools.product(REWARDS.items(), (1, 5), (0.7, 1.0)):
        settings = LossConfig(alpha=alpha, tau=0.15, pool="batch", num_samples=num_samples)
        row = measure_row(contest_of(task, model, batches, settings, reward))
        rows.append({**state, "reward": name, "num_samples": num_samples, "alpha": alpha, **row})
    return rows, device


def main() -> None:
    """Print the table, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a run directory or one of its checkpoints")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    arguments = parser.parse_args()
    rows, device = run(arguments.checkpoint, arguments.batches)
    print(markdown(rows, COLUMNS))
    write_json(arguments.out, device, rows)


if __name__ == "__main__":
    main()
