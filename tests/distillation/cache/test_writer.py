from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from smoothloss.distillation import Teacher, TeacherCache
from smoothloss.distillation.cache import index as index_module

WriteCache = Callable[..., TeacherCache]
MakeTeacher = Callable[..., Teacher]
AssertSame = Callable[[Teacher, Teacher], None]
SETTINGS = {"vocabulary_size": 100, "fingerprint": "text"}


@pytest.fixture
def teachers(make_teacher: MakeTeacher) -> list[Teacher]:
    """Return six teachers of sequences."""
    return [make_teacher(seed, 4, 3, 100) for seed in range(6)]


def test_a_writer_goes_on_where_it_was_stopped(
    tmp_path: Path, teachers: list[Teacher], assert_same: AssertSame
) -> None:
    path = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt), TeacherCache.write(path, **SETTINGS, shard_bytes=150) as writer:
        for teacher in teachers[:5]:
            writer.add(teacher)
        raise KeyboardInterrupt
    assert writer.position == 5
    with pytest.raises(ValueError, match=r"^path: the cache at .* is not complete, with 4 sequences: write the others"):
        TeacherCache(path)
    assert len(TeacherCache(path, partial=True)) == 4
    with TeacherCache.write(path, **SETTINGS) as writer:
        assert (writer.position, writer.batches) == (4, 4)
        for teacher in teachers[writer.position :]:
            writer.add(teacher)
    cache = TeacherCache(path)
    assert cache.complete and len(cache) == 6
    for got, expected in zip(cache, teachers, strict=True):
        assert_same(got, expected)


def test_a_complete_cache_can_be_appended_to(tmp_path: Path, teachers: list[Teacher], write_cache: WriteCache) -> None:
    write_cache(tmp_path / "cache", teachers[:2], 100)
    assert len(write_cache(tmp_path / "cache", teachers[2:], 100)) == 6
    assert len(write_cache(tmp_path / "cache", [], 100)) == 6


def test_an_empty_cache(tmp_path: Path, write_cache: WriteCache) -> None:
    cache = write_cache(tmp_path / "a" / "b", [], 100)
    assert len(cache) == 0 and list(cache) == [] and cache.batch([]).indices.shape == (0, 0, 0)
    with pytest.raises(IndexError):
        cache[0]


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path, teachers: list[Teacher]) -> None:
    path = tmp_path / "cache"
    TeacherCache.write(path, **SETTINGS).close()
    (path / ".smoothloss-0123456789abcdef.tmp").write_bytes(b"half")
    (path / "shard-00000.safetensors").write_bytes(b"not in the index")
    (path / "notes.txt").write_text("mine")
    with TeacherCache.write(path, **SETTINGS) as writer:
        writer.add(teachers[0])
    assert sorted(file.name for file in path.iterdir()) == ["index.json", "notes.txt", "shard-00000.safetensors"]
    TeacherCache(path).verify()


def test_a_batch_is_cut_to_its_lengths(tmp_path: Path, make_teacher: MakeTeacher, assert_same: AssertSame) -> None:
    flat = make_teacher(0, 12, 5, 100)
    batch = Teacher(flat.indices.view(3, 4, 5), flat.log_probs.view(3, 4, 5), _some(flat.log_rest).view(3, 4))
    with TeacherCache.write(tmp_path / "cache", **SETTINGS) as writer:
        writer.add_batch(batch, torch.tensor([4, 0, 2]))
        writer.add_batch(batch)
        assert (writer.position, writer.batches) == (6, 2)
    cache = TeacherCache(tmp_path / "cache")
    for number, length in enumerate([4, 0, 2, 4, 4, 4]):
        row = number % 3
        rest = _some(batch.log_rest)[row, :length]
        assert_same(cache[number], Teacher(batch.indices[row, :length], batch.log_probs[row, :length], rest))


def test_the_sequences_of_a_call_are_committed_together(tmp_path: Path, make_teacher: MakeTeacher) -> None:
    flat = make_teacher(0, 12, 5, 100)
    batch = Teacher(flat.indices.view(3, 4, 5), flat.log_probs.view(3, 4, 5), _some(flat.log_rest).view(3, 4))
    with TeacherCache.write(tmp_path / "cache", **SETTINGS, shard_bytes=1) as writer:
        writer.add_batch(batch)
        writer.add_batch(batch)
    assert [record.sequences for record in TeacherCache(tmp_path / "cache").records] == [3, 3]


def _some(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor


def test_the_number_of_sequences_may_be_known(tmp_path: Path, teachers: list[Teacher]) -> None:
    path = tmp_path / "cache"
    with (
        pytest.raises(ValueError, match=r"^num_sequences: got 1 sequences, expected 3"),
        TeacherCache.write(path, **SETTINGS, num_sequences=3) as writer,
    ):
        writer.add(teachers[0])
    with pytest.raises(ValueError, match="with 1 of 3 sequences"):
        TeacherCache(path)
    with TeacherCache.write(path, **SETTINGS) as writer:  # what was said once holds
        writer.add(teachers[1])
        writer.add(teachers[2])
        with pytest.raises(ValueError, match=r"^num_sequences: got sequence 4, expected 3 in all"):
            writer.add(teachers[3])
    assert len(TeacherCache(path)) == 3
    with pytest.raises(ValueError, match=r"^num_sequences: got 2, expected the 3 there or more"):
        TeacherCache.write(path, **SETTINGS, num_sequences=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary_size": 101}, "vocabulary_size: got 101, expected 100, as in the cache at"),
        ({"fingerprint": "other"}, "fingerprint: got 'other', expected 'text', as in the cache at"),
        ({"ids": "int32"}, "ids: got 'int32', expected 'packed', as"),
        ({"draws": 3}, "draws: got 3, expected None, as"),
        ({"log_rest": False}, "log_rest: got False, expected True, as"),
    ],
)
def test_a_cache_is_not_continued_with_other_settings(
    tmp_path: Path, teachers: list[Teacher], write_cache: WriteCache, change: dict[str, object], message: str
) -> None:
    write_cache(tmp_path / "cache", teachers, 100)
    before = (tmp_path / "cache" / "index.json").read_bytes()
    with pytest.raises(ValueError, match=f"^{message}"):
        TeacherCache.write(tmp_path / "cache", **{**SETTINGS, **change})  # type: ignore[arg-type]
    assert (tmp_path / "cache" / "index.json").read_bytes() == before
    TeacherCache.write(tmp_path / "cache", **SETTINGS).close()  # the lock was given back


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"vocabulary_size": 0}, ValueError, "vocabulary_size: got 0, expected between 1 and 2147483648"),
        ({"vocabulary_size": 2**31 + 1}, ValueError, "vocabulary_size: got 2147483649"),
        ({"vocabulary_size": 1.5}, TypeError, "vocabulary_size: got float, expected an integer"),
        ({"fingerprint": None}, TypeError, "fingerprint: got NoneType, expected a str"),
        ({"ids": "int64"}, ValueError, "ids: got 'int64', expected one of 'packed', 'int32'"),
        ({"draws": 0}, ValueError, "draws: got 0, expected between 1 and 65536"),
        ({"draws": 2, "log_rest": True}, ValueError, "log_rest: got True beside draws"),
        ({"log_rest": 1}, TypeError, "log_rest: got int, expected a bool"),
        ({"num_sequences": -1}, ValueError, "num_sequences: got -1"),
        ({"num_sequences": "3"}, TypeError, "num_sequences: got str"),
        ({"shard_bytes": 0}, ValueError, "shard_bytes: got 0, expected at least 1"),
        ({"shard_bytes": None}, TypeError, "shard_bytes: got NoneType"),
    ],
)
def test_wrong_settings(tmp_path: Path, change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        TeacherCache.write(tmp_path / "cache", **{**SETTINGS, **change})  # type: ignore[arg-type]
    assert not (tmp_path / "cache").exists()


def test_numpy_numbers_are_numbers(tmp_path: Path) -> None:
    with TeacherCache.write(tmp_path / "c", vocabulary_size=np.int64(7), fingerprint="x", draws=np.int32(3)) as writer:  # type: ignore[arg-type]
        assert writer.settings.vocabulary_size == 7
    assert TeacherCache(tmp_path / "c", vocabulary_size=7).settings.draws == 3


def test_folders_of_other_things_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"^path: got .*, a folder of other things, expected a cache or an empty"):
        TeacherCache.write(tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match=r"^path: got .*thesis.tex, a file, expected a folder"):
        TeacherCache.write(tmp_path / "thesis.tex", **SETTINGS)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def _teacher(indices: list[list[int]], shares: list[list[float]], rest: list[float] | None) -> Teacher:
    log_rest = None if rest is None else torch.tensor(rest).log()
    return Teacher(torch.tensor(indices), torch.tensor(shares).log(), log_rest)


@pytest.mark.parametrize(
    ("options", "teacher", "message"),
    [
        ({}, _teacher([[1, 100]], [[0.5, 0.25]], [0.25]), "indices: got 100, expected classes below 100"),
        ({}, _teacher([[1, 2]], [[0.5, 0.25]], None), "log_rest: got None, expected a tensor"),
        ({"draws": 4}, _teacher([[1, 2]], [[0.5, 0.25]], None), "log_probs: expected the log of shares of 4 draws"),
        ({"draws": 4}, _teacher([[1, 2]], [[0.6, 0.4]], None), "log_probs: expected the log of shares of 4 draws"),
        ({"draws": 4}, _teacher([[1, 2]], [[1.0, 0.0]], None), "log_probs: expected the log of shares of 4 draws"),
        ({"draws": 4}, _teacher([[1, 2]], [[0.5, 0.5]], [1e-3]), "log_rest: got a rest beside draws"),
    ],
)
def test_teachers_that_do_not_fit(tmp_path: Path, options: dict[str, object], teacher: Teacher, message: str) -> None:
    with TeacherCache.write(tmp_path / "cache", **SETTINGS, **options) as writer:  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"^{message}"):
            writer.add(teacher)
        assert writer.position == 0
    assert len(TeacherCache(tmp_path / "cache")) == 0


def test_wrong_shapes_and_types(tmp_path: Path, teachers: list[Teacher]) -> None:
    with TeacherCache.write(tmp_path / "cache", **SETTINGS) as writer:
        with pytest.raises(TypeError, match=r"^teacher: got Tensor, expected a Teacher"):
            writer.add(torch.zeros(2))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"^teacher: got indices of shape \(4, 3\), expected \(B, T, K\)"):
            writer.add_batch(teachers[0])
        batch = Teacher(teachers[0].indices[None], teachers[0].log_probs[None], _some(teachers[0].log_rest)[None])
        with pytest.raises(ValueError, match=r"^teacher: got indices of shape \(1, 4, 3\), expected \(T, K\)"):
            writer.add(batch)
        with pytest.raises(ValueError, match=r"^lengths: got 5, expected between 0 and 4"):
            writer.add_batch(batch, torch.tensor([5]))
        with pytest.raises(ValueError, match=r"^lengths: got shape \(2,\), expected \(1,\)"):
            writer.add_batch(batch, torch.tensor([1, 1]))
    with pytest.raises(ValueError, match=r"^writer: got a writer that is closed"):
        writer.add(teachers[0])


def test_a_full_disk_leaves_what_was_committed(
    tmp_path: Path, teachers: list[Teacher], monkeypatch: pytest.MonkeyPatch, assert_same: AssertSame
) -> None:
    path = tmp_path / "cache"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with TeacherCache.write(path, **SETTINGS, shard_bytes=1) as writer:
        writer.add(teachers[0])
        for where in ((Path, "write_bytes"), (os, "fsync"), (index_module.Index, "write")):
            with monkeypatch.context() as patch:
                patch.setattr(*where, full)
                with pytest.raises(OSError, match="No space left"):
                    writer.commit() if writer.position > 1 else writer.add(teachers[1])
            assert len(TeacherCache(path, partial=True)) == 1
        writer.add(teachers[2])  # there is room again
    for got, expected in zip(TeacherCache(path), teachers[:3], strict=True):
        assert_same(got, expected)
    assert not [file for file in path.iterdir() if file.name.endswith(".tmp")]


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    path = tmp_path / "cache"
    writer = TeacherCache.write(path, **SETTINGS)
    with pytest.raises(ValueError, match=r"^path: another process is writing the cache at "):
        TeacherCache.write(path, **SETTINGS)
    writer.close()
    TeacherCache.write(path, **SETTINGS)  # and is not kept
    TeacherCache.write(path, **SETTINGS).close()
