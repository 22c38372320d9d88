"""Paths that recipes name, and text and JSON files, plain or ``.gz``, with errors of one line."""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from pathlib import Path
from typing import Any

from smoothloss.trainer.errors import RecipeError


def expand_path(path: str) -> Path:
    """``path`` with ``~`` and environment variables (``${SMOOTHLOSS_DATA}``) filled in.

    Raises:
        RecipeError: when a variable is not set.
    """
    expanded = os.path.expandvars(path)
    missing = re.search(r"\$\{?(\w+)\}?", expanded)
    if missing:
        raise RecipeError(f"the environment variable {missing[1]} of the path {path!r} is not set")
    return Path(expanded).expanduser()


def existing_file(path: str, key: str) -> Path:
    """The expanded ``path``, which must be a file; ``key`` is the recipe key that the error names.

    Raises:
        RecipeError: when there is no such file.
    """
    expanded = expand_path(path)
    if not expanded.is_file():
        raise RecipeError(f"{key}: no such file: {expanded}")
    return expanded


def read_text(path: Path, key: str) -> str:
    """The UTF-8 content of a file; ``key`` is the recipe key or the argument that an error names.

    Raises:
        RecipeError: when it cannot be read, decompressed or decoded.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return content.decode("utf-8")
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise RecipeError(f"{key}: cannot read {path}: {error}") from None


def read_lines(path: Path, key: str) -> list[str]:
    """The lines of a file, which end with a line feed and nothing else.

    Raises:
        RecipeError: as :func:`read_text`.
    """
    return read_text(path, key).removesuffix("\n").split("\n")


def read_json(path: str | None, key: str) -> Any:
    """The content of a JSON file.

    Raises:
        RecipeError: as :func:`read_text`, when it is not named, is missing, and when it is no JSON.
    """
    if path is None:
        raise RecipeError(f"{key} is needed")
    file = existing_file(path, key)
    try:
        return json.loads(read_text(file, key))
    except ValueError as error:
        raise error if isinstance(error, RecipeError) else RecipeError(f"{key}: cannot read {file}: {error}") from None
