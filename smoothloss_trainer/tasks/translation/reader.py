"""New text for a trained translator: words and pieces as of the training part, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from smoothloss_trainer.config import Recipe
from smoothloss_trainer.tasks import Reader
from smoothloss_trainer.tasks.translation.corpus import words_of
from smoothloss_trainer.tasks.translation.data import TranslationData, source_tensors
from smoothloss_trainer.tasks.translation.model import AttentiveModel
from smoothloss_trainer.tasks.translation.moses import moses_detokenizer
from smoothloss_trainer.vocabulary import Vocabulary


class TranslationReader(Reader):
    """Reads lines of the source language: inputs are their tokens.

    Raises:
        RunError: when a package that tokenises is not installed.
    """

    def __init__(self, recipe: Recipe, vocabularies: dict[str, Vocabulary], notes: dict[str, Any]) -> None:
        super().__init__(recipe, vocabularies, notes)
        data: TranslationData = recipe.data
        self._words = words_of(data.source, data)
        self._detokenize = moses_detokenizer(data.target, "data.tokenize") if data.tokenize == "moses" else None

    def build_model(self, weights: Mapping[str, Tensor]) -> AttentiveModel:
        """The model for both vocabularies, whose sizes say all."""
        return AttentiveModel(self.recipe.model, len(self.vocabularies["source"]), len(self.vocabularies["target"]))

    def tokens(self, line: str) -> list[int]:
        """A line as tokens, treated as those of the training part: lower case, words, pieces."""
        return self.vocabularies["source"].encode(self._words(line))

    def tensors(self, inputs: Sequence[Any]) -> tuple[Tensor, ...]:
        """The tokens of lines, padded, and their lengths."""
        return source_tensors(inputs)

    def difference(self, other: Reader) -> str | None:
        """Vocabularies, or what makes words of a line."""
        for key in ("tokenize", "lowercase"):
            if getattr(self.recipe.data, key, None) != getattr(other.recipe.data, key, None):
                return f"data.{key}"
        return super().difference(other)

    def text(self, tokens: Sequence[int]) -> str:
        """Detokenised where the training text was tokenised by the trainer, with ``data.tokenize``."""
        words = self.words(tokens)
        return words if self._detokenize is None else " ".join(self._detokenize(words.split()).split())
