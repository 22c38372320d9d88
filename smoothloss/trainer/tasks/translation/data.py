"""Tokenised parallel text and its batches."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from smoothloss.trainer import files
from smoothloss.trainer.config import RecipeError
from smoothloss.trainer.tasks import Batch, pad_rows
from smoothloss.trainer.vocabulary import EOS

BATCHES_PER_POOL = 50  # sentences are sorted by length within pools of so many batches: little padding, much shuffling


@dataclass
class TranslationData:
    """Tokenised parallel text, one sentence a line, ``.gz`` or plain.

    Args:
        train: Prefix of the training files; ``.<source>`` and ``.<target>`` are appended, or ``.<source>.gz``.
        validation: Prefix of the validation files.
        test: Prefix of the test files by name of the split, such as ``{test: data/test_2016_flickr.lc.norm.tok}``.
        source: Source language, the ending of its files.
        target: Target language, the ending of its files.
        min_count: Words seen less often in training become UNK.
        max_length: Training pairs with more words on either side are left out.
    """

    train: str
    validation: str
    source: str
    target: str
    test: dict[str, str] = field(default_factory=dict)
    min_count: int = 2
    max_length: int = 100


Sentence = list[str]


@dataclass(frozen=True)
class ParallelText:
    """Source and target sentences as words, in the same order."""

    source: list[Sentence]
    target: list[Sentence]

    def __len__(self) -> int:
        return len(self.source)


def read_lines(prefix: str, language: str, key: str) -> list[Sentence]:
    """The tokenised lines of ``<prefix>.<language>``, or of the same with ``.gz``.

    Raises:
        RecipeError: when the file is missing or is not UTF-8.
    """
    try:
        path = files.existing_file(f"{prefix}.{language}", key)
    except RecipeError as missing:
        try:
            path = files.existing_file(f"{prefix}.{language}.gz", key)
        except RecipeError:
            raise missing from None
    return [line.split() for line in files.read_lines(path, key)]


def read_parallel(prefix: str, data: TranslationData, key: str) -> ParallelText:
    """Both sides of one part of the data.

    Raises:
        RecipeError: when a file is missing or the sides differ in length.
    """
    source, target = read_lines(prefix, data.source, key), read_lines(prefix, data.target, key)
    if len(source) != len(target):
        sizes = f"{len(source)} lines of {data.source} and {len(target)} of {data.target}"
        raise RecipeError(f"{key}: {Path(prefix).name} has {sizes}; they must be the same")
    return ParallelText(source, target)


def bucketed_plan(lengths: Sequence[tuple[int, int]], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Batches of example numbers: shuffled, then sorted by length within pools, then the batches shuffled.

    Args:
        lengths: (target, source) length of every example.
        batch_size: Examples per batch; the last of a pool may be smaller.
        seed: The run's seed.
        epoch: Counted from 0. The plan depends on nothing but these arguments.
    """
    order = random.Random(f"{seed}/{epoch}")
    examples = list(range(len(lengths)))
    order.shuffle(examples)
    pool_size = batch_size * BATCHES_PER_POOL
    batches: list[list[int]] = []
    for start in range(0, len(examples), pool_size):
        pool = sorted(examples[start : start + pool_size], key=lambda example: lengths[example])
        batches += [pool[first : first + batch_size] for first in range(0, len(pool), batch_size)]
    order.shuffle(batches)
    return batches


def make_batch(source: Sequence[list[int]], target: Sequence[list[int]]) -> Batch:
    """A batch from token ids without EOS; both sides get one."""
    return Batch(
        source=source_tensors(source),
        target=pad_rows([[*tokens, EOS] for tokens in target]),
        lengths=torch.tensor([len(tokens) for tokens in target]),
    )


def source_tensors(source: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """What the encoder reads: (B, S) tokens with EOS, padded, and (B,) their lengths, EOS counted."""
    return pad_rows([[*tokens, EOS] for tokens in source]), torch.tensor([len(tokens) + 1 for tokens in source])


def by_length(sentences: Sequence[Sequence[object]], batch_size: int) -> Iterator[list[int]]:
    """Batches of sentence numbers, longest sentences first: memory runs out at once or never."""
    order = sorted(range(len(sentences)), key=lambda number: -len(sentences[number]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
