"""Text and JSON files, plain or ``.gz``, with errors of one line."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from smoothloss.trainer.config import RecipeError, existing_file


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
        raise RecipeError(f"{key} is needed for this data.format")
    file = existing_file(path, key)
    try:
        return json.loads(read_text(file, key))
    except ValueError as error:
        raise error if isinstance(error, RecipeError) else RecipeError(f"{key}: cannot read {file}: {error}") from None
