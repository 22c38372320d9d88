"""Paths that recipes and commands name, and text and JSON files, plain or gzipped, with errors of one line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from smoothloss._content import byte_lines, damage, open_content, unpacked, without_mark
from smoothloss_trainer.documents import parse_json
from smoothloss_trainer.errors import RecipeError

STDIN: Literal["-"] = "-"
Input = Path | Literal["-"]  # "-" is standard input; Path("-") is a file of this name

_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def expand_path(path: str) -> Path:
    """``path`` with ``~`` and environment variables (``${SMOOTHLOSS_DATA}``) filled in, unless it exists as it stands.

    Raises:
        RecipeError: when a variable is not set.
    """
    if _exists(path):
        return Path(path)
    expanded = os.path.expandvars(path)
    missing = re.search(r"\$\{?(\w+)\}?", expanded)
    if missing:
        raise RecipeError(f"the environment variable {missing[1]} of the path {path!r} is not set")
    return Path(expanded).expanduser()


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long, a NUL
        return False


def existing_file(path: str, key: str) -> Path:
    """The expanded ``path``, which must be a regular file; ``key`` is the recipe key that the error names.

    Raises:
        RecipeError: when there is no such file.
    """
    expanded = expand_path(path)
    try:
        if expanded.is_file():
            return expanded
        kind = _kind(expanded)
    except OSError as error:
        raise RecipeError(f"{key}: cannot read {expanded}: {error.strerror}") from None
    raise RecipeError(f"{key}: {expanded} is {kind}, expected a file" if kind else f"{key}: no such file: {expanded}")


def existing_input(path: str, key: str) -> Input:
    """As :func:`existing_file`, but it may also be a pipe (``<(...)``), or ``-``, which is standard input.

    Raises:
        RecipeError: when there is no such file.
    """
    if path == STDIN:
        return STDIN
    expanded = expand_path(path)
    return expanded if _exists(str(expanded)) and not expanded.is_dir() else existing_file(path, key)


def is_stream(source: Input) -> bool:
    """Whether it can be read only once."""
    return source == STDIN or not Path(source).is_file()


def _kind(path: Path) -> str | None:
    """What it is instead of a regular file; None: nothing."""
    try:
        if path.is_dir():
            return "a folder"
        return "no regular file" if path.exists() else None
    except ValueError:  # a NUL
        return None


@contextmanager
def _reading(source: Input, key: str) -> Iterator[None]:
    try:
        yield
    except RecipeError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise RecipeError(f"{key}: cannot read {_name(source)}: {reason}") from None


def _name(source: Input) -> str:
    return "standard input" if source == STDIN else str(source)


@contextmanager
def _content(source: Input) -> Iterator[BinaryIO]:
    if isinstance(source, Path):
        with open_content(source) as file:
            yield file
    else:
        with damage():
            yield unpacked(sys.stdin.buffer, STDIN)


def decode_line(content: bytes, place: str) -> str:
    """The text of bytes; ``place`` opens the words of an error.

    Raises:
        ValueError: when they are no UTF-8, or there is a NUL among them.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise ValueError(f"{place}byte {error.start + 1} (0x{byte:02x}) is no UTF-8: {error.reason}") from None
    if "\0" in text:
        raise ValueError(f"{place}byte {content.index(0) + 1} is NUL, expected UTF-8 text")
    return text


def read_text(source: Input, key: str) -> str:
    """The content of a file, in UTF-8 with or without its mark; ``key`` is the recipe key or argument of an error.

    Raises:
        RecipeError: when it cannot be read, unpacked or decoded.
    """
    with _reading(source, key), _content(source) as file:
        return decode_line(without_mark(file.read()), "")


def iterate_lines(source: Input, key: str, broken: dict[int, str] | None = None) -> Iterator[str]:
    """The lines of a file, one after the other, as :func:`smoothloss._content.byte_lines` cuts them.

    Args:
        source: The file.
        key: As for :func:`read_text`.
        broken: Takes what is wrong with lines that cannot be decoded, by number from 1; they come as empty ones then.

    Raises:
        RecipeError: as :func:`read_text`, naming the line.
    """
    with _reading(source, key), _content(source) as file:
        for number, line in enumerate(byte_lines(file), 1):
            try:
                text = decode_line(line, f"line {number}: " if broken is None else "")
            except ValueError as error:
                if broken is None:
                    raise
                broken[number], text = str(error), ""
            yield text


def read_lines(source: Input, key: str, broken: dict[int, str] | None = None) -> list[str]:
    """All of :func:`iterate_lines`. An empty file has none, and the last line needs no end.

    Raises:
        RecipeError: as :func:`iterate_lines`.
    """
    return list(iterate_lines(source, key, broken))


def read_json(path: str | None, key: str) -> Any:
    """The content of a JSON file.

    Raises:
        RecipeError: as :func:`parse_text`, when it is not named, and when it is missing.
    """
    if path is None:
        raise RecipeError(f"{key} is needed")
    file = existing_file(path, key)
    return parse_text(read_text(file, key), file, key)


def parse_text(text: str, source: Input, key: str) -> Any:
    """What JSON text says.

    Raises:
        RecipeError: naming ``key`` and the file, as :func:`.parse_json`, and when a string in it is half a character: a
            lone surrogate (``"\\ud83d"``), which no UTF-8 file can hold, so that writing it would fail later.
    """
    what = f"{key}: cannot read {_name(source)}"
    content = parse_json(text, what, constants=True)
    if _ESCAPED_SURROGATE.search(text):
        place = _surrogate(content)
        if place is not None:
            raise RecipeError(f"{what}: {place or 'it'} has half a character, a lone surrogate")
    return content


def _surrogate(content: Any) -> str | None:
    """Where the first string with a lone surrogate is, such as ``images[3].filename``; None: nowhere."""
    waiting: list[tuple[str, Any]] = [("", content)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, str):
            if _SURROGATE.search(value):
                return place
        elif isinstance(value, list):
            waiting += [(f"{place}[{number}]", entry) for number, entry in reversed(list(enumerate(value)))]
        elif isinstance(value, dict):
            for name in value:
                if _SURROGATE.search(name):
                    return f"the key {name!a} of {place or 'it'}"
            waiting += [(f"{place}.{name}".removeprefix("."), entry) for name, entry in reversed(value.items())]
    return None
