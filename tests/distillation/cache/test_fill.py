from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import smoothloss
from smoothloss.distillation import Teacher, TeacherCache, join, reshard, write_from

WriteCache = Callable[..., TeacherCache]
MakeTeacher = Callable[..., Teacher]
AssertSame = Callable[[Teacher, Teacher], None]
CLASSES = 50


class Model:
    """A teacher that counts its calls and breaks at one of them."""

    def __init__(self, breaks_at: int | None = None) -> None:
        self.calls, self.breaks_at = 0, breaks_at
        self.weight = torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        if self.calls == self.breaks_at:
            raise RuntimeError("no power")
        self.calls += 1
        assert not torch.is_grad_enabled()
        return 2 * self.weight[batch["ids"]]


def batches() -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for size in (3, 1, 2, 2):
        ids = torch.randint(0, CLASSES, (size, 6), generator=generator)
        yield {"ids": ids, "lengths": torch.randint(0, 7, (size,), generator=generator)}


def fill(path: Path, model: Any, **options: Any) -> TeacherCache:
    common: dict[str, Any] = {"vocabulary_size": CLASSES, "fingerprint": "text", "shard_bytes": 300}
    return write_from(model, batches(), path, lengths=lambda batch: batch["lengths"], **{**common, **options})


@pytest.mark.parametrize("how", [{"k": 5}, {"draws": 7}])
def test_an_interrupted_cache_equals_another(tmp_path: Path, how: dict[str, int]) -> None:
    model, other = Model(), Model(breaks_at=3)
    whole = fill(tmp_path / "whole", model, **how)
    assert model.calls == 4 and len(whole) == 8
    with pytest.raises(RuntimeError, match="no power"):
        fill(tmp_path / "parts", other, **how)
    committed = sum(record.batches for record in TeacherCache(tmp_path / "parts", partial=True).records)
    assert 0 < committed < 4
    other.calls, other.breaks_at = 0, None
    parts = fill(tmp_path / "parts", other, **how)
    assert other.calls == 4 - committed, "the teacher is asked only for what is missing"
    fill(tmp_path / "parts", other, **how)
    assert other.calls == 4 - committed
    for one, two in zip(whole, parts, strict=True):
        assert torch.equal(one.indices, two.indices) and torch.equal(one.log_probs, two.log_probs)


def test_what_is_kept_is_what_the_teacher_says(tmp_path: Path, assert_same: AssertSame) -> None:
    model = Model()
    cache = iter(fill(tmp_path / "cache", model, k=5, num_sequences=8))
    with torch.no_grad():
        for batch in batches():
            expected = Teacher.from_logits(model(batch), 5)
            assert expected.log_rest is not None
            for row, length in enumerate(batch["lengths"].tolist()):
                rest = expected.log_rest[row, :length]
                sequence = Teacher(expected.indices[row, :length], expected.log_probs[row, :length], rest)
                assert_same(next(cache), sequence)
    assert next(cache, None) is None


def test_a_callable_may_return_teachers(tmp_path: Path) -> None:
    model = Model()
    one = fill(tmp_path / "one", lambda batch: Teacher.from_logits(model(batch), 5))
    other = fill(tmp_path / "other", model, k=5)
    assert all(torch.equal(a.log_probs, b.log_probs) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Model(), {"k": 2, "draws": 3}, "k: got 2 beside draws=3, expected one of them"),
        (Model(), {}, "k: got None for a teacher that returns logits"),
        (Model(), {"draws": 2, "seed": -1}, "seed: got -1, expected at least 0"),
        (
            Model(),
            {"k": 2, "vocabulary_size": 51},
            r"teacher: got logits of shape \(3, 6, 50\), expected \(B, T, V\), V = 51",
        ),
        (lambda batch: batch["ids"][..., 0].float(), {"k": 2}, r"teacher: got logits of shape \(3,\)"),
    ],
)
def test_teachers_that_cannot_be_written(tmp_path: Path, model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        fill(tmp_path / "cache", model, **options)


def test_a_callable_must_return_one_of_them(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^teacher: got list, expected a Teacher"):
        fill(tmp_path / "cache", lambda batch: [], k=2)


# ---------------------------------------------------------------------------------------------------- one of several


@pytest.fixture
def teachers(make_teacher: MakeTeacher) -> list[Teacher]:
    """Return seven teachers of sequences."""
    return [make_teacher(seed, 4, 3, 100) for seed in range(7)]


def test_writers_of_ranges_make_one_cache(
    tmp_path: Path, teachers: list[Teacher], write_cache: WriteCache, assert_same: AssertSame
) -> None:
    path = tmp_path / "cache"
    for name, part in (("0", teachers[:3]), ("deep/1", teachers[3:3]), ("2", teachers[3:])):
        write_cache(path / name, part, 100, shard_bytes=150)
    sizes = [file.stat().st_size for file in path.rglob("*.safetensors")]
    cache = join(path, ["0", "deep/1", "2"])
    assert len(sizes) == len(list(path.rglob("*.safetensors"))), "nothing is copied"
    assert len(cache) == 7 and cache.complete
    for got, expected in zip(TeacherCache(path, fingerprint="text"), teachers, strict=True):
        assert_same(got, expected)
    assert_same(join(path, ["2", "0"])[0], teachers[3])
    write_cache(path, teachers[:1], 100)
    assert len(TeacherCache(path)) == 8
    with pytest.raises(ValueError, match=r"^path: got .*, a cache with shards of its own"):
        join(path, ["0"])


def test_parts_that_make_no_cache(tmp_path: Path, teachers: list[Teacher], write_cache: WriteCache) -> None:
    write_cache(tmp_path / "a", teachers[:1], 100)
    write_cache(tmp_path / "b", teachers[:1], 101)
    TeacherCache.write(tmp_path / "c", vocabulary_size=100, fingerprint="text").close()
    for parts, message in (
        ([], "parts: got none"),
        (["a", "a"], "shards: got one of them twice"),
        (["a", "b"], r"parts: got b with other settings \(vocabulary_size: got 101, expected 100\)"),
        (["a", "c"], "parts: got c, which is not complete"),
        ([tmp_path / "a"], "parts: got .*a, expected a folder below"),
        (["../x"], r"parts: got \.\./x, expected a folder below"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            join(tmp_path, parts)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"^path: no teacher cache at .*d"):
        join(tmp_path, ["d"])
    assert not (tmp_path / "index.json").exists()


def test_caches_are_merged_split_and_shuffled(tmp_path: Path, teachers: list[Teacher], write_cache: WriteCache) -> None:
    sources = [write_cache(tmp_path / "a", teachers[:3], 100), write_cache(tmp_path / "b", teachers[3:], 100)]
    whole = list(write_cache(tmp_path / "whole", teachers, 100))
    merged = reshard(sources, tmp_path / "merged", shard_bytes=150)
    assert len(merged.records) > 2
    _assert_equal(merged, whole)
    _assert_equal(reshard([merged], tmp_path / "part", sequences=range(2, 5), fingerprint="part"), whole[2:5])
    assert TeacherCache(tmp_path / "part", fingerprint="part").complete
    _assert_equal(reshard(sources, tmp_path / "order", sequences=[6, 0, 0]), [whole[6], whole[0], whole[0]])
    with pytest.raises(IndexError, match=r"^sequences: got 7, expected the number of one of 7"):
        reshard(sources, tmp_path / "none", sequences=[7])


def _assert_equal(cache: TeacherCache, expected: list[Teacher]) -> None:
    for one, two in zip(cache, expected, strict=True):
        assert torch.equal(one.indices, two.indices) and torch.equal(one.log_probs, two.log_probs)
        assert one.log_rest is not None and two.log_rest is not None and torch.equal(one.log_rest, two.log_rest)


def test_an_interrupted_copy_goes_on(tmp_path: Path, teachers: list[Teacher], write_cache: WriteCache) -> None:
    source = write_cache(tmp_path / "source", teachers, 100)

    def breaking() -> Iterator[int]:
        yield from range(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reshard([source], tmp_path / "copy", sequences=breaking(), shard_bytes=150)
    assert 0 < len(TeacherCache(tmp_path / "copy", partial=True)) < 7
    _assert_equal(reshard([source], tmp_path / "copy", shard_bytes=150), list(source))


def test_sources_must_be_alike(tmp_path: Path, teachers: list[Teacher], write_cache: WriteCache) -> None:
    one, other = write_cache(tmp_path / "a", teachers, 100), write_cache(tmp_path / "b", teachers, 101)
    with pytest.raises(ValueError, match=r"^sources: got .*b with other settings \(vocabulary_size: got 101"):
        reshard([one, other], tmp_path / "c", fingerprint="both")
    with pytest.raises(ValueError, match=r"^sources: got none"):
        reshard([], tmp_path / "c")


# ---------------------------------------------------------------------------------------------------- no bias


def test_gradients_of_sampled_targets_are_unbiased_and_those_of_a_top_k_are_not(tmp_path: Path) -> None:
    classes, draws, batch, length, count = 64, 12, 20, 100, 5
    logits = -torch.arange(1, classes + 1).double().log()  # Zipf's law, with a long tail
    student = torch.randn(classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options: dict[str, Any] = {"vocabulary_size": classes, "fingerprint": "text"}

    def gradient(**how: int) -> Tensor:
        path = tmp_path / "-".join(how)
        cache = write_from(lambda _: logits.expand(batch, length, classes), range(count), path, **options, **how)
        teacher = cache.batch(range(len(cache)))
        scores = student.clone().requires_grad_()
        share = teacher.log_probs.double().softmax(-1)  # normalised over what is known
        rows = scores.expand(*teacher.indices.shape[:2], classes)
        loss = smoothloss.functional.sparse_cross_entropy(rows, teacher.indices, share)
        return torch.autograd.grad(loss, scores)[0]

    target = logits.softmax(-1)
    exact = student.softmax(-1) - target
    # Each component is p less the mean of n shares, of variance q (1 - q) / n.
    deviation = (target * (1 - target) / (batch * length * count * draws)).sqrt()
    standardised = (gradient(draws=draws) - exact) / deviation
    assert standardised.abs().max() < 4, "of 64 normal numbers the largest is below 4 in 99.6 % of all cases"
    assert 0.7 < standardised.square().mean() < 1.4, "as far from the mean as draws are, and no nearer"
    assert ((gradient(k=draws) - exact) / deviation).abs().max() > 20
