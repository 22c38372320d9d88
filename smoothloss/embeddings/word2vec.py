"""word2vec's binary format: a header line, then each word, a space and its numbers in float32."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from smoothloss.embeddings.text import Header, count_numbers
from smoothloss.embeddings.vectors import Collector

_CHUNK = 1 << 20
_MAX_WORD = 1 << 16
_ABSURD = 1e9
_CONTROL = bytes(sorted(set(range(32)) - set(b"\t\n\v\f\r")))


def is_binary(body: bytes, dim: int) -> bool:
    """Whether what follows a header is binary: no d numbers in text on the first line, and bytes that no text has.

    Args:
        body: Some bytes after the header.
        dim: d of the header.
    """
    first = body.lstrip(b"\n").split(b"\n", 1)[0].decode("utf-8", errors="replace")
    if count_numbers(first.rstrip(" \t\r")) >= dim:
        return False
    if body.translate(None, _CONTROL) != body:
        return True
    try:
        body[:-3].decode("utf-8")  # less what may be cut in the middle of a character
    except UnicodeDecodeError as error:
        return error.reason != "unexpected end of data"
    return False


def read_binary(file: BinaryIO, header: Header, collector: Collector) -> None:
    r"""Gather the vectors of a file from behind its header; a ``\n`` may stand before every word but the first.

    A word ends at its first space: the format has no others. What lies behind a word that has one all the same is not
    where it should be, which is seen by the ``\n`` that is missing there, or by absurd numbers.

    Source: Mikolov et al. 2013, "Distributed representations of words and phrases and their compositionality".

    Raises:
        ValueError: when the file ends before its last word, does not end after it, or has a word with a space.
    """
    size, data, at = 4 * header.dim, b"", 0
    are_lines = False
    for number in range(1, header.words + 1):
        while (end := data.find(b" ", at)) < 0 or len(data) - end - 1 < size:
            more = file.read(max(_CHUNK, size))
            if not more or (end < 0 and len(data) - at > _MAX_WORD):
                raise ValueError(f"the header says {header.words} words, word {number} is cut off or none")
            data, at = data[at:] + more, 0
        is_line = data[at : at + 1] == b"\n"
        if number == 2:
            are_lines = is_line
        elif number > 2 and is_line != are_lines:
            raise ValueError(f"word {number} is not where it should be: the format has no words with spaces")
        word = data[at:end].lstrip(b"\n").decode("utf-8", errors="replace")
        if collector.wants(word):
            vector = np.frombuffer(data, "<f4", header.dim, end + 1)
            if np.abs(vector).max(initial=0.0) > _ABSURD:
                raise ValueError(f"word {number} has numbers beyond {_ABSURD:g}: the format has no words with spaces")
            try:
                collector.add(word, vector)
            except ValueError as error:
                raise ValueError(f"word {number}: {error}") from None
        at = end + 1 + size
    if (data[at:] + file.read(_CHUNK)).strip(b"\n"):
        raise ValueError(f"the header says {header.words} words, and something follows them")
    collector.dim = header.dim
