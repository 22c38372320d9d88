"""The losses of a recipe: from its ``loss:`` section to a function of model and batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

import smoothloss.functional as F
from smoothloss import targets
from smoothloss.sampling import (
    BatchPool,
    EditSampler,
    HammingSampler,
    Pool,
    ReferencePool,
    Sampler,
    SimilarPool,
    UniformPool,
    VocabularyPool,
)
from smoothloss.similarity import SimilarityTable
from smoothloss.targets import Target
from smoothloss_trainer import devices
from smoothloss_trainer.config import LossConfig
from smoothloss_trainer.consistency import other_pass, twice
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.predictions import Prediction
from smoothloss_trainer.rewards import SampleWeights
from smoothloss_trainer.tasks import Batch, SequenceModel, select_rows, shift_right
from smoothloss_trainer.teachers import Teachers
from smoothloss_trainer.vocabulary import PAD, SPECIAL_TOKENS

Timer = Callable[[str], AbstractContextManager[Any]]


class Drawn(NamedTuple):
    """Sequences around the ground truth.

    Args:
        tokens: ``(L, B, T')``.
        lengths: ``(L, B)``.
        weights: ``(L, B)`` where a reward tells them apart, else None.
    """

    tokens: Tensor
    lengths: Tensor
    weights: Tensor | None

    def twice(self) -> Drawn:
        """The same for a batch that has all its rows a second time after them."""
        tokens, lengths, weights = (None if part is None else torch.cat((part, part), 1) for part in self)
        assert tokens is not None and lengths is not None
        return Drawn(tokens, lengths, weights)

    def widened(self, target: Tensor) -> Tensor:
        """The target (B, T) as wide as the samples, which insertions make wider."""
        return torch.nn.functional.pad(target, (0, self.tokens.shape[-1] - target.shape[-1]), value=PAD)


@dataclass(frozen=True)
class TrainingLoss:
    """Mean loss per target token of a batch.

    Args:
        config: The recipe's ``loss:`` section.
        table: The similarity table, for the losses that smooth tokens.
        sampler: Draws around the ground truth, for the losses that smooth sequences.
        weights: Weighs what was drawn by its reward; None: all samples weigh the same.
        prior: ``(V,)`` how the mass on all classes is spread; None: evenly.
        teachers: Models that are learned from; None: there are none.
        timed: ``with timed("forward"): ...`` around each part of the work: sampling, reward, teacher, forward, loss.
    """

    config: LossConfig
    table: SimilarityTable | None = None
    sampler: Sampler | None = None
    weights: SampleWeights | None = None
    prior: Tensor | None = None
    teachers: Teachers | None = None
    timed: Timer = nullcontext

    def __call__(self, model: SequenceModel, batch: Batch, generator: torch.Generator) -> Tensor:
        """One forward pass and the loss; the samples come from ``generator``."""
        drawn = None if self.sampler is None else self._draw(batch, generator)
        taught = None
        if self.teachers is not None:
            with self.timed("teacher"):
                taught = self.teachers.predict(lambda teacher: self._states(teacher, batch, drawn))
        if self.config.consistency:  # both passes read the same samples, to differ in dropout alone
            batch, drawn, taught = twice(batch), drawn and drawn.twice(), taught and taught.twice()
        with self.timed("forward"):
            hidden = self._states(model, batch, drawn)
        with self.timed("loss"):
            return self._cross_entropy(model, hidden, self._target(batch, drawn), taught)

    def _draw(self, batch: Batch, generator: torch.Generator) -> Drawn:
        assert self.sampler is not None
        with self.timed("sampling"):
            drawn = self.sampler(
                batch.target, batch.lengths, self.config.num_samples, generator=generator, references=batch.references
            )
        if self.weights is None:
            return Drawn(drawn.tokens, drawn.lengths, None)
        with self.timed("reward"):
            return Drawn(drawn.tokens, drawn.lengths, self.weights(drawn, batch))

    def _states(self, model: SequenceModel, batch: Batch, drawn: Drawn | None) -> Tensor:
        """Hidden states (B, T, D) on the ground truth, or (1 + L, B, T, D) on it and its samples, where they count."""
        if drawn is None or self.config.is_lazy:
            hidden = decode(model, batch)
        else:
            lengths = torch.cat((batch.lengths[None], drawn.lengths)).flatten() + 1
            target = drawn.widened(batch.target)
            hidden = decode_samples(model, encode(model, batch), target, drawn.tokens, lengths)
        counted = self._counted(batch.target)
        return hidden if counted is None else hidden.flatten(-3, -2).index_select(-2, counted).unsqueeze(-2)

    def _target(self, batch: Batch, drawn: Drawn | None) -> Target:
        """The target of these states."""
        config, target = self.config, batch.target
        if drawn is None:
            alpha = config.alpha if self.table is not None else 0.0
            counted = self._counted(target)
            tokens = target if counted is None else target.flatten().index_select(0, counted).unsqueeze(-1)
            return targets.token(tokens, self.table, alpha, ignore_index=PAD)
        target, samples, weights = drawn.widened(target), drawn.tokens, drawn.weights
        counted = self._counted(target)
        if counted is not None:
            # The loss is a sum over positions, so each becomes a sentence of one token with the weights of its own.
            weights = None if weights is None else weights.index_select(1, counted // target.shape[1])
            samples = samples.flatten(1).index_select(1, counted).unsqueeze(-1)
            target = target.flatten().index_select(0, counted).unsqueeze(-1)
        make = targets.lazy_sequence if config.is_lazy else targets.sequence
        alpha = 1.0 if config.name == "raml" else config.alpha
        token_alpha = config.token_alpha if self.table is not None else 0.0
        return make(target, samples, weights, alpha=alpha, table=self.table, token_alpha=token_alpha, ignore_index=PAD)

    def _counted(self, target: Tensor) -> Tensor | None:
        """Which of the B T positions are not PAD, in the target (B, T) and in samples of its lengths.

        None: all are kept, since samples are longer, or what is PAD is on a device that would have to be waited for.
        """
        if not devices.on_host(target) or (self.sampler is not None and self.config.sampler != "hamming"):
            return None
        return (target != PAD).flatten().nonzero().squeeze(-1)

    def _cross_entropy(self, model: SequenceModel, hidden: Tensor, target: Target, taught: Prediction | None) -> Tensor:
        config, classifier, label_smoothing = self.config, model.classifier, self.config.label_smoothing
        logits = classifier(hidden) if config.consistency else None
        if logits is not None or taught is not None:
            target, label_smoothing = self._with_predictions(target, logits, taught), 0.0
        if logits is not None and logits.dtype == classifier.weight.dtype:
            # Otherwise autocast has rounded them, which the loss should not see.
            return F.cross_entropy(logits, target, entropy=config.entropy, prior=self.prior, inplace=True)
        return F.linear_cross_entropy(
            hidden,
            classifier.weight,
            target,
            linear_bias=classifier.bias,
            label_smoothing=label_smoothing,
            entropy=config.entropy,
            prior=self.prior,
        )

    def _with_predictions(self, target: Target, logits: Tensor | None, taught: Prediction | None) -> Target:
        """The smoothed target with what teachers and the other pass predict, which is not smoothed."""
        config, mass = self.config, target.mass()
        mixed = _smoothed(target, mass, config.label_smoothing)
        if taught is not None:
            share = config.teacher.share
            mixed = mixed * (1 - share) + taught.of_mass(mass) * share
        if logits is not None:
            mixed = mixed + other_pass(logits, mass, config.consistency_classes) * config.consistency
        return mixed


def _smoothed(target: Target, mass: Tensor, label_smoothing: float) -> Target:
    if not label_smoothing:
        return target
    nothing = mass.unsqueeze(-1) * 0
    even = targets.entries(torch.full_like(nothing, -1, dtype=torch.int32), nothing, mass)
    return target * (1 - label_smoothing) + even * label_smoothing


def encode(model: SequenceModel, batch: Batch) -> Any:
    """The memory of a batch, one row per target."""
    memory = model.encode(*batch.source)
    return memory if batch.source_index is None else select_rows(memory, batch.source_index)


def decode(model: SequenceModel, batch: Batch) -> Tensor:
    """Teacher forcing on the ground truth: hidden states (B, T, D)."""
    return model.decode(encode(model, batch), batch.decoder_inputs, _known(batch.lengths + 1))


def decode_samples(
    model: SequenceModel, memory: Any, target: Tensor, samples: Tensor, lengths: Tensor | None = None
) -> Tensor:
    """Teacher forcing on the ground truth (B, T) and its samples (L, B, T) in one pass: (1 + L, B, T, D).

    ``lengths``: (1 + L) B, how many states of each are wanted; None: all.
    """
    sequences = torch.cat((target[None], samples))
    rows = torch.arange(target.shape[0], device=target.device).repeat(sequences.shape[0])
    inputs = shift_right(sequences.flatten(0, 1))
    hidden = model.decode(select_rows(memory, rows), inputs, None if lengths is None else _known(lengths))
    return hidden.view(*sequences.shape[:2], *hidden.shape[1:])


def _known(lengths: Tensor) -> Tensor | None:
    """Lengths where reading them does not wait for a device."""
    return lengths if devices.on_host(lengths) else None


def build_loss(
    config: LossConfig,
    table: SimilarityTable | None,
    num_tokens: int,
    weights: SampleWeights | None = None,
    prior: Tensor | None = None,
    teachers: Teachers | None = None,
    timed: Timer = nullcontext,
) -> TrainingLoss:
    """The loss of a recipe.

    Args:
        config: The recipe's ``loss:`` section.
        table: The similarity table, needed when ``config.needs_table``.
        num_tokens: Size of the target vocabulary.
        weights: What weighs the samples, when ``config.reward`` has a name.
        prior: What the mass on all classes is spread by, on the training device, when ``config.prior`` is not uniform.
        teachers: The models of ``config.teacher``, when it has some.
        timed: Times its parts.

    Raises:
        RecipeError: when the table is missing, of another vocabulary's size, or the settings contradict each other.
    """
    if config.name == "label_smoothing" and not config.label_smoothing:
        raise RecipeError("loss.label_smoothing must be above 0 for loss.name label_smoothing, got 0")
    if config.needs_table:
        if table is None:
            wanted = f"loss.name {config.name}" if config.smooths_tokens else "loss.pool similar"
            raise RecipeError(f"{wanted} needs a similarity table")
        if table.num_tokens != num_tokens:
            sizes = f"of {table.num_tokens} tokens, the target vocabulary {num_tokens}"
            raise RecipeError(f"the similarity table is {sizes}: they belong to different vocabularies")
    sampler = _sampler(config, table, num_tokens) if config.samples_sequences else None
    return TrainingLoss(config, table if config.smooths_tokens else None, sampler, weights, prior, teachers, timed)


def _sampler(config: LossConfig, table: SimilarityTable | None, num_tokens: int) -> Sampler:
    pool = _pool(config, table, num_tokens)
    if config.sampler == "hamming":
        return HammingSampler(config.tau, pool)
    assert isinstance(pool, UniformPool)  # of a recipe that was checked
    return EditSampler(config.tau, pool, max_insertions=config.max_insertions, pad=PAD)


def _pool(config: LossConfig, table: SimilarityTable | None, num_tokens: int) -> Pool:
    if config.pool == "vocabulary" or config.name == "raml":
        return VocabularyPool(num_tokens, exclude=SPECIAL_TOKENS)
    if config.pool == "similar":
        assert table is not None  # build_loss has refused that
        return SimilarPool(table, exclude=SPECIAL_TOKENS)
    return BatchPool(exclude=SPECIAL_TOKENS) if config.pool == "batch" else ReferencePool(exclude=SPECIAL_TOKENS)
