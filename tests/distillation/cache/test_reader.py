from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import smoothloss
from smoothloss.distillation import Teacher, TeacherCache
from smoothloss.distillation.cache import shard as shard_module

VOCABULARIES = [1, 2, 255, 256, 65_536, 151_936, 2**31 - 1, 2**31]
WriteCache = Callable[..., TeacherCache]
MakeTeacher = Callable[..., Teacher]
AssertSame = Callable[[Teacher, Teacher], None]


@given(
    vocabulary_size=st.sampled_from(VOCABULARIES),
    sizes=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 5), st.booleans()), max_size=6),
    ids=st.sampled_from(["packed", "int32"]),
    draws=st.sampled_from([None, None, 1, 12, 1000]),
    log_rest=st.booleans(),
    shard_bytes=st.sampled_from([1, 200, 10**6]),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(
    make_teacher: MakeTeacher, write_cache: WriteCache, assert_same: AssertSame, vocabulary_size: int,
    sizes: list[tuple[int, int, bool]], ids: str, draws: int | None, log_rest: bool, shard_bytes: int,
    data: st.DataObject,
) -> None:  # fmt: skip
    teachers = [
        make_teacher(seed, length, slots, vocabulary_size, ragged, draws)
        for seed, (length, slots, ragged) in enumerate(sizes)
    ]
    rest = None if draws else log_rest
    if rest is False:
        teachers = [Teacher(teacher.indices, teacher.log_probs) for teacher in teachers]
    with tempfile.TemporaryDirectory() as folder:
        options = {"ids": ids, "draws": draws, "log_rest": rest, "shard_bytes": shard_bytes}
        cache = write_cache(Path(folder) / "cache", teachers, vocabulary_size, **options)
        assert len(cache) == len(teachers)
        for got, expected in zip(cache, teachers, strict=True):
            assert_same(got, expected)
            assert_same(Teacher(got.indices, got.log_probs, got.log_rest), expected)  # its values pass the checks
        numbers = data.draw(
            st.lists(st.integers(-len(teachers), len(teachers) - 1), max_size=8) if teachers else st.just([])
        )
        batch = cache.batch(numbers)
        lengths = [len(teachers[number].indices) for number in numbers]
        assert batch.indices.shape[:2] == (len(numbers), max(lengths, default=0))
        for row, number in enumerate(numbers):
            _assert_row(assert_same, batch, row, teachers[number])


def _assert_row(assert_same: AssertSame, batch: Teacher, row: int, expected: Teacher) -> None:
    length = len(expected.indices)
    rest = None if batch.log_rest is None else batch.log_rest[row]
    assert_same(
        Teacher(batch.indices[row, :length], batch.log_probs[row, :length], rest if rest is None else rest[:length]),
        expected,
    )
    assert (batch.indices[row, length:] == -1).all() and batch.log_probs[row, length:].isneginf().all()
    assert rest is None or rest[length:].isneginf().all()


@pytest.fixture
def cache(tmp_path: Path, make_teacher: MakeTeacher, write_cache: WriteCache) -> TeacherCache:
    """Return seven sequences in shards of two or three."""
    teachers = [make_teacher(seed, 3 + seed, 4, 1000) for seed in range(7)]
    return write_cache(tmp_path / "cache", teachers, 1000, shard_bytes=250)


def test_a_batch_may_be_padded_further(cache: TeacherCache) -> None:
    assert len(cache.records) > 2
    plain, padded = cache.batch([5, 0]), cache.batch([5, 0], pad=(12, 9))
    assert plain.indices.shape == (2, 8, 4) and padded.indices.shape == padded.log_probs.shape == (2, 12, 9)
    assert torch.equal(padded.indices[:, :8, :4], plain.indices)
    assert (padded.indices >= 0).sum() == (plain.indices >= 0).sum()
    assert padded.log_rest is not None and padded.log_rest.shape == (2, 12)
    assert cache.batch([5, 0], pad=(None, np.int64(9))).indices.shape == (2, 8, 9)
    assert cache.batch([5, 0], pad=(9, None)).indices.shape == (2, 9, 4)
    assert cache.batch([], pad=(3, 2)).indices.shape == (0, 3, 2)
    Teacher(padded.indices, padded.log_probs, padded.log_rest)


def test_full_positions_are_placed_as_single_entries_are(
    tmp_path: Path, make_teacher: MakeTeacher, write_cache: WriteCache, assert_same: AssertSame
) -> None:
    teachers = [make_teacher(seed, length, 4, 50, ragged=False) for seed, length in enumerate((3, 5, 0, 5))]
    cache = write_cache(tmp_path / "cache", teachers, 50)
    for numbers in ([1, 3], [0, 1, 2], [2]):
        batch = cache.batch(numbers)
        for row, number in enumerate(numbers):
            _assert_row(assert_same, batch, row, teachers[number])


def test_sequences_larger_than_what_is_decoded_at_a_time(
    tmp_path: Path, make_teacher: MakeTeacher, write_cache: WriteCache, assert_same: AssertSame,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(shard_module, "_ENTRIES_AT_A_TIME", 7)
    for draws in (None, 12):
        teachers = [make_teacher(seed, 9, 5, 151_936, draws=draws) for seed in range(4)]
        cache = write_cache(tmp_path / str(draws), teachers, 151_936, draws=draws)
        for got, expected in zip(cache, teachers, strict=True):
            assert_same(got, expected)


def test_the_working_folder_may_change(
    tmp_path: Path, make_teacher: MakeTeacher, assert_same: AssertSame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with TeacherCache.write("cache", vocabulary_size=9, fingerprint="text") as writer:
        monkeypatch.chdir("elsewhere")
        writer.add(make_teacher(0, 3, 2, 9))
    monkeypatch.chdir(tmp_path)
    cache = TeacherCache("cache")
    monkeypatch.chdir("elsewhere")
    assert_same(cache[0], make_teacher(0, 3, 2, 9))


def test_a_batch_is_ready_for_a_loss(cache: TeacherCache) -> None:
    batch = cache.batch([5, 0, 2], pad=(10, 6))
    logits = torch.randn(3, 10, 1000, generator=torch.Generator().manual_seed(0))
    losses = smoothloss.functional.sparse_cross_entropy(logits, batch.indices, batch.log_probs.exp(), reduction="none")
    dense = torch.zeros(3, 10, 1001).scatter_add(-1, batch.indices % 1001, batch.log_probs.exp())[..., :1000]
    expected = -(dense * logits.log_softmax(-1)).sum(-1)
    assert torch.allclose(losses, expected, rtol=1e-5, atol=1e-5)
    assert (losses[1, 3:] == 0).all() and (losses[0, :8] > 0).any(), "padding is ignored"


def test_numbers_of_any_kind(cache: TeacherCache) -> None:
    assert torch.equal(cache[-1].indices, cache[6].indices)
    assert torch.equal(cache[np.int64(3)].indices, cache[torch.tensor(3)].indices)  # type: ignore[index]
    assert torch.equal(cache.batch(torch.tensor([2, 1])).indices, cache.batch(iter([2, 1])).indices)
    assert cache.batch([]).indices.shape == (0, 0, 0)
    assert len(list(cache)) == len(cache) == 7


@pytest.mark.parametrize(
    ("numbers", "pad", "error", "message"),
    [
        ([7], None, IndexError, "numbers: got 7, expected the number of one of 7 sequences"),
        ([-8], None, IndexError, "numbers: got -8"),
        ([1.0], None, TypeError, "numbers: got float, expected an integer"),
        ([True], None, TypeError, "numbers: got bool"),
        ([6], (8, None), ValueError, "pad: got T = 8, expected at least 9"),
        ([6], (None, 3), ValueError, "pad: got K = 3, expected at least 4"),
        ([6], 3, TypeError, "pad: got 3, expected a tuple"),
        ([6], (3.0, None), TypeError, "pad: got float, expected an integer"),
    ],
)
def test_wrong_arguments(
    cache: TeacherCache, numbers: list[int], pad: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        cache.batch(numbers, pad=pad)  # type: ignore[arg-type]


def test_a_cache_of_something_else_is_refused(cache: TeacherCache) -> None:
    TeacherCache(cache.path, fingerprint="text", vocabulary_size=1000)
    with pytest.raises(ValueError, match=r"^fingerprint: got 'other', expected 'text': the cache at .* another text"):
        TeacherCache(cache.path, fingerprint="other")
    with pytest.raises(ValueError, match=r"^vocabulary_size: got 999, expected 1000"):
        TeacherCache(cache.path, vocabulary_size=999)


def test_what_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "file"):
        with pytest.raises(FileNotFoundError, match=r"^path: no teacher cache at "):
            TeacherCache(path)


def test_defaults_of_torch_change_nothing(
    tmp_path: Path, make_teacher: MakeTeacher, write_cache: WriteCache, assert_same: AssertSame
) -> None:
    for draws in (None, 12):
        teacher = make_teacher(0, 5, 3, 100, draws=draws)
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        try:
            cache = write_cache(tmp_path / str(draws), [teacher], 100, draws=draws)
            got, sampled = cache[0], Teacher.sample(torch.zeros(2, 3, device="cpu"), 4)
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_default_device(None)
        assert_same(got, teacher)
        assert sampled.log_probs.dtype == torch.float32 and sampled.log_probs.device.type == "cpu"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine of one core
def test_workers_of_a_data_loader_read_it(cache: TeacherCache) -> None:
    expected = [teacher.indices for teacher in cache]  # mapped here already when the workers are forked
    loader = torch.utils.data.DataLoader(
        cache,  # type: ignore[arg-type]
        sampler=[6, 0, 3, 3, 1],
        batch_size=None,
        num_workers=2,
        multiprocessing_context="fork",
    )
    for number, teacher in zip([6, 0, 3, 3, 1], loader, strict=True):
        assert torch.equal(teacher.indices, expected[number])


def test_mapped_memory_is_not_sent_to_other_processes_but_mapped_anew(cache: TeacherCache) -> None:
    expected = cache[3]
    sent = pickle.dumps(cache)
    assert len(sent) < 10_000
    assert torch.equal(pickle.loads(sent)[3].indices, expected.indices)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_shards_are_mapped_when_they_are_needed(cache: TeacherCache) -> None:
    def mapped() -> set[str]:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return {Path(line.split()[-1]).name for line in lines if str(cache.path) in line}

    assert mapped() == set()
    last = cache[6]
    assert mapped() == {cache.records[-1].file}
    assert last.indices.shape == (9, 4)


def test_the_bytes_of_an_entry_and_of_a_sampled_token(tmp_path: Path, write_cache: WriteCache) -> None:
    generator = torch.Generator().manual_seed(0)
    classes, length = 151_936, 512
    ids = torch.randint(0, classes, (8, length, 64), generator=generator)
    log_probs = torch.randn((8, length, 65), generator=generator).log_softmax(-1)
    top = [Teacher(i, p[:, :64], p[:, 64]) for i, p in zip(ids, log_probs, strict=True)]
    cache = write_cache(tmp_path / "top", top, classes)
    size = sum(file.stat().st_size for file in cache.path.iterdir())
    assert size / ids.numel() <= 4.25, "everything counted: rest, starts, header and index"
    drawn = torch.full((length, 12), 1 / 12).log()  # all different: the worst case
    nothing = torch.full((length,), -torch.inf)
    cache = write_cache(tmp_path / "draws", [Teacher(i[:, :12], drawn, nothing) for i in ids], classes, draws=12)
    size = sum(file.stat().st_size for file in cache.path.iterdir())
    assert size / (8 * length) <= 36
