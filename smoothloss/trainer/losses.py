"""The losses of a recipe: from its ``loss:`` section to a function of model and batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import smoothloss.functional as F
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
from smoothloss.trainer.config import LossConfig, RecipeError
from smoothloss.trainer.rewards import SampleWeights
from smoothloss.trainer.tasks import Batch, SequenceModel, select_rows, shift_right
from smoothloss.trainer.vocabulary import PAD, SPECIAL_TOKENS


@dataclass(frozen=True)
class TrainingLoss:
    """Mean loss per target token of a batch.

    Args:
        config: The recipe's ``loss:`` section.
        table: The similarity table, for the losses that smooth tokens.
        sampler: Draws around the ground truth, for the losses that smooth sequences.
        weights: Weighs what was drawn by its reward; None: all samples weigh the same.
    """

    config: LossConfig
    table: SimilarityTable | None = None
    sampler: Sampler | None = None
    weights: SampleWeights | None = None

    def __call__(self, model: SequenceModel, batch: Batch, generator: torch.Generator) -> Tensor:
        """One forward pass and the loss; the samples come from ``generator``."""
        memory = encode(model, batch)
        if self.sampler is None:
            return self._token_loss(model, model.decode(memory, batch.decoder_inputs), batch.target)
        samples, weights = self._draw(batch, generator)
        options = self._sequence_options(model)
        if self.config.is_lazy:
            hidden = model.decode(memory, batch.decoder_inputs)
            return F.linear_lazy_sequence_cross_entropy(
                hidden, model.classifier.weight, batch.target, samples, weights, **options
            )
        # As wide as samples with insertions.
        target = torch.nn.functional.pad(batch.target, (0, samples.shape[-1] - batch.target.shape[-1]), value=PAD)
        hidden = decode_samples(model, memory, target, samples)
        return F.linear_sequence_cross_entropy(hidden, model.classifier.weight, target, samples, weights, **options)

    def _draw(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Samples (L, B, T'), and their weights (L, B) where a reward tells them apart."""
        assert self.sampler is not None
        drawn = self.sampler(
            batch.target, batch.lengths, self.config.num_samples, generator=generator, references=batch.references
        )
        return drawn.tokens, None if self.weights is None else self.weights(drawn, batch)

    def _token_loss(self, model: SequenceModel, hidden: Tensor, target: Tensor) -> Tensor:
        alpha = self.config.alpha if self.table is not None else 0.0
        options = self._options(model)
        return F.linear_cross_entropy(hidden, model.classifier.weight, target, table=self.table, alpha=alpha, **options)

    def _options(self, model: SequenceModel) -> dict[str, Any]:
        return {
            "linear_bias": model.classifier.bias,
            "ignore_index": PAD,
            "label_smoothing": self.config.label_smoothing,
            "entropy": self.config.entropy,
        }

    def _sequence_options(self, model: SequenceModel) -> dict[str, Any]:
        config = self.config
        alpha = 1.0 if config.name == "raml" else config.alpha
        token_alpha = config.token_alpha if self.table is not None else 0.0
        return {**self._options(model), "alpha": alpha, "table": self.table, "token_alpha": token_alpha}


def encode(model: SequenceModel, batch: Batch) -> Any:
    """The memory of a batch, one row per target."""
    memory = model.encode(*batch.source)
    return memory if batch.source_index is None else select_rows(memory, batch.source_index)


def decode_samples(model: SequenceModel, memory: Any, target: Tensor, samples: Tensor) -> Tensor:
    """Teacher forcing on the ground truth (B, T) and its samples (L, B, T) in one pass: (1 + L, B, T, D)."""
    sequences = torch.cat((target[None], samples))
    rows = torch.arange(target.shape[0], device=target.device).repeat(sequences.shape[0])
    hidden = model.decode(select_rows(memory, rows), shift_right(sequences.flatten(0, 1)))
    return hidden.view(*sequences.shape[:2], *hidden.shape[1:])


def build_loss(
    config: LossConfig, table: SimilarityTable | None, num_tokens: int, weights: SampleWeights | None = None
) -> TrainingLoss:
    """The loss of a recipe.

    Args:
        config: The recipe's ``loss:`` section.
        table: The similarity table, needed when ``config.needs_table``.
        num_tokens: Size of the target vocabulary.
        weights: What weighs the samples, when ``config.reward`` has a name.

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
    return TrainingLoss(config, table if config.smooths_tokens else None, sampler, weights)


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
