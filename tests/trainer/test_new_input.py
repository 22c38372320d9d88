from __future__ import annotations

import gzip
import io
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothloss_trainer.decoding import Hypothesis
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.files import STDIN
from smoothloss_trainer.new_input import Form, Sink, find_outputs, line_batches

TEXT = st.text(st.characters(exclude_characters="\0\n\r", exclude_categories=["Cs"]), max_size=8)


def give(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Make bytes the standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@given(
    lines=st.lists(TEXT),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
    last=st.booleans(),
    size=st.integers(1, 5),
    eager=st.booleans(),
)
@settings(deadline=None)
@pytest.mark.parametrize("kind", ["pipe", "file", "gzip"])
def test_lines_come_whole_numbered_and_in_order(
    kind: str, tmp_path_factory: pytest.TempPathFactory, lines: list[str], end: str, mark: bool, last: bool, size: int,
    eager: bool,
) -> None:  # fmt: skip
    last = last or (bool(lines) and not lines[-1])  # an empty last line is none without its end
    if not mark and lines and lines[0].startswith("\ufeff"):
        mark = True
    content = (end.join(lines) + (end if lines and last else "")).encode()
    content = b"\xef\xbb\xbf" + content if mark else content
    with pytest.MonkeyPatch.context() as patch:
        if kind == "pipe":
            give(patch, content)
            source: Any = STDIN
        else:
            source = tmp_path_factory.mktemp("lines") / "text"
            source.write_bytes(gzip.compress(content) if kind == "gzip" else content)
        batches = list(line_batches(source, size, eager=eager))
    assert all(0 < len(batch) <= size for batch in batches)
    assert [line for batch in batches for line in batch] == list(enumerate(lines, 1))


@pytest.mark.parametrize(
    ("content", "before", "message"),
    [
        (b"a\nb\n\xffc\nd\n", ["a", "b"], "line 3: byte 1 (0xff) is no UTF-8"),
        (b"a\n\xc3", ["a"], "line 2: byte 1 (0xc3) is no UTF-8"),
        (b"a\nb\0c\n", ["a"], "line 2: byte 2 is NUL, expected UTF-8 text"),
        ("ein Mann".encode("utf-16"), [], "it is UTF-16 text, expected UTF-8"),
        (b"\xff", [], "line 1: byte 1 (0xff) is no UTF-8"),
    ],
)
@pytest.mark.parametrize("piped", [True, False])
def test_what_comes_before_a_broken_line_is_given_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piped: bool, content: bytes, before: list[str], message: str
) -> None:
    give(monkeypatch, content)
    (tmp_path / "text").write_bytes(content)
    found: list[str] = []
    with pytest.raises(RecipeError) as caught:
        for batch in line_batches(STDIN if piped else tmp_path / "text", 10, eager=True):
            found += [line for _, line in batch]
    assert message in str(caught.value)
    assert found == before


def test_a_line_without_end_is_no_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, b"a\n" + b"x" * 2**21)
    with pytest.raises(RecipeError, match="line 2 of standard input is longer than 1048576 bytes"):
        list(line_batches(STDIN, 10, eager=True))


def test_standard_input_may_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(RecipeError, match="standard input is closed"):
        list(line_batches(STDIN, 10, eager=True))


@pytest.mark.parametrize("eager", [True, False])
def test_a_pipe_gives_the_lines_that_are_there(monkeypatch: pytest.MonkeyPatch, eager: bool) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(os.fdopen(reader, "rb")))
    came = threading.Event()

    def write() -> None:
        os.write(writer, b"a\nb\nc")
        came.wait(5 if eager else 0.2)
        os.write(writer, b"\nd\n")
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    batches = []
    for batch in line_batches(STDIN, 3, eager=eager):
        batches.append("".join(line for _, line in batch))
        came.set()
    thread.join()
    assert batches == (["ab", "cd"] if eager else ["abc", "d"])
    sys.stdin.close()


def test_a_pipe_that_ends_slowly_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(os.fdopen(reader, "rb")))

    def write() -> None:
        for byte in "\ufeffä\r\n\nö".encode():
            os.write(writer, bytes([byte]))
            time.sleep(0.005)
        os.close(writer)

    thread = threading.Thread(target=write)
    thread.start()
    assert [line for batch in line_batches(STDIN, 9, eager=True) for line in batch] == [(1, "ä"), (2, ""), (3, "ö")]
    thread.join()
    sys.stdin.close()


def test_empty_inputs_are_not_searched() -> None:
    def search(tensors: list[str], count: int) -> list[list[Hypothesis]]:
        assert len(tensors) == count and all(tensors)
        return [[Hypothesis([len(each)], -1.0)] for each in tensors]

    batches = [[(1, ""), (2, "ab")], [(3, "")], [(4, "c"), (5, ""), (6, "def")]]
    found = [pair for batch in find_outputs(batches, list, search) for pair in batch]
    assert [(name, each.tokens) for name, [each] in found] == [(1, []), (2, [2]), (3, []), (4, [1]), (5, []), (6, [3])]


def as_text(tokens: Any) -> str:
    return " ".join(map(str, tokens))


RANKED = [Hypothesis([5, 6], -0.5), Hypothesis([7], -1.25)]


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({}, ["5 6"]),
        ({"scores": True, "names": True}, ["3\t-0.500000\t5 6"]),
        ({"names": True, "several": True}, ["3\t5 6", "3\t7"]),
        ({"names": True, "several": True, "scores": True}, ["3\t-0.500000\t5 6", "3\t-1.250000\t7"]),
    ],
)
def test_columns(options: dict[str, bool], lines: list[str]) -> None:
    assert list(Form(as_text, **options).lines(3, RANKED)) == lines


def test_json_and_odd_names() -> None:
    [line] = Form(as_text, json=True).lines("ä\tb", RANKED)
    ranked = [{"text": "5 6", "score": -0.5}, {"text": "7", "score": -1.25}]
    assert json.loads(line) == {"input": "ä\tb", "hypotheses": ranked}
    assert list(Form(as_text, names=True).lines("a\t\nb", RANKED)) == ["a b\t5 6"]
    assert list(Form(as_text, names=True, scores=True).lines(1, [])) == ["1\t-inf\t"]
    assert json.loads(next(Form(as_text, json=True).lines(1, []))) == {"input": 1, "hypotheses": []}


def test_a_file_is_written_at_the_end_and_asked_for_at_the_beginning(tmp_path: Path) -> None:
    sink = Sink(str(tmp_path / "out"))
    sink.write(["ä", ""])
    assert not (tmp_path / "out").exists()
    sink.close()
    assert (tmp_path / "out").read_bytes() == "ä\n\n".encode()
    with pytest.raises(RecipeError, match=r"--out: no such folder: .*nowhere"):
        Sink(str(tmp_path / "nowhere" / "out"))
    with pytest.raises(RecipeError, match="is a folder"):
        Sink(str(tmp_path))


def test_standard_output_is_utf_8_and_comes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (None, STDIN):
        content = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="ascii"))
        sink = Sink(path)
        sink.write(["ä\ud800"])
        assert content.getvalue() == "ä\\ud800\n".encode()
        sink.close()
