"""Parallel text on disk: two files of lines or one of tab-separated pairs, and the parts it is split into."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from smoothloss.trainer import files
from smoothloss.trainer.errors import RecipeError
from smoothloss.trainer.tasks.translation.data import TranslationData
from smoothloss.trainer.tasks.translation.moses import moses_tokenizer

Sentence = list[str]
Pairs = list[tuple[str, str]]  # source and target lines


@dataclass(frozen=True)
class ParallelText:
    """Source and target sentences as words, in the same order."""

    source: list[Sentence]
    target: list[Sentence]

    def __len__(self) -> int:
        return len(self.source)

    def short_pairs(self, max_length: int) -> ParallelText:
        """The pairs with at least one word on either side and at most so many."""
        pairs = [
            (source, target)
            for source, target in zip(self.source, self.target, strict=True)
            if 0 < len(source) <= max_length and 0 < len(target) <= max_length
        ]
        return ParallelText([source for source, _ in pairs], [target for _, target in pairs])


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
        RecipeError: when a file is missing or broken, a part is named twice or has another number of raw lines, or a
            package is missing.
    """
    splits = {"validation": data.validation} if data.validation is not None else {}
    splits |= data.test
    _check_names(data, list(splits))
    lines = {
        split: read_pairs(path, data, f"data.{'' if split == 'validation' else 'test.'}{split}")
        for split, path in splits.items()
    }
    train = read_pairs(data.train, data, "data.train")
    lines |= hold_out(train, data) if data.held_out else {"train": train}
    words = [words_of(language, data) for language in (data.source, data.target)]
    parts = {
        part: ParallelText([words[0](source) for source, _ in pairs], [words[1](target) for _, target in pairs])
        for part, pairs in lines.items()
    }
    return Corpus(parts, _raw_lines(data, lines))


def _check_names(data: TranslationData, splits: Sequence[str]) -> None:
    """Refuse parts of one name, and data without a validation part."""
    for key, names in (("test", data.test), ("held_out", data.held_out)):
        if "train" in names:
            raise RecipeError(f"data.{key}: train is the name of the training part")
    if "validation" in data.test:
        raise RecipeError("data.test: validation is the name of the validation part, data.validation")
    for twice in set(splits) & set(data.held_out):
        raise RecipeError(f"data.held_out: {twice} has files of its own")
    if "validation" not in {*splits, *data.held_out}:
        raise RecipeError("data.validation is needed, or a part of this name in data.held_out")


def read_pairs(path: str, data: TranslationData, key: str) -> Pairs:
    """The lines of one part as they are in its files.

    Args:
        path: A prefix, or with the format ``tsv`` a file.
        data: The recipe's ``data:`` section.
        key: The recipe key that an error names.

    Raises:
        RecipeError: when a file is missing, is not UTF-8, or the sides do not fit.
    """
    if data.format == "tsv":
        return _read_columns(path, data, key)
    source, target = _read_lines(path, data.source, key), _read_lines(path, data.target, key)
    if len(source) != len(target):
        sizes = f"{len(source)} lines of {data.source} and {len(target)} of {data.target}"
        raise RecipeError(f"{key}: {Path(path).name} has {sizes}; they must be the same")
    return list(zip(source, target, strict=True))


def _read_lines(prefix: str, language: str, key: str) -> list[str]:
    """The lines of ``<prefix>.<language>``, or of the same with ``.gz``."""
    try:
        path = files.existing_file(f"{prefix}.{language}", key)
    except RecipeError as missing:
        try:
            path = files.existing_file(f"{prefix}.{language}.gz", key)
        except RecipeError:
            raise missing from None
    return files.read_lines(path, key)


def _read_columns(path: str, data: TranslationData, key: str) -> Pairs:
    columns = []
    for side, language in (("source", data.source), ("target", data.target)):
        if language not in data.columns:
            raise RecipeError(f"data.{side} must be one of data.columns, {', '.join(data.columns)}, got {language!r}")
        columns.append(data.columns.index(language))
    rows = [line.split("\t") for line in files.read_lines(files.existing_file(path, key), key)]
    for number, row in enumerate(rows, 1):
        if len(row) <= max(columns):
            expected = f"{max(columns) + 1} or more, separated by tabs"
            raise RecipeError(f"{key}: {Path(path).name}: line {number} has {len(row)} columns, expected {expected}")
    return [(row[columns[0]], row[columns[1]]) for row in rows]


def hold_out(pairs: Pairs, data: TranslationData) -> dict[str, Pairs]:
    """``train`` and the parts of ``data.held_out``, drawn without replacement from the pairs.

    Pairs with an empty side and, from the second on, those of one source sentence (in lower case where the text is
    lowered) are left out before. ``train`` keeps its order; what is drawn depends on the file and ``data.split_seed``.

    Raises:
        RecipeError: when a size is not positive, no whole number from 1 on, or nothing is left to train on.
    """
    first: dict[str, tuple[str, str]] = {}
    for source, target in pairs:
        if source.strip() and target.strip():
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


def _raw_lines(data: TranslationData, lines: dict[str, Pairs]) -> dict[str, list[str]]:
    """The raw target text of the splits: from ``data.raw``, or the text itself where it was raw."""
    splits = {split: pairs for split, pairs in lines.items() if split != "train"}
    for split in data.raw:
        if split not in splits:
            raise RecipeError(f"data.raw: {split} must be one of {', '.join(splits)}")
    raw = {split: [target for _, target in pairs] for split, pairs in splits.items() if data.tokenize == "moses"}
    for split, path in data.raw.items():
        key = f"data.raw.{split}"
        raw[split] = files.read_lines(files.existing_file(path, key), key)
        if len(raw[split]) != len(splits[split]):
            sizes = f"has {len(raw[split])} lines and the split {len(splits[split])}"
            raise RecipeError(f"{key} {sizes}; they must be the same")
    return raw
