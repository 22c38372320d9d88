"""What a recipe says of parallel text, and its batches."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field

from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.schema import Count, CountOrNone, FileName, FilePath, FilePrefix, Seed, SplitName, Words
from smoothloss_trainer.tasks import Batch, pad_rows, round_up
from smoothloss_trainer.vocabulary import EOS

BATCHES_PER_POOL = 50  # sentences are sorted by length within pools of so many batches: little padding, much shuffling


def _check_part(size: float) -> float:
    if size >= 1 and size != round(size):
        raise ValueError(f"must be a number of pairs, or a share below 1, got {size}")
    return size


PartSize = Annotated[float, Field(gt=0, le=1_000_000_000), AfterValidator(_check_part)]


@dataclass
class TranslationData:
    """Parallel text, ``.gz`` or plain: one sentence a line in two files, or pairs separated by tabs in one.

    Args:
        train: With ``format`` ``lines`` the prefix of the training files, ``.<source>`` and ``.<target>`` are appended,
            or ``.<source>.gz``; with ``tsv`` the file.
        source: Source language, the ending of its files.
        target: Target language, the ending of its files.
        validation: Prefix of the validation files, or the file; not needed when ``held_out`` has a validation part.
        test: Prefix of the test files, or the file, by name of the split, such as
            ``{test: data/test_2016_flickr.lc.norm.tok}``.
        format: ``lines``: a file for each language. ``tsv``: pairs in one file, as Tatoeba has them.
        columns: Languages of the columns of a ``tsv`` file, from the first; further columns are not read.
        held_out: Sizes of the parts that are cut from the training part by name, such as ``{validation: 2000, test:
            0.02}``: pairs from 1 on, a share below. The training part is then made of the first pair of every source
            sentence alone, so that no part holds a source sentence of another.
        split_seed: Seeds the choice of ``held_out``; apart from the run's seed, so that all runs have the same test.
        lowercase: Lower the case of the text. Set it also for text that is in lower case already: detokenised BLEU then
            leaves case out.
        tokenize: ``none``: words are what spaces separate. ``moses``: of sacremoses, for raw text; BLEU is computed on
            these words.
        raw: Files of raw target text by split, one line per pair, ``.gz`` or plain: what detokenised BLEU compares
            with. With ``tokenize: moses`` every split has its own and needs none here.
        min_count: Words seen less often in training become UNK; with ``bpe``, pairs of pieces and characters.
        max_words: The so many most frequent words alone; 0: all.
        bpe: Size of the vocabularies of pieces that byte-pair encoding learns, special tokens included; 0: words.
            ``loss.embeddings.path`` then has to hold vectors of pieces.
        joint_vocabulary: One vocabulary for both sides. The vocabulary pool and label smoothing then reach the words of
            the source too.
        max_length: Training pairs with more words on either side are left out.
        batch_tokens: Target positions per training batch at most, EOS and padding counted (rows times the longest); a
            longer sentence is a batch of its own. 0: batches of ``training.batch_size`` sentences.
        skip_unusable: Leave out pairs with an empty side, a line that is not UTF-8 or a missing column, from every
            part, and say how many; the others keep their numbers. Left false, they are an error.
    """

    train: FilePrefix
    source: FileName
    target: FileName
    validation: FilePrefix | None = None
    test: dict[SplitName, FilePrefix] = field(default_factory=dict)
    format: Literal["lines", "tsv"] = "lines"
    columns: list[Words] = field(default_factory=lambda: ["en", "de"])
    held_out: dict[SplitName, PartSize] = field(default_factory=dict)
    split_seed: Seed = 1
    lowercase: bool = False
    tokenize: Literal["none", "moses"] = "none"
    raw: dict[SplitName, FilePath] = field(default_factory=dict)
    min_count: Count = 2
    max_words: CountOrNone = 0
    bpe: Annotated[int, Field(ge=0, le=1_000_000)] = 0  # tokenizers aborts on memory for thousands of millions
    joint_vocabulary: bool = False
    max_length: Count = 100
    batch_tokens: CountOrNone = 0
    skip_unusable: bool = False


def check_parts(data: TranslationData) -> None:
    """Refuse parts of one name, data without a validation part, and languages that no column has.

    Raises:
        RecipeError: naming the key.
    """
    for key, names in (("test", data.test), ("held_out", data.held_out)):
        if "train" in names:
            raise RecipeError(f"data.{key}: train is the name of the training part")
    if "validation" in data.test:
        raise RecipeError("data.test: validation is the name of the validation part, data.validation")
    own = [*([] if data.validation is None else ["validation"]), *data.test]
    for twice in data.held_out:
        if twice in own:
            raise RecipeError(f"data.held_out: {twice} has files of its own")
    splits = [*own, *data.held_out]
    if "validation" not in splits:
        raise RecipeError("data.validation is needed, or a part of this name in data.held_out")
    for split in data.raw:
        if split not in splits:
            raise RecipeError(f"data.raw: {split} must be one of {', '.join(splits)}")
    if len(set(data.columns)) < len(data.columns):
        raise RecipeError(f"data.columns must name each column once, got {', '.join(data.columns)}")
    if data.format == "tsv":
        column_numbers(data)


def without_test(data: TranslationData) -> TranslationData:
    """The data without the files of test splits."""
    return replace(data, test={}, raw={split: path for split, path in data.raw.items() if split == "validation"})


def column_numbers(data: TranslationData) -> list[int]:
    """Which columns of a ``tsv`` file hold the source and the target language.

    Raises:
        RecipeError: when ``data.columns`` has not both.
    """
    for side, language in (("source", data.source), ("target", data.target)):
        if language not in data.columns:
            raise RecipeError(f"data.{side} must be one of data.columns, {', '.join(data.columns)}, got {language!r}")
    return [data.columns.index(language) for language in (data.source, data.target)]


def bucketed_plan(
    lengths: Sequence[tuple[int, int]],
    batch_size: int,
    seed: int,
    epoch: int,
    *,
    batch_tokens: int = 0,
    multiple: int = 1,
) -> list[list[int]]:
    """Batches of example numbers: shuffled, then sorted by length within pools, then the batches shuffled.

    Args:
        lengths: (target, source) length of every example.
        batch_size: Examples per batch; the last of a pool may be smaller.
        seed: The run's seed.
        epoch: Counted from 0. The plan depends on nothing but these arguments.
        batch_tokens: In place of ``batch_size`` where it is not 0: rows times the longest target, EOS counted, at most;
            a longer target is a batch of its own.
        multiple: The width of a batch is rounded up to a multiple of it.
    """
    order = random.Random(f"{seed}/{epoch}")
    examples = list(range(len(lengths)))
    order.shuffle(examples)
    if batch_tokens:
        positions = sum(target + 1 for target, _ in lengths)
        pool_size = max(1, BATCHES_PER_POOL * batch_tokens * len(lengths) // max(1, positions))
    else:
        pool_size = batch_size * BATCHES_PER_POOL
    batches: list[list[int]] = []
    for start in range(0, len(examples), pool_size):
        pool = sorted(examples[start : start + pool_size], key=lambda example: lengths[example])
        if batch_tokens:
            batches += _cut_by_tokens(pool, lengths, batch_tokens, multiple)
        else:
            batches += [pool[first : first + batch_size] for first in range(0, len(pool), batch_size)]
    order.shuffle(batches)
    return batches


def _cut_by_tokens(
    examples: Sequence[int], lengths: Sequence[tuple[int, int]], batch_tokens: int, multiple: int
) -> Iterator[list[int]]:
    """Batches of at most so many target positions from examples whose lengths rise."""
    batch: list[int] = []
    for example in examples:
        width = round_up(lengths[example][0] + 1, multiple)  # the longest so far
        if batch and (len(batch) + 1) * width > batch_tokens:
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


def make_batch(source: Sequence[list[int]], target: Sequence[list[int]], multiple: int = 1) -> Batch:
    """A batch from token ids without EOS; both sides get one. Widths are multiples of ``multiple``."""
    return Batch(
        source=source_tensors(source, multiple),
        target=pad_rows([[*tokens, EOS] for tokens in target], multiple=multiple),
        lengths=torch.tensor([len(tokens) for tokens in target]),
    )


def source_tensors(source: Sequence[list[int]], multiple: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """What the encoder reads: (B, S) tokens with EOS, padded, and (B,) their lengths, EOS counted."""
    padded = pad_rows([[*tokens, EOS] for tokens in source], multiple=multiple)
    return padded, torch.tensor([len(tokens) + 1 for tokens in source])


def by_length(sentences: Sequence[Sequence[object]], batch_size: int) -> Iterator[list[int]]:
    """Batches of sentence numbers, longest sentences first: memory runs out at once or never."""
    order = sorted(range(len(sentences)), key=lambda number: -len(sentences[number]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
