from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from smoothloss.distillation import Teacher, TeacherCache

WriteCache = Callable[..., TeacherCache]
MakeTeacher = Callable[..., Teacher]
KEY = "smoothloss.teacher_cache"


@pytest.fixture(params=[None, 12], ids=["log_probs", "counts"])
def cache(
    request: pytest.FixtureRequest, tmp_path: Path, make_teacher: MakeTeacher, write_cache: WriteCache
) -> TeacherCache:
    """Return a cache of one shard with three sequences."""
    teachers = [make_teacher(seed, 4, 3, 1000, draws=request.param) for seed in range(3)]
    return write_cache(tmp_path / "cache", teachers, 1000, draws=request.param)


def path_of(cache: TeacherCache) -> Path:
    return cache.path / cache.records[0].file


def rewrite(cache: TeacherCache, edit: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Edit a shard's tensors and metadata, and the size in the index so that it seems untouched."""
    path = path_of(cache)
    with safe_open(path, framework="np") as file:
        metadata = json.loads(file.metadata()[KEY])
    arrays = load_file(path)
    edit(arrays, metadata)
    save_file(arrays, path, metadata={KEY: json.dumps(metadata)})
    index = json.loads((cache.path / "index.json").read_text())
    index["shards"][0]["bytes"] = path.stat().st_size
    (cache.path / "index.json").write_text(json.dumps(index))


def assert_damaged(path: Path, message: str) -> None:
    expected = rf"^path: .*shard-00000.safetensors is a damaged shard of a teacher cache \({message}"
    with pytest.raises(ValueError, match=expected) as raised:
        list(TeacherCache(path))
    assert "\n" not in str(raised.value)


def test_a_missing_shard(cache: TeacherCache) -> None:
    path_of(cache).unlink()
    for call in (lambda: TeacherCache(cache.path), lambda: cache[0], cache.verify):
        with pytest.raises(FileNotFoundError, match=r"^path: the cache at .* lacks its shard shard-00000.safetensors"):
            call()
    with pytest.raises(FileNotFoundError, match="lacks its shard"):
        TeacherCache.write(cache.path, **vars(cache.settings))


def test_truncated_and_overlong_shards(cache: TeacherCache) -> None:
    content = path_of(cache).read_bytes()
    for size in (0, 1, 8, 100, len(content) - 1):
        path_of(cache).write_bytes(content[:size])
        assert_damaged(cache.path, rf"got {size} bytes, expected {len(content)}\)")
    path_of(cache).write_bytes(content + b"\0")
    assert_damaged(cache.path, f"got {len(content) + 1} bytes")


def test_any_changed_byte_is_found_by_verifying(cache: TeacherCache) -> None:
    content = path_of(cache).read_bytes()
    cache.verify()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 0x10
        path_of(cache).write_bytes(changed)
        with pytest.raises(ValueError, match="is a damaged shard"):
            TeacherCache(cache.path).verify()


def test_no_changed_byte_makes_more_than_a_line_or_a_class_that_is_none(cache: TeacherCache) -> None:
    content = path_of(cache).read_bytes()
    refused = 0
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 0xFF
        path_of(cache).write_bytes(changed)
        try:
            teachers = list(TeacherCache(cache.path))
        except ValueError as error:
            assert "\n" not in str(error) and str(error).startswith("path: ")
            refused += 1
        else:
            assert all(teacher.indices.lt(1000).all() and teacher.log_probs.le(0).all() for teacher in teachers)
    assert refused > len(content) / 2, "the header is more than half of so small a shard"


EDITS: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
    "of another cache: fingerprint: got 'x', expected 'text'": lambda _, m: m["settings"].update(fingerprint="x"),
    "of another cache: vocabulary_size: got 7, expected 1000": lambda _, m: m["settings"].update(vocabulary_size=7),
    "settings: got ": lambda _, m: m.update(settings=[]),
    "no metadata of smoothloss": lambda _, m: m.update(other=1),
    "slots: got -1": lambda _, m: m.update(slots=-1),
    "slots: got True": lambda _, m: m.update(slots=True),
    "tensors {": lambda arrays, _: arrays.pop("ids"),
    "tensors {'": lambda arrays, _: arrays.update(extra=np.zeros(1)),
    "tensors {'ids": lambda arrays, _: arrays.update(ids=arrays["ids"][:-1].copy()),
    "tensors {'entry": lambda arrays, _: arrays.update(entry_starts=arrays["entry_starts"].astype(np.int32)),
    "position_starts": lambda arrays, _: arrays["position_starts"].__setitem__(1, 99),
    "entry_starts": lambda arrays, _: arrays["entry_starts"].__setitem__(0, 1),
    "slots)": lambda arrays, _: arrays["slots"].__setitem__(0, 9),
    "ids)": lambda arrays, _: arrays["ids"].__setitem__(slice(None), 255),
}


@pytest.mark.parametrize("message", EDITS)
def test_a_shard_of_something_else_is_one_line(cache: TeacherCache, message: str) -> None:
    rewrite(cache, EDITS[message])
    assert_damaged(cache.path, "tensors" if message.startswith("tensors") else re.escape(message))


@pytest.mark.parametrize("wrong", [1000, -1])
def test_ids_beyond_the_vocabulary(
    tmp_path: Path, make_teacher: MakeTeacher, write_cache: WriteCache, wrong: int
) -> None:
    cache = write_cache(tmp_path / "cache", [make_teacher(0, 9, 4, 1000)], 1000, ids="int32")
    rewrite(cache, lambda arrays, _: arrays["ids"].__setitem__(5, wrong))
    assert_damaged(cache.path, r"ids\)")


def test_counts_beyond_the_draws(tmp_path: Path, make_teacher: MakeTeacher, write_cache: WriteCache) -> None:
    cache = write_cache(tmp_path / "cache", [make_teacher(0, 9, 4, 1000, draws=12)], 1000, draws=12)
    rewrite(cache, lambda arrays, _: arrays["counts"].__setitem__(slice(None), 255))
    assert_damaged(cache.path, r"counts\)")


def test_a_number_of_slots_that_all_positions_share_takes_no_room(
    tmp_path: Path, make_teacher: MakeTeacher, write_cache: WriteCache
) -> None:
    cache = write_cache(tmp_path / "same", [make_teacher(0, 9, 4, 1000, ragged=False)], 1000)
    assert "slots" not in load_file(path_of(cache))
    with safe_open(path_of(cache), framework="np") as file:
        assert json.loads(file.metadata()[KEY])["slots"] == 4
    rewrite(cache, lambda _, metadata: metadata.update(slots=5))
    assert_damaged(cache.path, "slots")


@pytest.mark.parametrize(("slots", "dtype"), [(255, np.uint8), (256, np.uint16), (65_536, np.uint32)])
def test_slots_take_the_bytes_that_they_need(
    tmp_path: Path, make_teacher: MakeTeacher, write_cache: WriteCache, assert_same: Callable[..., None], slots: int,
    dtype: type,
) -> None:  # fmt: skip
    teachers = [make_teacher(0, 1, slots, 10, ragged=False), make_teacher(1, 1, 3, 10, ragged=False)]
    cache = write_cache(tmp_path / "cache", teachers, 10)
    assert load_file(path_of(cache))["slots"].dtype == dtype
    for got, expected in zip(cache, teachers, strict=True):
        assert_same(got, expected)
