from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smoothloss.distillation import Teacher, TeacherCache


@pytest.fixture
def folder(tmp_path: Path, make_teacher: Callable[..., Teacher], write_cache: Callable[..., TeacherCache]) -> Path:
    """Return the folder of a cache of two shards."""
    teachers = [make_teacher(seed, 4, 3, 100) for seed in range(2)]
    return write_cache(tmp_path / "cache", teachers, 100, shard_bytes=1).path


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit the index of a cache."""
    content = json.loads((folder / "index.json").read_text())
    edit(content)
    (folder / "index.json").write_text(json.dumps(content))


def test_the_index_says_what_is_there(folder: Path) -> None:
    content = json.loads((folder / "index.json").read_text())
    shards = content.pop("shards")
    assert content == {
        "format": "smoothloss.teacher_cache",
        "version": 1,
        "settings": {"vocabulary_size": 100, "fingerprint": "text", "ids": "packed", "draws": None, "log_rest": True},
        "complete": True,
        "num_sequences": None,
    }
    assert [shard["sequences"] for shard in shards] == [1, 1]
    assert [shard["file"] for shard in shards] == ["shard-00000.safetensors", "shard-00001.safetensors"]
    assert [shard["bytes"] for shard in shards] == [(folder / shard["file"]).stat().st_size for shard in shards]


def test_a_newer_version_is_refused(folder: Path) -> None:
    change(folder, lambda content: content.update(version=2, something_new={}))
    with pytest.raises(ValueError, match=r"^path: .*index.json is of version 2, expected at most 1: a newer"):
        TeacherCache(folder)
    with pytest.raises(ValueError, match="is of version 2"):
        TeacherCache.write(folder, vocabulary_size=100, fingerprint="text")


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "expected an object with the format": lambda content: content.update(format="other"),
    "version: got str, expected an integer": lambda content: content.update(version="1"),
    "version: got 0, expected between": lambda content: content.update(version=0),
    "index: got ['complete', 'num_sequences', 'settings', 'shards', 'x']": lambda content: content.update(x=1),
    "complete: got int, expected a bool": lambda content: content.update(complete=1),
    "num_sequences: got 3, expected 2, those of the shards": lambda content: content.update(num_sequences=3),
    "num_sequences: got bool": lambda content: content.update(num_sequences=True),
    "settings: got NoneType": lambda content: content.pop("settings"),
    "settings: got ['draws', 'fingerprint', 'ids', 'log_rest']": lambda content: content["settings"].pop(
        "vocabulary_size"
    ),
    "vocabulary_size: got float": lambda content: content["settings"].update(vocabulary_size=100.0),
    "shards: got one of them twice": lambda content: content["shards"].append(content["shards"][0]),
    "shards: got dict, expected a list": lambda content: content.update(shards={}),
    "shard: got list": lambda content: content.update(shards=[[]]),
    "file: got '../x', expected a path below the cache": lambda content: content["shards"][0].update(file="../x"),
    "file: got '/etc/passwd'": lambda content: content["shards"][0].update(file="/etc/passwd"),
    "file: got ''": lambda content: content["shards"][0].update(file=""),
    "file: got 3": lambda content: content["shards"][0].update(file=3),
    "sequences: got -1": lambda content: content["shards"][0].update(sequences=-1),
    "bytes: got NoneType": lambda content: content["shards"][0].update(bytes=None),
    "sha256: got 'x'": lambda content: content["shards"][0].update(sha256="x"),
}


@pytest.mark.parametrize("message", EDITS)
def test_a_damaged_index_is_one_line(folder: Path, message: str) -> None:
    change(folder, EDITS[message])
    expected = rf"^path: .*index.json is a damaged index of a teacher cache \({re.escape(message)}"
    with pytest.raises(ValueError, match=expected) as raised:
        TeacherCache(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": 1, "format": 2}', b'{"version": NaN}'],
    ids=range(8),
)
def test_what_is_no_index_is_one_line(folder: Path, content: bytes) -> None:
    (folder / "index.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"^path: .*index.json is a damaged index") as raised:
        TeacherCache(folder)
    assert "\n" not in str(raised.value)


def test_every_truncation_of_an_index_is_refused(folder: Path) -> None:
    content = (folder / "index.json").read_bytes().rstrip()
    for size in range(len(content)):
        (folder / "index.json").write_bytes(content[:size])
        with pytest.raises(ValueError, match="is a damaged index"):
            TeacherCache(folder)
