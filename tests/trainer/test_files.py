from __future__ import annotations

import gzip
import io
import os
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from drawn_files import Writing, lines, names, writings
from hypothesis import given, settings

from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.files import (
    STDIN,
    existing_file,
    existing_input,
    expand_path,
    is_stream,
    read_json,
    read_lines,
    read_text,
)


def test_paths_use_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_FOLDER", str(tmp_path))
    assert expand_path("${SOME_FOLDER}/a") == tmp_path / "a"
    (tmp_path / "$SOME_FOLDER").touch()
    assert expand_path(f"{tmp_path}/$SOME_FOLDER") == tmp_path / "$SOME_FOLDER", "a file may be called so"
    monkeypatch.delenv("SOME_FOLDER")
    with pytest.raises(RecipeError, match="SOME_FOLDER"):
        expand_path("${SOME_FOLDER}/a")
    with pytest.raises(RecipeError, match=r"data\.train: no such file: /nope"):
        existing_file("/nope", "data.train")


def test_what_is_no_file_is_told_from_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=rf"key: {tmp_path} is a folder, expected a file"):
        existing_file(str(tmp_path), "key")
    with pytest.raises(RecipeError, match=r"key: .* is no regular file, expected a file"):
        existing_file("/dev/null", "key")
    for path in ("a\0b", "x" * 300, f"{tmp_path}/a/b"):
        with pytest.raises(RecipeError, match=r"^key: "):
            existing_file(path, "key")
        with pytest.raises(RecipeError, match=r"^key: "):
            existing_input(path, "key")


def test_plain_and_gzipped_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\u2028\n\ntwo\n", encoding="utf-8", newline="\n")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b'{"a": [1]}', mtime=0))
    assert read_lines(tmp_path / "a.txt", "key") == ["one\u2028", "", "two"]
    assert read_json(str(tmp_path / "a.json.gz"), "key") == {"a": [1]}


@given(content=lines(), writing=writings(), name=names())
@settings(deadline=None, max_examples=200)
def test_lines_are_the_same_however_they_are_written(content: list[str], writing: Writing, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = writing.write(Path(folder) / name, content)
        assert read_lines(existing_file(str(path), "key"), "key") == content


def test_a_carriage_return_within_a_line_ends_none(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a\rb\nc\r\r\nd\r")
    assert read_lines(tmp_path / "x", "key") == ["a\rb", "c\r", "d"]
    (tmp_path / "x").write_bytes(b"")
    assert read_lines(tmp_path / "x", "key") == []
    (tmp_path / "x").write_bytes(b"\n")
    assert read_lines(tmp_path / "x", "key") == [""]
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbf")
    assert read_lines(tmp_path / "x", "key") == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("packed", [False, True])
def test_other_encodings_are_named(tmp_path: Path, encoding: str, packed: bool) -> None:
    text = ("\ufeff" if encoding.endswith("be") else "") + '{"a": "b"}\n'
    content = text.encode(encoding)
    (tmp_path / "x.json").write_bytes(gzip.compress(content, mtime=0) if packed else content)
    named = encoding.removesuffix("-be").upper()
    for read in (read_text, read_lines, lambda path, key: read_json(str(path), key)):
        with pytest.raises(RecipeError, match=rf"^key: cannot read .*x\.json: it is {named} text, expected UTF-8"):
            read(tmp_path / "x.json", "key")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nb\xe9c\n", r"line 2: byte 2 \(0xe9\) is no UTF-8: invalid continuation byte"),
        (b"a\n\xed\xa0\x80\n", r"line 2: byte 1 \(0xed\) is no UTF-8"),
        (b"a\nb\0\n", "line 2: byte 2 is NUL, expected UTF-8 text"),
        (b"BZh91AY&SYxxxx", "it is packed with bzip2: unpack it first"),
        (b"\xfd7zXZ\0xx", "it is packed with xz: unpack it first"),
        (b"PK\x03\x04xx", "it is a zip archive, expected text"),
        (gzip.compress(b"some text\n" * 99, mtime=0)[:-9], "no readable gzip file"),
        (gzip.compress(b"some text\n", mtime=0) + b"more", "no readable gzip file"),
        (b"\x1f\x8b\x08\0", "no readable gzip file"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(RecipeError, match=rf"^key: cannot read .*/x: {message}") as caught:
        read_lines(tmp_path / "x", "key")
    assert "\n" not in str(caught.value)


def test_zeros_behind_a_gzip_file_are_padding(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(gzip.compress(b"a\n", mtime=0) + bytes(512))
    assert read_lines(tmp_path / "x", "key") == ["a"]


def test_lines_that_cannot_be_decoded_may_be_collected(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a\n\xff\nb\n\0\n")
    broken: dict[int, str] = {}
    assert read_lines(tmp_path / "x", "key", broken) == ["a", "", "b", ""]
    assert broken == {2: "byte 1 (0xff) is no UTF-8: invalid start byte", 4: "byte 1 is NUL, expected UTF-8 text"}


@pytest.mark.parametrize("content", [b"{", b"\xff", b""])
def test_files_that_are_no_json_are_named(tmp_path: Path, content: bytes) -> None:
    for name, data in (("x.json", content), ("x.json.gz", gzip.compress(content, mtime=0)), ("y.json.gz", content)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(RecipeError, match=rf"^some\.key: cannot read .*{name}: ") as caught:
            read_json(str(tmp_path / name), "some.key")
        assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match=r"some\.key: no such file: .*gone\.json"):
        read_json(str(tmp_path / "gone.json"), "some.key")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (r'{"a": [1, {"b": "x\ud800"}]}', r"a\[1\]\.b"),
        (r'["\ude00\ud83d"]', r"\[0\]"),
        (r'{"\uDFFF": 1}', r"the key '\\udfff' of it"),
        (r'"\ud83d"', "it"),
    ],
)
def test_half_characters_are_refused_where_they_are_read(tmp_path: Path, text: str, place: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(RecipeError, match=rf"^key: cannot read .*x\.json: {place} has half a character"):
        read_json(str(tmp_path / "x.json"), "key")
    (tmp_path / "x.json").write_text(r'["\ud83d\ude00", "\\ud800"]')
    assert read_json(str(tmp_path / "x.json"), "key") == ["\U0001f600", r"\ud800"]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "1" * 5000, '{"a": 1, "a": 2}'])
def test_json_is_bounded(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(RecipeError, match=r"^key: cannot read .*x\.json: "):
        read_json(str(tmp_path / "x.json"), "key")


def test_pipes_and_standard_input_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = gzip.compress(b"\xef\xbb\xbfa b\r\nc", mtime=0) + gzip.compress(b"d")
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
    writer.start()
    path = existing_input(f"{tmp_path}/pipe", "key")
    assert is_stream(path) and read_lines(path, "key") == ["a b", "cd"]
    writer.join()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert existing_input("-", "key") == STDIN and is_stream(STDIN)
    assert read_lines(STDIN, "key") == ["a b", "cd"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    with pytest.raises(RecipeError, match="key: cannot read standard input: line 1: byte 1"):
        read_lines(STDIN, "key")


def test_a_file_may_be_called_dash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-").write_text("a\n")
    assert read_lines(existing_input("./-", "key"), "key") == ["a"]
