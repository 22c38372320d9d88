"""New input for trained models: lines of text as they come in, outputs as they are found."""

from __future__ import annotations

import json
import select
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smoothloss._content import without_mark
from smoothloss._files import write_out
from smoothloss_trainer.decoding import Hypothesis
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.files import STDIN, Input, decode_line, is_stream, iterate_lines

MAX_LINE = 2**20  # bytes of a line in a pipe: more is no sentence
_CHUNK = 2**16

Item = tuple[int | str, Any]  # number or name of an input, and the input; an empty one has no output


def line_batches(source: Input, size: int, *, eager: bool) -> Iterator[list[tuple[int, str]]]:
    """The lines of a file or stream with their numbers from 1, up to ``size`` at a time.

    Args:
        source: A file, gzipped or plain, or ``-``, standard input.
        size: Lines of a batch.
        eager: Of a pipe or terminal, give the lines that are there as soon as more would have to be waited for.

    Raises:
        RecipeError: after all lines before it, at a line that is not UTF-8 text.
    """
    waiting: list[tuple[int, str]] = []
    number = 0
    try:
        for lines, is_last in _arriving(source) if is_stream(source) else _lines_of(source):
            waiting += enumerate(lines, number + 1)
            number += len(lines)
            while len(waiting) >= size:
                yield waiting[:size]
                del waiting[:size]
            if waiting and eager and is_last:
                yield waiting
                waiting = []
    except RecipeError:
        if waiting:
            yield waiting
        raise
    if waiting:
        yield waiting


def _lines_of(source: Input) -> Iterator[tuple[list[str], bool]]:
    for line in iterate_lines(source, "FILE"):
        yield [line], False


def _arriving(source: Input) -> Iterator[tuple[list[str], bool]]:
    """The lines that each read of a stream completes, and whether nothing more is there yet."""
    with ExitStack() as opened:
        stream = opened.enter_context(_open(source))
        yield from _complete_lines(stream, "standard input" if source == STDIN else str(source))


@contextmanager
def _open(source: Input) -> Iterator[Any]:
    if source != STDIN:
        with Path(source).open("rb") as stream:
            yield stream
    elif sys.stdin is None:
        raise RecipeError("standard input is closed: name a file, or give text in a pipe")
    else:
        yield sys.stdin.buffer


def _complete_lines(stream: Any, name: str) -> Iterator[tuple[list[str], bool]]:
    number, rest, begun = 1, b"", False
    while chunk := stream.read1(_CHUNK):
        rest += chunk
        if not begun:
            if len(rest) < 4 and b"\n" not in rest:  # as long as a mark can be
                continue
            rest, begun = _unmarked(rest, name), True
        *whole, rest = rest.split(b"\n")
        if len(rest) > MAX_LINE:
            raise RecipeError(f"line {number + len(whole)} of {name} is longer than {MAX_LINE} bytes, expected text")
        for lines in _decoded(whole, number, name):
            yield lines, not _has_more(stream)
        number += len(whole)
    rest = rest if begun else _unmarked(rest, name)
    for lines in _decoded([rest] if rest else [], number, name):
        yield lines, True


def _unmarked(head: bytes, name: str) -> bytes:
    try:
        return without_mark(head)
    except ValueError as error:
        raise RecipeError(f"cannot read {name}: {error}") from None


def _decoded(lines: Sequence[bytes], first: int, name: str) -> Iterator[list[str]]:
    """Lines as text; of those before one that is none, and then the error."""
    good: list[str] = []
    for number, line in enumerate(lines, first):
        try:
            good.append(decode_line(line.removesuffix(b"\r"), f"line {number}: "))
        except ValueError as error:
            yield good
            raise RecipeError(f"cannot read {name}: {error}") from None
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
        if self.path == STDIN:  # the sign of standard output too
            self.path = None
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
            write_out(self.path, b"".join(self._kept))
