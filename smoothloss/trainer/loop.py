"""The training loop: one class that can stop anywhere and go on as if it had not."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from smoothloss.rewards import Cider
from smoothloss.similarity import SimilarityTable
from smoothloss.trainer import checkpoint
from smoothloss.trainer.config import OptimizerConfig, Recipe, RecipeError
from smoothloss.trainer.evaluation import choose_device, evaluate_split, generate, negative_log_likelihood
from smoothloss.trainer.losses import build_loss
from smoothloss.trainer.rewards import SampleWeights
from smoothloss.trainer.run import RunDirectory
from smoothloss.trainer.table import build_table
from smoothloss.trainer.tasks import Task, task_class


@dataclass
class Progress:
    """Where a run is. All of it goes into the checkpoint.

    Args:
        epoch: Counted from 0.
        position: Batches of this epoch that are done.
        step: Batches done in all.
        seconds: Time spent training so far, validation included.
        loss_sum: Sum of the loss times target tokens since the last line of ``metrics.jsonl``.
        tokens: Target tokens since the last line.
        reward_sums: What :class:`~smoothloss.trainer.rewards.SampleWeights` summed up since the last line.
        rewarded: Over how many inputs.
        best: Best validation metric so far.
        stale: Validations since then.
        metric_lines: Lines of ``metrics.jsonl``.
        finished: Whether training is over.
    """

    epoch: int = 0
    position: int = 0
    step: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    tokens: int = 0
    reward_sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    rewarded: int = 0
    best: float | None = None
    stale: int = 0
    metric_lines: int = 0
    finished: bool = False


def learning_rate(config: OptimizerConfig, epoch: int) -> float:
    """``lr * decay ** n``, n the number of decays up to this epoch (counted from 0)."""
    if epoch < config.decay_start:
        return config.lr
    return config.lr * config.decay ** ((epoch - config.decay_start) // config.decay_every + 1)


def train(recipe: Recipe, run: RunDirectory, *, resume: bool = False, overwrite: bool = False) -> dict[str, Any]:
    """Train a recipe in a run directory, and score the best checkpoint on the test splits.

    Args:
        recipe: What to train.
        run: Where.
        resume: Go on from the run's last checkpoint. The losses are those of a run that was never interrupted.
        overwrite: Start anew, removing the run that is there.

    Returns:
        The scores of every test split by name.

    Raises:
        RecipeError: before training starts, when something is missing or contradictory.
    """
    device = choose_device(recipe.device)
    if resume:
        run.check_same(recipe)
    elif not overwrite:
        run.check_free(overwrite=False)
    task = task_class(recipe.task)(recipe, run.vocabularies() if resume else None)
    table = _table(recipe, run, task, resume=resume)
    weights, cider = _weights(recipe, run, task, device, resume=resume)
    trainer = Trainer(recipe, run, task, table, device, weights)
    if resume:
        trainer.restore()
    else:
        run.check_free(overwrite=overwrite)
        run.create(recipe, task.vocabularies)
        if table is not None:
            table.save(run.table_file)
        if cider is not None:
            cider.save(run.cider_file)
        trainer.save()
    trainer.run_epochs()
    checkpoint.load_model(run.best, trainer.model)
    return {
        split: evaluate_split(run.path, task, trainer.model, split, recipe.decoding, device)
        for split in task.test_splits
    }


def _table(recipe: Recipe, run: RunDirectory, task: Task, *, resume: bool) -> SimilarityTable | None:
    if not recipe.loss.needs_table:
        return None
    if resume and run.table_file.is_file():
        return SimilarityTable.load(run.table_file, len(task.vocabulary))
    return build_table(recipe.loss, task.vocabulary, task.target_sentences(), seed=recipe.seed)


def _weights(
    recipe: Recipe, run: RunDirectory, task: Task, device: torch.device, *, resume: bool
) -> tuple[SampleWeights | None, Cider | None]:
    """What weighs the samples by their reward, and the document frequencies behind it, where the recipe has them."""
    config = recipe.loss.reward
    if not recipe.loss.samples_sequences or config.name == "none":
        return None, None
    references = task.training_references() if config.reads_references else None
    cider = None
    if config.name == "cider" and references is not None:
        cider = Cider.load(run.cider_file) if resume and run.cider_file.is_file() else Cider(references)
    weights = SampleWeights(config, None if references is None else references.to(device), cider, device)
    return weights, cider


class Trainer:
    """Model, optimizer, loss and where they stand.

    Args:
        recipe: What to train.
        run: Where the checkpoints and metrics go.
        task: The data.
        table: The similarity table, when the loss has one.
        device: Where to train.
        weights: What weighs samples by their reward, when the loss has one.

    Raises:
        RecipeError: when loss and table do not fit.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: RunDirectory,
        task: Task,
        table: SimilarityTable | None,
        device: torch.device,
        weights: SampleWeights | None = None,
    ) -> None:
        self.recipe, self.run, self.task, self.device, self.weights = recipe, run, task, device, weights
        self.loss = build_loss(recipe.loss, None if table is None else table.to(device), len(task.vocabulary), weights)
        torch.manual_seed(recipe.seed)
        self.generator = torch.Generator(device).manual_seed(recipe.seed)
        self.model = task.build_model().to(device)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = _optimizer(self.parameters, recipe.optimizer, device)
        self.progress = Progress()
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self._started = self._logged = time.perf_counter()

    def run_epochs(self) -> None:
        """Train from where the run stands until the recipe's end."""
        self._logged = time.perf_counter()
        self._started = self._logged - self.progress.seconds
        progress, config = self.progress, self.recipe.training
        while not self._over():
            plan = self.task.train_plan(progress.epoch)
            self._epoch(plan)
            whole, number = progress.position == len(plan), progress.epoch + 1
            if (whole and number % config.validate_every == 0) or number == config.epochs or self._budget_spent():
                self._validate()
            if whole:
                progress.epoch, progress.position = number, 0
            progress.finished = self._over()
            self.save()
        if progress.best is None:  # a budget too small for a single step
            self._validate()

    def _over(self) -> bool:
        """Whether all epochs are done, the budget is spent, or patience has run out."""
        config = self.recipe.training
        impatient = bool(config.patience) and self.progress.stale >= config.patience
        return self.progress.epoch >= config.epochs or self._budget_spent() or impatient

    def _budget_spent(self) -> bool:
        config = self.recipe.training
        if config.max_steps is not None and self.progress.step >= config.max_steps:
            return True
        return config.max_minutes is not None and self._seconds() >= 60 * config.max_minutes

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _epoch(self, plan: Sequence[Sequence[int]]) -> None:
        """The rest of an epoch, or of the budget of steps or time."""
        progress, config = self.progress, self.recipe.training
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.recipe.optimizer, progress.epoch)
        bar = tqdm(
            desc=f"{self.recipe.name} epoch {progress.epoch + 1}/{config.epochs}",
            total=len(plan),
            initial=progress.position,
            dynamic_ncols=True,
            mininterval=1 if sys.stderr.isatty() else 60,  # a log file need not hold a line a second
        )
        with bar:
            for examples in plan[progress.position :]:
                self._step(examples)
                progress.position, progress.step = progress.position + 1, progress.step + 1
                bar.update()
                if progress.step % config.log_every == 0:
                    bar.set_postfix(loss=f"{self._log_loss():.3f}", refresh=False)
                if self._budget_spent():
                    break
                if config.checkpoint_every and progress.step % config.checkpoint_every == 0:
                    self.save()

    def _step(self, examples: Sequence[int]) -> None:
        self.model.train()
        batch = self.task.train_batch(examples)
        tokens = int(batch.lengths.sum()) + len(batch.lengths)  # on the CPU still, so no synchronisation
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(self.model, batch.to(self.device), self.generator)
        loss.backward()
        if self.recipe.training.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.training.clip)
        self.optimizer.step()
        self._loss_sum += loss.detach() * tokens
        self.progress.tokens += tokens

    def _log_loss(self) -> float:
        loss, tokens = float(self._loss_sum) / self.progress.tokens, self.progress.tokens
        if not math.isfinite(loss):
            at = f"training diverged: the loss is {loss} before step {self.progress.step}"
            raise RecipeError(f"{at}; a smaller optimizer.lr or training.clip may help")
        now = time.perf_counter()
        rewards = {} if self.weights is None else self.weights.means()
        throughput = {"tokens_per_second": tokens / (now - self._logged), "seconds": self._seconds()}
        self._write({"train_loss": loss, **rewards, "lr": self.optimizer.param_groups[0]["lr"], **throughput})
        self._loss_sum.zero_()
        if self.weights is not None:
            self.weights.reset()
        self.progress.tokens, self._logged = 0, now
        return loss

    def _write(self, values: dict[str, Any]) -> None:
        line = {"step": self.progress.step, "epoch": self.progress.epoch + 1, **values}
        with self.run.metrics_file.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(line)}\n")
        self.progress.metric_lines += 1

    def _validate(self) -> None:
        """Score the validation part; keep the best checkpoint and the last ones."""
        loss = negative_log_likelihood(self.model, self.task.validation_batches(), self.device)
        texts = generate(self.model, self.task, "validation", self.recipe.decoding.for_validation(), self.device)
        found = self.task.score("validation", texts)
        scores = {f"validation_{key}": value for key, value in found.items() if not isinstance(value, str)}
        metric = float(found[self.task.metric])
        self._write({"validation_loss": loss, **scores, "seconds": self._seconds()})
        self._logged = time.perf_counter()
        tqdm.write(f"epoch {self.progress.epoch + 1}: validation loss {loss:.4f}, {self.task.metric} {metric:.2f}")
        about = {"step": self.progress.step, "epoch": self.progress.epoch + 1, "validation_loss": loss, **scores}
        weights = checkpoint.with_prefix("model", self.model.state_dict())
        if self.recipe.training.keep_checkpoints:
            checkpoint.save_checkpoint(self.run.step_file(self.progress.step), weights, about)
            for old in self.run.step_files()[: -self.recipe.training.keep_checkpoints]:
                old.unlink()
        if self.progress.best is not None and metric <= self.progress.best:
            self.progress.stale += 1
            return
        self.progress.best, self.progress.stale = metric, 0
        checkpoint.save_checkpoint(self.run.best, weights, about)

    def save(self) -> None:
        """Write the last checkpoint: all that the next step depends on."""
        self.progress.loss_sum, self.progress.seconds = float(self._loss_sum), self._seconds()
        if self.weights is not None:
            self.progress.reward_sums, self.progress.rewarded = self.weights.state()
        optimizer, rest = checkpoint.flatten_optimizer(self.optimizer)
        tensors = checkpoint.with_prefix("model", self.model.state_dict())
        tensors |= checkpoint.with_prefix("optimizer", optimizer)
        tensors |= checkpoint.with_prefix("random", checkpoint.random_states(self.generator))
        state = {"progress": asdict(self.progress), "optimizer": rest, "seed": self.recipe.seed}
        checkpoint.save_checkpoint(self.run.last, tensors, state)

    def restore(self) -> None:
        """Go back to the last checkpoint.

        Raises:
            RecipeError: when it is missing or broken.
        """
        tensors, state = checkpoint.load_checkpoint(self.run.last)
        self.model.load_state_dict(checkpoint.without_prefix("model", tensors))
        checkpoint.restore_optimizer(
            self.optimizer, checkpoint.without_prefix("optimizer", tensors), state["optimizer"]
        )
        checkpoint.restore_random_states(checkpoint.without_prefix("random", tensors), self.generator)
        self.progress = Progress(**state["progress"])
        self._loss_sum.fill_(self.progress.loss_sum)
        if self.weights is not None:
            self.weights.restore(self.progress.reward_sums, self.progress.rewarded)
        self.run.cut_metrics(self.progress.metric_lines)
        for file in self.run.step_files():
            if file > self.run.step_file(self.progress.step):  # of a future that may come out differently
                file.unlink()


def _optimizer(parameters: list[torch.nn.Parameter], config: OptimizerConfig, device: torch.device) -> torch.optim.Adam:
    kind = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
    first, second = config.betas
    fused = device.type in ("cpu", "cuda")
    return kind(parameters, config.lr, (first, second), config.eps, weight_decay=config.weight_decay, fused=fused)
