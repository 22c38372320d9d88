"""The recipes and tables that come with the package, by name: ``multi30k/mle``, ``tables/multi30k``."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import shorten

FOLDER = Path(__file__).parent / "recipes"


def names() -> list[str]:
    """The names of all of them, in alphabetical order."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))


def find(path: str | Path) -> Path:
    """The file at ``path``, or where there is none the shipped one of this name; ``path`` itself where neither is."""
    path = Path(path)
    if path.exists() or path.is_absolute() or ".." in path.parts:
        return path
    shipped = FOLDER / path.with_suffix(".yaml") if path.suffix in ("", ".yaml") else FOLDER / path
    return shipped if shipped.is_file() else path


def summary(name: str) -> str:
    """What the comment that a shipped file begins with says first, in 100 characters at most."""
    comment: list[str] = []
    for line in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    return shorten(re.split(r"[.:;] |\.$", " ".join(comment), maxsplit=1)[0], 100, placeholder=" ...")
