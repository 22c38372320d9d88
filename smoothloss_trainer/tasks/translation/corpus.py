"""Parallel text on disk: two files of lines or one of tab-separated pairs, and the parts it is split into."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from smoothloss_trainer import files
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.tasks.translation.data import TranslationData, check_parts, column_numbers
from smoothloss_trainer.tasks.translation.moses import moses_tokenizer
from smoothloss_trainer.tasks.unusable import Unusable

Sentence = list[str]
Pairs = list[tuple[str, str]]  # source and target lines

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """The lines of one part of the data, less the pairs that cannot be used.

    Args:
        pairs: Source and target lines.
        numbers: The number of each pair in its files, from 0.
        total: How many the files have.
    """

    pairs: Pairs
    numbers: Sequence[int]
    total: int


@dataclass(frozen=True)
class ParallelText:
    """Source and target sentences as words, in the same order.

    Args:
        source: The source sentences.
        target: Their translations.
        numbers: The number of each pair in its part, from 0: with gaps where unusable pairs were left out.
    """

    source: list[Sentence]
    target: list[Sentence]
    numbers: Sequence[int]

    def __len__(self) -> int:
        return len(self.source)

    def short_pairs(self, max_length: int) -> ParallelText:
        """The pairs with at least one word on either side and at most so many; the others are counted in the log."""
        kept = [
            place
            for place, (source, target) in enumerate(zip(self.source, self.target, strict=True))
            if 0 < len(source) <= max_length and 0 < len(target) <= max_length
        ]
        if 0 < len(kept) < len(self):  # where none is left, an error says so
            left = f"{len(self) - len(kept)} of {len(self)} pairs have more than {max_length} words on a side, or none"
            _log.warning("data.train: %s; they are left out (data.max_length)", left)
        return ParallelText(
            [self.source[place] for place in kept],
            [self.target[place] for place in kept],
            [self.numbers[place] for place in kept],
        )


@dataclass(frozen=True)
class Corpus:
    """Parallel text by part: ``train``, ``validation`` and the test splits.

    Args:
        parts: Words.
        raw: Target lines as people write them, of the splits (not of ``train``) that have them.
    """

    parts: dict[str, ParallelText]
    raw: dict[str, list[str]]


def read_corpus(data: TranslationData) -> Corpus:
    """All parts of the data.

    Raises:
        RecipeError: when a file is missing or broken, a part is named twice or has another number of raw lines, a pair
            cannot be used and ``data.skip_unusable`` is not set, or a package is missing.
    """
    check_parts(data)
    splits = {"validation": data.validation} if data.validation is not None else {}
    splits |= data.test
    parts = {
        split: read_part(path, data, f"data.{'' if split == 'validation' else 'test.'}{split}")
        for split, path in splits.items()
    }
    train = read_part(data.train, data, "data.train")
    if data.held_out:
        drawn = hold_out(train.pairs, data)
        parts |= {name: Part(pairs, range(len(pairs)), len(pairs)) for name, pairs in drawn.items()}
    else:
        parts["train"] = train
    words = [words_of(language, data) for language in (data.source, data.target)]
    texts = {
        name: ParallelText(
            [words[0](source) for source, _ in part.pairs], [words[1](target) for _, target in part.pairs], part.numbers
        )
        for name, part in parts.items()
    }
    return Corpus(texts, _raw_lines(data, parts))


def read_part(path: str, data: TranslationData, key: str) -> Part:
    """One part of the data; pairs that cannot be used are counted, and refused or left out.

    Those are pairs with an empty side, with a line that is not UTF-8, or without the columns of the languages.

    Args:
        path: A prefix, or with the format ``tsv`` a file.
        data: The recipe's ``data:`` section.
        key: The recipe key that an error names.

    Raises:
        RecipeError: when a file is missing or broken, the sides do not fit, or a pair cannot be used and
            ``data.skip_unusable`` is not set.
    """
    broken: dict[int, str] = {}
    pairs = (_read_columns if data.format == "tsv" else _read_sides)(path, data, key, broken)
    found = Unusable(f"{key}: {Path(path).name}", "pairs", data.skip_unusable)
    kept = []
    for place, pair in enumerate(pairs):
        empty = next((side for side, line in zip(("source", "target"), pair, strict=True) if not line.strip()), None)
        why = broken.get(place + 1) or (f"its {empty} is empty" if empty else None)
        if why is None:
            kept.append(place)
        else:
            found.add(f"line {place + 1}", why)
    found.report(len(pairs))
    return Part([pairs[place] for place in kept], kept, len(pairs))


def _read_sides(path: str, data: TranslationData, key: str, broken: dict[int, str]) -> Pairs:
    source, target = (_read_lines(path, language, key, broken) for language in (data.source, data.target))
    if len(source) != len(target):
        sizes = f"{len(source)} lines of {data.source} and {len(target)} of {data.target}"
        raise RecipeError(f"{key}: {Path(path).name} has {sizes}; they must be the same")
    return list(zip(source, target, strict=True))


def _read_lines(prefix: str, language: str, key: str, broken: dict[int, str]) -> list[str]:
    """The lines of ``<prefix>.<language>``, or of the same with ``.gz``."""
    try:
        path = files.existing_file(f"{prefix}.{language}", key)
    except RecipeError as missing:
        try:
            path = files.existing_file(f"{prefix}.{language}.gz", key)
        except RecipeError:
            raise missing from None
    return files.read_lines(path, key, broken)


def _read_columns(path: str, data: TranslationData, key: str, broken: dict[int, str]) -> Pairs:
    columns = column_numbers(data)
    needed = max(columns) + 1
    languages = [data.source.lower(), data.target.lower()]
    pairs = []
    for number, line in enumerate(files.read_lines(files.existing_file(path, key), key, broken), 1):
        row = line.split("\t", needed)
        if len(row) < needed:
            columns_here = f"{len(row)} column{'s' if len(row) > 1 else ''}"
            broken.setdefault(number, f"it has {columns_here}, expected {needed} or more, separated by tabs")
            row += [""] * (needed - len(row))
        elif number == 1 and [row[column].strip().lower() for column in columns] == languages:
            broken.setdefault(number, "it names the columns, and is no pair")
        pairs.append((row[columns[0]], row[columns[1]]))
    return pairs


def hold_out(pairs: Pairs, data: TranslationData) -> dict[str, Pairs]:
    """``train`` and the parts of ``data.held_out``, drawn without replacement from the pairs.

    From the second on, pairs of one source sentence (in lower case where the text is lowered) are left out before.
    ``train`` keeps its order; what is drawn depends on the file and ``data.split_seed``.

    Raises:
        RecipeError: when a size is not positive, no whole number from 1 on, or nothing is left to train on.
    """
    first: dict[str, tuple[str, str]] = {}
    for source, target in pairs:
        key = source.strip().lower() if data.lowercase else source.strip()
        first.setdefault(key, (source, target))
    kept = list(first.values())
    order = list(range(len(kept)))
    random.Random(data.split_seed).shuffle(order)
    parts: dict[str, Pairs] = {}
    for name, size in data.held_out.items():
        count = _count(name, size, len(kept))
        if count >= len(order):
            raise RecipeError(f"data.held_out: {name} takes {count} of {len(order)} pairs and leaves none to train on")
        parts[name] = [kept[number] for number in order[:count]]
        order = order[count:]
    return {"train": [kept[number] for number in sorted(order)], **parts}


def _count(name: str, size: float, pairs: int) -> int:
    count = round(size * pairs) if size < 1 else round(size)
    if size <= 0 or count < 1 or (size > 1 and count != size):
        expected = "a number of pairs, or a share between 0 and 1 that makes one at least"
        raise RecipeError(f"data.held_out.{name} must be {expected}, got {size}")
    return count


def words_of(language: str, data: TranslationData) -> Callable[[str], Sentence]:
    """What makes words of a line of this language: lower case and tokenisation are the recipe's."""
    split = str.split if data.tokenize == "none" else moses_tokenizer(language, "data.tokenize")
    return (lambda line: split(line.lower())) if data.lowercase else split


def _raw_lines(data: TranslationData, parts: dict[str, Part]) -> dict[str, list[str]]:
    """The raw target text of the splits: from ``data.raw``, or the text itself where it was raw."""
    splits = {split: part for split, part in parts.items() if split != "train"}
    raw = {split: [target for _, target in part.pairs] for split, part in splits.items() if data.tokenize == "moses"}
    for split, path in data.raw.items():
        key = f"data.raw.{split}"
        lines = files.read_lines(files.existing_file(path, key), key)
        if len(lines) != splits[split].total:
            sizes = f"has {len(lines)} lines and the split {splits[split].total}"
            raise RecipeError(f"{key} {sizes}; they must be the same")
        raw[split] = [lines[number] for number in splits[split].numbers]
    return raw
