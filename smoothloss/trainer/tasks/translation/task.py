"""The translation task: what the training loop needs to know about parallel text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from smoothloss.rewards import References
from smoothloss.rewards import corpus_bleu as bleu_of_statistics
from smoothloss.trainer.config import Recipe, RecipeError
from smoothloss.trainer.metrics import corpus_bleu, text_statistics
from smoothloss.trainer.tasks import Batch, Input, Task
from smoothloss.trainer.tasks.translation.data import (
    ParallelText,
    TranslationData,
    bucketed_plan,
    by_length,
    make_batch,
    read_parallel,
    source_tensors,
)
from smoothloss.trainer.tasks.translation.model import AttentiveModel, TranslationModel
from smoothloss.trainer.vocabulary import Vocabulary


class TranslationTask(Task):
    """Tokenised parallel text, scored by tokenised BLEU.

    The splits are ``validation`` and those named in ``data.test``.
    """

    data_config = TranslationData
    model_config = TranslationModel
    metric = "bleu"

    def __init__(self, recipe: Recipe, vocabularies: dict[str, Vocabulary] | None = None) -> None:
        data: TranslationData = recipe.data
        self.recipe = recipe
        self.splits = {"validation": read_parallel(data.validation, data, "data.validation")}
        for name, prefix in data.test.items():
            self.splits[name] = read_parallel(prefix, data, f"data.test.{name}")
        self.test_splits = list(data.test)
        self.train = _short_pairs(read_parallel(data.train, data, "data.train"), data.max_length)
        if not len(self.train):
            raise RecipeError(f"data.train: no pair of sentences with at most {data.max_length} words")
        self.vocabularies = vocabularies or {
            "source": Vocabulary.build(self.train.source, data.min_count),
            "target": Vocabulary.build(self.train.target, data.min_count),
        }
        self._train_tokens = self._encode(self.train)
        self._lengths = [(len(target), len(source)) for source, target in zip(*self._train_tokens, strict=True)]

    def _encode(self, text: ParallelText) -> tuple[list[list[int]], list[list[int]]]:
        source, target = self.vocabularies["source"], self.vocabularies["target"]
        return [source.encode(words) for words in text.source], [target.encode(words) for words in text.target]

    def build_model(self) -> AttentiveModel:
        """The attentive encoder-decoder for both vocabularies."""
        return AttentiveModel(self.recipe.model, len(self.vocabularies["source"]), len(self.vocabulary))

    def target_sentences(self) -> Iterable[Sequence[str]]:
        """The training part's target side."""
        return self.train.target

    def train_plan(self, epoch: int) -> Sequence[Sequence[int]]:
        """Length-bucketed batches."""
        return bucketed_plan(self._lengths, self.recipe.training.batch_size, self.recipe.seed, epoch)

    def train_batch(self, examples: Sequence[int]) -> Batch:
        """The pairs of these numbers."""
        source, target = self._train_tokens
        batch = make_batch([source[number] for number in examples], [target[number] for number in examples])
        return replace(batch, inputs=torch.tensor(examples))

    def training_references(self) -> References:
        """The target sentence of every training pair."""
        return References([[tokens] for tokens in self._train_tokens[1]])

    def validation_batches(self) -> Iterator[Batch]:
        """The validation part by length."""
        source, target = self._encode(self.splits["validation"])
        for numbers in by_length(target, self.recipe.decoding.batch_size):
            yield make_batch([source[number] for number in numbers], [target[number] for number in numbers])

    def _split(self, name: str) -> ParallelText:
        if name not in self.splits:
            raise RecipeError(f"split must be one of {', '.join(self.splits)}, got {name!r}")
        return self.splits[name]

    def sources(self, split: str, batch_size: int) -> Iterator[tuple[list[str], tuple[Tensor, ...]]]:
        """Source sentences by length; ids are line numbers from 0."""
        source = [self.vocabularies["source"].encode(words) for words in self._split(split).source]
        for numbers in by_length(source, batch_size):
            yield [str(number) for number in numbers], source_tensors([source[number] for number in numbers])

    def score(self, split: str, hypotheses: dict[str, str]) -> dict[str, float | str]:
        """Corpus BLEU on the tokens, with sacrebleu's signature."""
        inputs = self.inputs(split)
        return corpus_bleu([hypotheses[each.name] for each in inputs], [[each.references[0] for each in inputs]])

    def statistics(self, split: str, hypotheses: dict[str, str]) -> Tensor:
        """BLEU's counts of each sentence."""
        inputs = self.inputs(split)
        return text_statistics([hypotheses[each.name] for each in inputs], [each.references for each in inputs])

    def metric_of(self, totals: Tensor) -> Tensor:
        """BLEU, times 100."""
        return 100 * bleu_of_statistics(totals[None])[..., -1]

    def inputs(self, split: str) -> list[Input]:
        """The sentence pairs; ids are line numbers from 0."""
        text = self._split(split)
        pairs = zip(text.source, text.target, strict=True)
        return [Input(str(n), [" ".join(target)], " ".join(source)) for n, (source, target) in enumerate(pairs)]


def _short_pairs(text: ParallelText, max_length: int) -> ParallelText:
    pairs = [
        (source, target)
        for source, target in zip(text.source, text.target, strict=True)
        if 0 < len(source) <= max_length and 0 < len(target) <= max_length
    ]
    return ParallelText([source for source, _ in pairs], [target for _, target in pairs])
