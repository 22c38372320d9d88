"""Word vectors in text: a token and its numbers on each line (GloVe), perhaps below a header (word2vec, fastText)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from typing import BinaryIO, NamedTuple

import numpy as np

from smoothloss._content import byte_lines
from smoothloss.embeddings.vectors import Collector

MAX_DIM = 1_000_000
_SAMPLE = 100  # lines that tell how many numbers a line has
_HEADER = re.compile(r"([0-9]{1,18})[ \t]+([0-9]{1,18})")
_NUMBER = re.compile(r"[-+]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[-+]?[0-9]+)?|nan|inf(?:inity)?)", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r" [-+]?[0-9]+,[0-9]+$")
Line = tuple[int, str]


class Header(NamedTuple):
    """What a first line of two whole numbers says."""

    words: int
    dim: int


def parse_header(line: str) -> Header | None:
    """The header that a line is, if it is one.

    Raises:
        ValueError: when it says that there is nothing, or too much.
    """
    found = _HEADER.fullmatch(line.strip(" \t\r"))
    if found is None:
        return None
    header = Header(int(found[1]), int(found[2]))
    if header.words < 1 or not 1 <= header.dim <= MAX_DIM:
        raise ValueError(
            f"the header says {header.words} words of {header.dim} numbers, "
            f"expected a word at least and 1 to {MAX_DIM} numbers"
        )
    return header


def count_numbers(line: str) -> int:
    """How many of a line's last fields are numbers, its first field aside."""
    count = 0
    for part in reversed(line.replace("\t", " ").split(" ")[1:]):
        if not part:  # two spaces
            continue
        if _NUMBER.fullmatch(part) is None:
            break
        count += 1
    return count


def read_text(file: BinaryIO, collector: Collector) -> None:
    """Gather the vectors of text.

    The last d fields of a line are numbers, separated by spaces or tabs; what stands before them is the token, which
    may contain spaces and end in a number (``route 66``). d is what the header says, or else what most of the first
    lines have.

    Raises:
        ValueError: when it is empty, a line has too few numbers, or a header does not fit.
    """
    lines = _lines(file)
    sample = list(islice(lines, _SAMPLE))
    if not sample:
        raise ValueError("it is empty, expected word vectors")
    header = _header(sample)
    body = sample[1:] if header else sample
    dim = header.dim if header else _usual_dim(body)
    seen = 0
    for number, line in chain(body, lines):
        seen += 1
        word, values = _split(line, dim, number)
        if collector.wants(word):
            try:
                vector = np.array([_number(value) for value in values])
                collector.add(word, vector)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    if header is not None and seen != header.words:
        raise ValueError(f"the header says {header.words} words, the file has {seen}: is it cut off?")
    collector.dim = dim


def _lines(file: BinaryIO) -> Iterator[Line]:
    """Numbered lines with something in them; a token may hold any other kind of space."""
    for number, content in enumerate(byte_lines(file), start=1):
        # Some published files hold tokens cut in the middle of a character.
        line = content.decode("utf-8", errors="replace").rstrip(" \t\r")
        if "\0" in line:
            raise ValueError(f"line {number}: got a NUL byte, expected text")
        if line:
            yield number, line


def _header(sample: list[Line]) -> Header | None:
    """The header, if the first line is one and not a whole number with a vector of one number.

    Raises:
        ValueError: when it says fewer numbers than all of the lines have.
    """
    header = parse_header(sample[0][1])
    rest = [line for _, line in sample[1:]]
    if header is None or not rest:
        return header
    if header.dim > 1 and all(_is_pair(line) for line in rest):
        return None
    least = min(count_numbers(line) for line in rest)
    if len(rest) > 1 and least > header.dim:
        raise ValueError(f"the header says {header.dim} numbers for a word, the lines have {least}")
    return header


def _is_pair(line: str) -> bool:
    fields = line.replace("\t", " ").split(" ")
    return len(fields) == 2 and all(_NUMBER.fullmatch(field) for field in fields)


def _usual_dim(lines: list[Line]) -> int:
    """How many numbers most lines have, or fewer where a good part has fewer: the others' tokens end in numbers."""
    counts = Counter(count_numbers(line) for _, line in lines)
    often = [dim for dim, count in counts.items() if count >= max(2, len(lines) / 4)]
    dim = min(often) if often else max(counts, key=lambda dim: (counts[dim], dim))
    number, line = lines[0]
    if dim == 0:
        raise ValueError(f"line {number}: got {line[:60]!r}, expected a token and its numbers")
    if all(_DECIMAL_COMMA.search(line.replace("\t", " ").rsplit(" ", dim)[0]) for _, line in lines):
        raise ValueError(f"line {number}: got {line[:60]!r}, expected numbers with decimal points, not commas")
    return dim


def _split(line: str, dim: int, number: int) -> tuple[str, list[str]]:
    """A line's token and its numbers, of which the first is looked at: a token cut short shows there."""
    if "\t" in line:
        line = line.replace("\t", " ")
    word, *values = line.rsplit(" ", dim)
    if "" in values:
        word, *values = re.sub(" +", " ", line).rsplit(" ", dim)
    if len(values) < dim or _NUMBER.fullmatch(values[0]) is None:
        got = count_numbers(line)
        raise ValueError(f"line {number}: got {got} numbers after {line.split(' ')[0]!r}, expected {dim}")
    return word.strip(" ") or word, values


def _number(value: str) -> float:
    if _NUMBER.fullmatch(value) is None:
        raise ValueError(f"could not convert {value[:60]!r} to a number")
    return float(value)
