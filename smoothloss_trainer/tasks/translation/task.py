"""The translation task: what the training loop needs to know about parallel text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from smoothloss.rewards import References
from smoothloss.rewards import corpus_bleu as bleu_of_statistics
from smoothloss_trainer.config import Recipe
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.metrics import corpus_bleu, detokenized_bleu, text_statistics
from smoothloss_trainer.tasks import Batch, Input, Task, check_fits, check_vocabulary
from smoothloss_trainer.tasks.translation.corpus import ParallelText, Sentence, read_corpus
from smoothloss_trainer.tasks.translation.data import (
    TranslationData,
    bucketed_plan,
    by_length,
    check_parts,
    make_batch,
    source_tensors,
    without_test,
)
from smoothloss_trainer.tasks.translation.model import AttentiveModel, TranslationModel
from smoothloss_trainer.tasks.translation.moses import moses_detokenizer
from smoothloss_trainer.tasks.translation.reader import TranslationReader
from smoothloss_trainer.vocabulary import SPECIAL_TOKENS, Vocabulary


def _check_references(split: str, references: Sequence[Sequence[str]]) -> None:
    empty = [number for number, words in enumerate(references, 1) if not words]
    if empty:
        raise RecipeError(f"{split} has {len(empty)} empty references, such as number {empty[0]}")


class TranslationTask(Task):
    """Parallel text, scored by tokenised BLEU, and by detokenised BLEU where there is raw text to compare with.

    The splits are ``validation`` and those named in ``data.test`` and ``data.held_out``.
    """

    data_config = TranslationData
    model_config = TranslationModel
    metric = "bleu"
    reader = TranslationReader

    @classmethod
    def check(cls, recipe: Recipe) -> None:
        """Refuse splits, columns and sizes that contradict each other."""
        data, model = recipe.data, recipe.model
        check_parts(data)
        if recipe.loss.samples_sequences and recipe.loss.pool == "references" and recipe.loss.name != "raml":
            raise RecipeError("loss.pool references needs several references of an input, and translation has one")
        if 0 < data.bpe <= len(SPECIAL_TOKENS):
            sizes = f"0 or more than the {len(SPECIAL_TOKENS)} special tokens"
            raise RecipeError(f"data.bpe must be {sizes}, got {data.bpe}")
        if data.bpe and data.max_words:
            raise RecipeError("data.max_words cuts a vocabulary of words; with data.bpe the size is data.bpe itself")
        if model.tie == "all" and not data.joint_vocabulary:
            raise RecipeError("model.tie all needs one vocabulary for both sides: data.joint_vocabulary true")

    @classmethod
    def without_test(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Neither test files nor raw text of them."""
        kept = {key: value for key, value in data.items() if key != "test"}
        if isinstance(data.get("raw"), dict):
            kept["raw"] = {split: path for split, path in data["raw"].items() if split == "validation"}
        return kept

    def __init__(self, recipe: Recipe, vocabularies: dict[str, Vocabulary] | None = None) -> None:
        data: TranslationData = recipe.data
        self.recipe = recipe
        corpus = read_corpus(data if recipe.training.test else without_test(data))
        self.splits, self.raw = corpus.parts, corpus.raw
        if not recipe.training.test:  # parts that are held out of the training file
            self.splits = {name: self.splits[name] for name in ("train", "validation")}
        self.train = self.splits.pop("train").short_pairs(data.max_length)
        self.test_splits = [split for split in self.splits if split != "validation"]
        for split, text in self.splits.items():
            _check_references(split, text.target)
        self._detokenize = moses_detokenizer(data.target, "data.raw") if self.raw else None
        if not len(self.train):
            raise RecipeError(f"data.train: no pair of sentences with at most {data.max_length} words")
        self.vocabularies = vocabularies or build_vocabularies(self.train, data)
        for vocabulary in self.vocabularies.values():
            check_vocabulary(vocabulary, data.min_count)
        self._train_tokens = self._encode(self.train)
        self._lengths = [(len(target), len(source)) for source, target in zip(*self._train_tokens, strict=True)]

    def _encode(self, text: ParallelText) -> tuple[list[list[int]], list[list[int]]]:
        source, target = self.vocabularies["source"], self.vocabularies["target"]
        return [source.encode(words) for words in text.source], [target.encode(words) for words in text.target]

    def build_model(self) -> AttentiveModel:
        """The attentive encoder-decoder for both vocabularies."""
        sizes = len(self.vocabularies["source"]), len(self.vocabulary)
        check_fits(lambda: AttentiveModel(self.recipe.model, *sizes))
        return AttentiveModel(self.recipe.model, *sizes)

    def target_sentences(self) -> Iterable[Sequence[str]]:
        """The training part's target side, with BPE as pieces."""
        return (self.vocabulary.segment(words) for words in self.train.target)

    def train_plan(self, epoch: int) -> Sequence[Sequence[int]]:
        """Length-bucketed batches."""
        config, batch_tokens = self.recipe.training, self.recipe.data.batch_tokens
        sizes = {"batch_tokens": batch_tokens, "multiple": config.pad_to_multiple_of}
        return bucketed_plan(self._lengths, config.batch_size, self.recipe.seed, epoch, **sizes)

    def train_batch(self, examples: Sequence[int]) -> Batch:
        """The pairs of these numbers."""
        source, target = self._train_tokens
        pairs = [source[number] for number in examples], [target[number] for number in examples]
        batch = make_batch(*pairs, self.recipe.training.pad_to_multiple_of)
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
        text = self._split(split)
        source = [self.vocabularies["source"].encode(words) for words in text.source]
        for places in by_length(source, batch_size):
            names = [str(text.numbers[place]) for place in places]
            yield names, source_tensors([source[place] for place in places])

    def score(self, split: str, hypotheses: dict[str, str]) -> dict[str, float | str]:
        """Corpus BLEU on the tokens, with sacrebleu's signature, and ``bleu_detokenized`` with its own."""
        inputs = self.inputs(split)
        written = [hypotheses[each.name] for each in inputs]
        scores = corpus_bleu(written, [[each.references[0] for each in inputs]])
        found = self.detokenized(split, hypotheses)
        if found is not None:
            scores |= detokenized_bleu(found[0], [found[1]], lowercase=self.recipe.data.lowercase)
        return scores

    def detokenized(self, split: str, hypotheses: dict[str, str]) -> tuple[list[str], list[str]] | None:
        """Moses' detokenisation and the raw lines of the split's target side, where there are any."""
        if self._detokenize is None or split not in self.raw:
            return None
        return [self._detokenize(hypotheses[each.name].split()) for each in self.inputs(split)], self.raw[split]

    def examples(self, part: str) -> Iterator[bytes]:
        """The words of each pair, and raw lines where there are any; of ``train`` those that are trained on."""
        text = self.train if part == "train" else self._split(part)
        raw = self.raw.get(part, [""] * len(text))
        for source, target, line in zip(text.source, text.target, raw, strict=True):
            yield f"{' '.join(source)}\t{' '.join(target)}\t{line}".encode("utf-8", "surrogatepass")

    def statistics(self, split: str, hypotheses: dict[str, str]) -> Tensor:
        """BLEU's counts of each sentence."""
        inputs = self.inputs(split)
        return text_statistics([hypotheses[each.name] for each in inputs], [each.references for each in inputs])

    @staticmethod
    def metric_of(totals: Tensor) -> Tensor:
        """BLEU, times 100."""
        return 100 * bleu_of_statistics(totals[None])[..., -1]

    def inputs(self, split: str) -> list[Input]:
        """The sentence pairs; ids are line numbers from 0."""
        text = self._split(split)
        pairs = zip(text.numbers, text.source, text.target, strict=True)
        return [Input(str(number), [" ".join(target)], " ".join(source)) for number, source, target in pairs]


def build_vocabularies(train: ParallelText, data: TranslationData) -> dict[str, Vocabulary]:
    """The vocabularies of both sides; a joint one has the same tokens, and counts of its own, on either side."""

    def build(sentences: list[Sentence]) -> Vocabulary:
        if data.bpe:
            return Vocabulary.learn_bpe(sentences, data.bpe, data.min_count)
        return Vocabulary.build(sentences, data.min_count, data.max_words)

    if not data.joint_vocabulary:
        return {"source": build(train.source), "target": build(train.target)}
    joint = build(train.source + train.target)
    return {"source": joint.recount(train.source), "target": joint.recount(train.target)}
