"""The training loop: one class that can stop anywhere and go on as if it had not."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from smoothloss.similarity import SimilarityTable
from smoothloss_trainer import checkpoint, loss_inputs, report
from smoothloss_trainer.config import Recipe
from smoothloss_trainer.devices import sum_dtype
from smoothloss_trainer.distributed import Processes
from smoothloss_trainer.errors import RecipeError, RunError
from smoothloss_trainer.evaluation import Prediction, evaluate_split, generate, predict
from smoothloss_trainer.feed import Feed
from smoothloss_trainer.losses import TrainingLoss, build_loss
from smoothloss_trainer.metrics import deciding
from smoothloss_trainer.metrics_log import MetricsLog
from smoothloss_trainer.objective import Objective
from smoothloss_trainer.optimizer import build_optimizer, learning_rate, set_learning_rate
from smoothloss_trainer.progress import Progress
from smoothloss_trainer.rewards import SampleWeights
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.step import RecordedStep, Step
from smoothloss_trainer.stopwatch import Stopwatch
from smoothloss_trainer.table import table_of
from smoothloss_trainer.tasks import Batch, Task


class Trainer:
    """Model, optimizer, loss and where they stand.

    Args:
        recipe: What to train.
        run: Where the checkpoints and metrics go.
        task: The data.
        table: The similarity table, when the loss has one.
        processes: Those that train.
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
        processes: Processes,
        weights: SampleWeights | None = None,
    ) -> None:
        self.recipe, self.run, self.task, self.weights = recipe, run, task, weights
        self.processes, self.device = processes, processes.device
        self.stopwatch, self.log = Stopwatch(self.device), MetricsLog(run, tensorboard=recipe.training.tensorboard)
        table = None if table is None else table.to(self.device)
        self.dtype = torch.float64 if recipe.training.precision == "float64" else torch.float32
        prior, teachers = loss_inputs.prior(recipe, task), loss_inputs.teachers(recipe, task)
        self.prior = None if prior is None else prior.to(self.device, self.dtype)
        self.teachers = None if teachers is None else teachers.to(self.device, self.dtype)
        self._loss = self._loss_with(table)
        torch.manual_seed(recipe.seed)
        self.model = task.build_model().to(self.device, self.dtype)
        self._objective = Objective(self.model, self._loss, autocast=recipe.training.precision == "bfloat16")
        self.objective: torch.nn.Module = self._objective
        self.feed = Feed(task, recipe.training.workers, self.device)
        self.generator = torch.Generator(self.device)
        self.width = processes.count * recipe.training.accumulate
        self._loss_sum = torch.zeros((), dtype=sum_dtype(self.device), device=self.device)
        self._build_step()
        self.progress = Progress()
        self._started = self._logged = time.perf_counter()

    def _loss_with(self, table: SimilarityTable | None) -> TrainingLoss:
        config, size = self.recipe.loss, len(self.task.vocabulary)
        return build_loss(config, table, size, self.weights, self.prior, self.teachers, self.stopwatch)

    def _build_step(self) -> None:
        config, recorded = self.recipe.training, self.recipe.training.graphs
        if recorded and self.processes.count > 1:
            raise RecipeError(f"training.graphs needs one process, got {self.processes.count}")
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = build_optimizer(parameters, self.recipe.optimizer, self.device, recorded=recorded)
        kind = RecordedStep if recorded else Step
        drawn_from, sums = self.generator, self._loss_sum
        self.computing = kind(self.objective, self.optimizer, config.clip, drawn_from, sums, self.stopwatch)

    def prepare(self) -> None:
        """Join the other processes that train the model; each of them has to be here."""
        if self.processes.count > 1:
            self.objective = self.processes.prepare(self.objective)
            self._build_step()  # of the weights that are this process's now

    def run_epochs(self) -> None:
        """Train from where the run stands until the recipe's end."""
        self._logged = time.perf_counter()
        self._started = self._logged - self.progress.seconds
        progress, config = self.progress, self.recipe.training
        while not self._over():
            plan = self.task.train_plan(progress.epoch)
            self._begin_epoch()
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
        self.log.close()

    def test(self) -> dict[str, Any]:
        """Score the best checkpoint, and write ``report.html``: the scores of each split by its name, in the first."""
        tensors, _ = checkpoint.load_checkpoint(self.run.best)
        checkpoint.put_model(tensors, self.model, self.run.best, self.processes.spread)
        with self.processes.gathered(self.objective):
            scores = {split: self._evaluate(split) for split in self.scored_splits}
        if not self.processes.is_main:
            return {}
        page = self.run.path / "report.html"
        report.write([self.run], page, title=self.recipe.name, task=self.task)
        self.run.folder.claim([], finished=True)
        sys.stderr.write(f"report: {page}\nbest checkpoint: {self.run.best}\n")
        return scores

    def _evaluate(self, split: str) -> dict[str, Any]:
        decoding = self.recipe.decoding
        return evaluate_split(
            self.run.path, self.task, self.model, split, decoding, self.device, dtype=self.dtype, among=self.processes
        )

    @property
    def scored_splits(self) -> Sequence[str]:
        """The test splits, or the validation part where there are none."""
        return self.task.test_splits or ["validation"]

    def _over(self) -> bool:
        """Whether all epochs are done, the budget is spent, or patience has run out."""
        config = self.recipe.training
        impatient = bool(config.patience) and self.progress.stale >= config.patience
        return self.progress.epoch >= config.epochs or self._budget_spent() or impatient

    def _budget_spent(self) -> bool:
        config = self.recipe.training
        if config.max_steps is not None and self.progress.step >= config.max_steps:
            return True
        if config.max_minutes is None:
            return False
        [seconds] = self.processes.of_main([self._seconds()])  # the clocks of others might say otherwise
        return seconds >= 60 * config.max_minutes

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _begin_epoch(self) -> None:
        """Give the loss what it has in this epoch, or in the rest of it."""
        config, progress = self.recipe.loss, self.progress
        if not config.changes:
            return
        if config.embeddings.refresh and progress.epoch and not progress.position:
            weight = self.processes.whole(self.model.classifier.weight.detach())
            if not bool(weight.isfinite().all()):
                raise self._diverged("the classifier has weights that are not finite")
            table = table_of(config, weight, self.task.vocabulary)
            self._loss = self._loss_with(table)
            if self.processes.is_main:
                table.save(self.run.table_file)  # a run that is resumed within the epoch reads it
        settings = config.in_epoch(progress.epoch, self.recipe.training.epochs)
        self._objective.loss = replace(self._loss, config=settings)

    def _epoch(self, plan: Sequence[Sequence[int]]) -> None:
        """The rest of an epoch, or of the budget of steps or time."""
        progress, config = self.progress, self.recipe.training
        total_steps = self._total_steps(plan)
        bar = tqdm(
            desc=f"{self.recipe.name} epoch {progress.epoch + 1}/{config.epochs}",
            total=len(plan),
            initial=progress.position,
            dynamic_ncols=True,
            mininterval=1 if sys.stderr.isatty() else 60,  # a log file need not hold a line a second
            disable=not self.processes.is_main,
        )
        starts = range(progress.position, len(plan), self.width)
        self.feed.begin([each for start in starts for _, each, _ in self._own(plan[start : start + self.width])])
        with bar:
            for start in starts:
                rate = learning_rate(self.recipe.optimizer, progress.epoch, progress.step, total_steps)
                set_learning_rate(self.optimizer, rate)
                together = plan[start : start + self.width]
                self._step(together)
                progress.position, progress.step = progress.position + len(together), progress.step + 1
                bar.update(len(together))
                if progress.step % config.log_every == 0:
                    bar.set_postfix(loss=f"{self._log_loss():.3f}", refresh=False)
                if self._budget_spent():
                    break
                if config.checkpoint_every and progress.step % config.checkpoint_every == 0:
                    self.save()
        self.feed.end()

    def _own(self, together: Sequence[Sequence[int]]) -> list[tuple[int, Sequence[int], bool]]:
        """Of a step's batches those of this process: their number in the step, examples, and whether they count.

        Every process has as many, since they meet in each forward and backward: one too few is made up for by the
        first, which then does not count.
        """
        rank, count = self.processes.rank, self.processes.count
        numbers = range(rank, count * -(-len(together) // count), count)
        return [(n, together[n], True) if n < len(together) else (0, together[0], False) for n in numbers]

    def _step(self, together: Sequence[Sequence[int]]) -> None:
        """One step on these batches, of which this process takes its share, as if all were one batch."""
        self.objective.train()
        own = self._own(together)
        with self.stopwatch("data"):
            batches = [self.feed.take(examples) for _, examples, _ in own]
            # On the CPU still, so no synchronisation.
            tokens = [
                (int(batch.lengths.sum()) + len(batch.lengths)) * counts
                for batch, (*_, counts) in zip(batches, own, strict=True)
            ]
            batches = [self.computing.place(batch, self.dtype) for batch in batches]
        [total] = self.processes.sum([sum(tokens)])
        self.computing.begin()
        for index, (batch, count) in enumerate(zip(batches, tokens, strict=True)):
            last = index + 1 == len(batches)
            with nullcontext() if last else self.processes.accumulating(self.objective):
                self._backward(batch, own[index][0], count, count / total)
        with self.stopwatch("optimizer"):
            self.computing.update()
        self.progress.tokens += sum(tokens)

    def _backward(self, batch: Batch, number: int, count: int, share: float) -> None:
        """Add a batch's share of the gradient; what it draws depends on its place in the epoch alone."""
        seeds = np.random.SeedSequence([self.recipe.seed, self.progress.epoch, self.progress.position + number])
        dropout, samples = (int(seed) >> 1 for seed in seeds.generate_state(2, np.uint64))
        torch.manual_seed(dropout)
        self.generator.manual_seed(samples)
        kept = None if self.weights is None or count else self.weights.state()
        # The processes' gradients are averaged.
        self.computing.add_gradient(batch, share * self.processes.count, count)
        if kept is not None and self.weights is not None:
            self.weights.restore(kept)

    def _log_loss(self) -> float:
        loss_sum, tokens = self.processes.sum([float(self._loss_sum), self.progress.tokens])
        loss = loss_sum / tokens
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")
        now = time.perf_counter()
        values: dict[str, Any] = {"train_loss": loss, **self._reward_means()}
        rate = float(self.optimizer.param_groups[0]["lr"])
        values |= {"lr": rate, "tokens_per_second": tokens / (now - self._logged)}
        self._write({**values, "seconds": self._seconds(), "time": self.stopwatch.shares()})
        self._loss_sum.zero_()
        self.progress.tokens, self._logged = 0, now
        return loss

    def _diverged(self, how: str) -> RunError:
        at = f"training diverged: {how} before step {self.progress.step}"
        return RunError(f"{at}; a smaller optimizer.lr or training.clip may help")

    def _reward_means(self) -> dict[str, float]:
        """What the samples were worth since the last line, over all processes."""
        if self.weights is None:
            return {}
        means = self.weights.means(self.processes.sum)
        self.weights.reset()
        return means

    def _write(self, values: dict[str, Any]) -> None:
        if self.processes.is_main:
            self.log.write(self.progress.step, self.progress.epoch + 1, values)

    def _validate(self) -> None:
        """Score the validation part; keep the best checkpoint and the last ones."""
        [metric] = self.processes.of_main([self._validate_together()])
        self._logged = time.perf_counter()
        if self.progress.best is not None and metric <= self.progress.best:
            self.progress.stale += 1
        else:
            self.progress.best, self.progress.stale = metric, 0

    def _validate_together(self) -> float:
        """The metric, in the first process; the others help it to decode."""
        decoding, place = self.recipe.decoding.for_validation(), (self.device, self.dtype)
        with self.processes.gathered(self.objective):
            known = predict(self.model, self.task.validation_batches(), *place, among=self.processes)
            texts = generate(self.model, self.task, "validation", decoding, *place, among=self.processes)
        weights = self._weights()
        return self._keep(known, texts, weights) if self.processes.is_main else 0.0

    def _weights(self) -> dict[str, Tensor]:
        """The model's tensors for a checkpoint."""
        whole = {name: self.processes.whole(tensor) for name, tensor in self.model.state_dict().items()}
        return checkpoint.with_prefix("model", whole)

    def _keep(self, known: Prediction, texts: dict[str, str], weights: dict[str, Tensor]) -> float:
        """Score a validation, write what it came to, and keep the model if it is the best; returns the metric."""
        found = self.task.score("validation", texts)
        scores = {f"validation_{key}": value for key, value in found.items() if not isinstance(value, str)}
        scores = {"validation_loss": known.loss, "validation_ece": known.ece, **scores}
        name = self.recipe.training.metric or self.task.metric
        metric = deciding(name, known.loss, found)
        self._write({**scores, "seconds": self._seconds()})
        tqdm.write(f"epoch {self.progress.epoch + 1}: validation loss {known.loss:.4f}, {name} {abs(metric):.2f}")
        about = {"step": self.progress.step, "epoch": self.progress.epoch + 1, **scores}
        if self.recipe.training.keep_checkpoints:
            kept = self.run.step_file(self.progress.step)
            self.run.folder.claim([self.run.name(kept)])
            checkpoint.save_checkpoint(kept, weights, about)
            old = self.run.step_files()[: -self.recipe.training.keep_checkpoints]
            self.run.folder.remove(map(self.run.name, old))
        if self.progress.best is None or metric > self.progress.best:
            checkpoint.save_checkpoint(self.run.best, weights, about)
        return metric

    def _total_steps(self, plan: Sequence[Sequence[int]]) -> int:
        """Steps of the whole training, when every epoch is as long as this one."""
        config = self.recipe.training
        total_steps = config.epochs * -(-len(plan) // self.width)
        return min(total_steps, config.max_steps or total_steps)

    def check_warmup(self) -> None:
        """Refuse a warm-up that lasts as long as the training, which may then train next to nothing.

        Raises:
            RecipeError: saying how many steps there are.
        """
        warmup, steps = self.recipe.optimizer.warmup_steps, self._total_steps(self.task.train_plan(0))
        if warmup and warmup >= steps:
            raise RecipeError(f"optimizer.warmup_steps must be below the {steps} steps of all epochs, got {warmup}")

    def check_metric(self) -> None:
        """Refuse a ``training.metric`` that the task does not score, before an epoch is trained.

        Raises:
            RecipeError: naming those that it does.
        """
        if self.recipe.training.metric is not None:
            people = {each.name: each.references[0] for each in self.task.inputs("validation")}
            deciding(self.recipe.training.metric, 0.0, self.task.score("validation", people))

    def save(self) -> None:
        """Write the last checkpoint: all that the next step depends on."""
        progress = replace(self.progress, seconds=self._seconds(), metric_lines=self.log.lines)
        sums = [float(self._loss_sum), progress.tokens]
        if self.weights is not None:
            sums += self.weights.state()
        progress.loss_sum, tokens, *rewards = self.processes.sum(sums)
        progress.tokens = int(tokens)
        if rewards:
            progress.reward_sums, progress.rewarded = rewards[:2], int(rewards[2])
        tensors = self._weights()
        optimizer, rest = checkpoint.flatten_optimizer(self.optimizer)
        tensors |= checkpoint.with_prefix(
            "optimizer", {name: self.processes.whole(value) for name, value in optimizer.items()}
        )
        if not self.processes.is_main:
            return
        self.log.sync()
        state = {"progress": asdict(progress), "optimizer": rest, "seed": self.recipe.seed, "width": self.width}
        checkpoint.save_checkpoint(self.run.last, tensors, state)

    def restore(self) -> None:
        """Go back to the last checkpoint.

        Raises:
            RecipeError: when it, or the best one so far, is missing or broken.
        """
        tensors, state = checkpoint.load_checkpoint(self.run.last)
        if "progress" not in state:
            raise RecipeError(f"{self.run.last} holds a model and not where its training stood: it cannot be resumed")
        # Earlier versions kept the random state of each process, and took so many times `accumulate` batches a step.
        earlier = tensors.get("random.cpu")
        self.width = state.get("width", len(earlier if earlier is not None else [0]) * self.recipe.training.accumulate)
        checkpoint.put_model(tensors, self.model, self.run.last, self.processes.spread)
        moments = checkpoint.without_prefix("optimizer", tensors)
        checkpoint.restore_optimizer(self.optimizer, moments, state["optimizer"], self.processes.spread)
        self.progress = progress = Progress(**state["progress"])
        if progress.best is not None:  # it may stay the best one, and is tested then
            checkpoint.load_checkpoint(self.run.best)
        if not self.processes.is_main:  # the first one has the sums of all
            progress.loss_sum, progress.tokens, progress.reward_sums, progress.rewarded = 0.0, 0, [0.0, 0.0], 0
        self._loss_sum.fill_(progress.loss_sum)
        if self.weights is not None:
            self.weights.restore([*progress.reward_sums, progress.rewarded])
        if not self.processes.is_main:
            return
        self.log.restore(progress.metric_lines, progress.step)
        # Of a future that may come out differently.
        later = [file for file in self.run.step_files() if file > self.run.step_file(progress.step)]
        self.run.folder.remove(map(self.run.name, later))
