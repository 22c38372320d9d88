"""Strategies that the tests of every reader share: names of files, and the ways of writing the same text."""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

MARK = "\ufeff"
LINE_ENDS = ("\n", "\r\n", "\r")


def names(suffix: str = "") -> st.SearchStrategy[str]:
    """File names that a file system takes: spaces, leading dashes, any script, up to 255 bytes."""
    odd = st.sampled_from(
        ["-", "--out", " a b ", "größe 2", "名前", "$HOME", "~", "a.b.c", "x" * 255, "é" * 127, "-x.gz"]
    )
    drawn = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=40)
    fitting = (odd | drawn).map(lambda name: _cut(name, 255 - len(suffix.encode())) + suffix)
    return fitting.filter(lambda name: name not in (".", "..") and name.endswith(".gz") == suffix.endswith(".gz"))


def _cut(name: str, size: int) -> str:
    return name.encode()[:size].decode(errors="ignore")


def lines(empty: bool = True) -> st.SearchStrategy[list[str]]:
    """Lines of text with everything that is no line end: form feeds, U+2028, half-wide spaces, non-characters."""
    odd = st.sampled_from(
        ["\u2028", "\x85", "\x0c\x1c", "a\u00a0b", "\ufdd0\uffff", "e\u0301", "\u00e9", f"a{MARK}", "BZh9"]
    )
    drawn = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), max_size=20)
    line = (odd | drawn).filter(lambda text: not text.startswith(MARK) and (empty or bool(text.strip())))
    return st.lists(line, min_size=1, max_size=8)


@dataclass(frozen=True)
class Writing:
    """How a text is written: with which ends, a mark of UTF-8, an end after the last line, and gzip."""

    end: str = "\n"
    mark: bool = False
    last_end: bool = True
    packed: bool = False

    def encode(self, content: list[str]) -> bytes:
        """The bytes of a file with these lines."""
        last = self.end if self.last_end or not content[-1] else ""
        text = f"{MARK if self.mark else ''}{self.end.join(content)}{last}".encode()
        # Two members, as `cat a.gz b.gz` makes them.
        return gzip.compress(text[: len(text) // 2]) + gzip.compress(text[len(text) // 2 :]) if self.packed else text

    def write(self, path: Path, content: list[str]) -> Path:
        """Write the lines to a file."""
        path.write_bytes(self.encode(content))
        return path


def writings() -> st.SearchStrategy[Writing]:
    """Every way of writing a text."""
    return st.builds(Writing, st.sampled_from(LINE_ENDS), st.booleans(), st.booleans(), st.booleans())


FUZZ_SECONDS = float(os.environ.get("SMOOTHLOSS_FUZZ_SECONDS", "0"))
