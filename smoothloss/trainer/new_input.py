"""New input for trained models: lines of text as they come in, outputs as they are found."""

from __future__ import annotations

import gzip
import json
import select
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smoothloss._files import write_atomically
from smoothloss.trainer.decoding import Hypothesis
from smoothloss.trainer.errors import RecipeError

MAX_BYTES = 2**20  # of a line: more is no sentence
_CHUNK = 2**16
_MARK = b"\xef\xbb\xbf"  # a byte-order mark in UTF-8

Item = tuple[int | str, Any]  # number or name of an input, and the input; an empty one has no output


@contextmanager
def open_lines(path: str | None) -> Iterator[tuple[Any, str]]:
    """A stream of bytes, and what an error calls it: a file (``.gz`` or plain), or standard input for None and ``-``.

    Raises:
        RecipeError: when there is no such file, or standard input is closed.
    """
    if path is None or path == "-":
        if sys.stdin is None:
            raise RecipeError("standard input is closed: name a file, or give text in a pipe")
        yield sys.stdin.buffer, "standard input"
        return
    with ExitStack() as opened:
        try:
            file = opened.enter_context(Path(path).open("rb"))
        except OSError as error:
            raise RecipeError(f"cannot read {path}: {error.strerror}") from None
        yield opened.enter_context(gzip.open(file)) if path.endswith(".gz") else file, path


def line_batches(stream: Any, name: str, size: int, *, eager: bool) -> Iterator[list[tuple[int, str]]]:
    """The lines of a stream with their numbers from 1, up to ``size`` at a time, without line feeds.

    Args:
        stream: Bytes, with ``read1``.
        name: What an error calls it.
        size: Lines of a batch.
        eager: Give the lines that are there as soon as more would have to be waited for.

    Raises:
        RecipeError: after all lines before it, at a line that is not UTF-8 or longer than a sentence can be.
    """
    waiting: list[tuple[int, str]] = []
    try:
        for numbered in _lines(stream, name):
            waiting += numbered
            while len(waiting) >= size:
                yield waiting[:size]
                del waiting[:size]
            if waiting and eager and not _has_more(stream):
                yield waiting
                waiting = []
    except RecipeError:
        if waiting:
            yield waiting
        raise
    if waiting:
        yield waiting


def _lines(stream: Any, name: str) -> Iterator[list[tuple[int, str]]]:
    """The lines that each read completes."""
    number, rest, begun = 1, b"", False
    while chunk := _read(stream, name):
        data = rest + chunk
        if not begun:
            if len(data) < len(_MARK) and _MARK.startswith(data):
                rest = data
                continue
            data, begun = data.removeprefix(_MARK), True
        *whole, rest = data.split(b"\n")
        if len(rest) > MAX_BYTES:
            whole, rest = [*whole, rest], b""
        yield from _decoded(whole, number, name)
        number += len(whole)
    if rest:
        yield from _decoded([rest if begun else rest.removeprefix(_MARK)], number, name)


def _read(stream: Any, name: str) -> bytes:
    try:
        data: bytes = stream.read1(_CHUNK)
    except (EOFError, OSError, zlib.error) as error:
        raise RecipeError(f"cannot read {name}: {error}") from None
    return data


def _decoded(lines: Sequence[bytes], first: int, name: str) -> Iterator[list[tuple[int, str]]]:
    good: list[tuple[int, str]] = []
    for number, line in enumerate(lines, first):
        problem = f"is longer than {MAX_BYTES} bytes" if len(line) > MAX_BYTES else ""
        try:
            text = line.removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            problem = problem or f"is not UTF-8: byte {line[error.start]:#04x} at position {error.start + 1}"
        if problem:
            yield good
            raise RecipeError(f"line {number} of {name} {problem}")
        good.append((number, text))
    yield good


def _has_more(stream: Any) -> bool:
    """Whether a read would give something at once. What is no pipe or terminal always has more, or has ended."""
    try:
        return bool(select.select([stream], [], [], 0)[0])
    except (OSError, ValueError, TypeError):  # no file descriptor
        return True


def find_outputs(
    batches: Iterable[Sequence[Item]],
    tensors: Callable[[Sequence[Any]], Sequence[Any]],
    search: Callable[[Sequence[Any], int], list[list[Hypothesis]]],
) -> Iterator[list[tuple[int | str, list[Hypothesis]]]]:
    """For each batch the hypotheses of every input, in order; an empty input has an empty output."""
    for batch in batches:
        inputs = [content for _, content in batch if content]
        found = iter(search(tensors(inputs), len(inputs)) if inputs else [])
        yield [(name, next(found) if content else [Hypothesis([], 0.0)]) for name, content in batch]


@dataclass
class Form:
    """How outputs are written.

    Args:
        text: What makes a line of tokens.
        names: A column with the input's number or name.
        scores: A column with the score.
        json: A JSON object a line instead.
        several: A line for each hypothesis, not only the best.
    """

    text: Callable[[Sequence[int]], str]
    names: bool = False
    scores: bool = False
    json: bool = False
    several: bool = False

    def lines(self, name: int | str, hypotheses: Sequence[Hypothesis]) -> Iterator[str]:
        """The lines of an input, one at least: a model that gives no finite number has no hypothesis."""
        if self.json:
            found = [{"text": self.text(each.tokens), "score": each.score} for each in hypotheses]
            yield json.dumps({"input": name, "hypotheses": found}, ensure_ascii=False)
            return
        hypotheses = hypotheses or [Hypothesis([], float("-inf"))]
        for each in hypotheses if self.several else hypotheses[:1]:
            columns = [" ".join(str(name).split()) if isinstance(name, str) else str(name)] if self.names else []
            columns += [f"{each.score:.6f}"] if self.scores else []
            yield "\t".join([*columns, self.text(each.tokens)])


@dataclass
class Sink:
    """Takes lines: standard output, batch by batch, or a file, which is written whole at the end.

    Args:
        path: The file; None: standard output.

    Raises:
        RecipeError: when there is no folder for the file.
    """

    path: str | None = None
    _kept: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path is not None and not Path(self.path).parent.is_dir():
            raise RecipeError(f"--out: no such folder: {Path(self.path).parent}")
        if self.path is not None and Path(self.path).is_dir():
            raise RecipeError(f"--out: {self.path} is a folder")
        if self.path is None and sys.stdout is None:
            raise OSError("standard output is closed")

    def write(self, lines: Sequence[str]) -> None:
        """Write lines, in UTF-8 whatever the locale."""
        content = "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace")
        if self.path is not None:
            self._kept.append(content)
        else:
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()

    def close(self) -> None:
        """Write the file."""
        if self.path is not None:
            write_atomically(self.path, b"".join(self._kept))
