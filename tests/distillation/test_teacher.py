from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from smoothloss.distillation import Teacher
from smoothloss.distillation import teacher as module


def example() -> Teacher:
    indices = torch.tensor([[3, 1, -1], [0, -1, -1]])
    log_probs = torch.tensor([[0.5, 0.25, 7.0], [1.0, math.nan, 0.0]]).log()
    return Teacher(indices, log_probs, torch.tensor([0.25, 0.0]).log())


def test_what_stands_in_an_empty_slot_is_not_read() -> None:
    teacher = example()
    assert teacher.log_probs[0, 2] > 0 and teacher.log_probs[1, 1].isnan()
    moved = teacher.to("cpu")
    assert torch.equal(moved.indices, teacher.indices) and moved.log_rest is not None
    assert pickle.loads(pickle.dumps(teacher)).indices.tolist() == teacher.indices.tolist()


def test_a_teacher_is_a_constant_value() -> None:
    with pytest.raises(AttributeError):
        example().indices = torch.zeros(1)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"indices": [1]}, TypeError, "indices: got list, expected a torch.Tensor"),
        ({"indices": torch.zeros(2, 3)}, TypeError, "indices: got torch.float32"),
        ({"log_probs": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "log_probs: got torch.int64"),
        ({"log_probs": torch.zeros(2, 3, dtype=torch.float8_e5m2)}, TypeError, "log_probs: got torch.float8_e5m2"),
        ({"indices": torch.tensor(1)}, ValueError, r"indices: got shape \(\), expected \(..., K\)"),
        ({"log_probs": torch.zeros(2, 2)}, ValueError, r"log_probs: got shape \(2, 2\), expected \(2, 3\)"),
        ({"log_rest": torch.zeros(2, 3)}, ValueError, r"log_rest: got shape \(2, 3\), expected \(2,\)"),
        ({"log_rest": torch.zeros(2, dtype=torch.float64)}, TypeError, "log_rest: got torch.float64"),
        ({"log_rest": torch.tensor([0.5, 0.0])}, ValueError, "log_rest: got 0.5, expected log-probabilities"),
        ({"log_rest": torch.tensor([0.0, math.nan])}, ValueError, "log_rest: got nan"),
        ({"log_probs": torch.full((2, 3), 1.5)}, ValueError, "log_probs: got 1.5, expected log-probabilities"),
        ({"log_probs": torch.full((2, 3), math.nan)}, ValueError, "log_probs: got nan"),
        ({"log_probs": torch.full((2, 3), -0.1)}, ValueError, "log_probs: got probabilities that add up to"),
        ({"log_rest": torch.tensor([-0.1, -3.0])}, ValueError, "log_probs: got probabilities that add up to"),
    ],
)
def test_what_is_no_teacher_is_refused(change: dict[str, object], error: type[Exception], message: str) -> None:
    teacher = example()
    parts = {"indices": teacher.indices, "log_probs": teacher.log_probs, "log_rest": teacher.log_rest, **change}
    with pytest.raises(error, match=f"^{message}") as raised:
        Teacher(**parts)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_forgiven(dtype: torch.dtype) -> None:
    logits = 30 * torch.randn(200, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    log_probs = logits.log_softmax(-1).to(dtype)
    Teacher(torch.arange(50).expand(200, 50), log_probs)
    Teacher(torch.zeros(1, 1, dtype=torch.int64), torch.full((1, 1), torch.finfo(dtype).eps).to(dtype))


def test_values_are_left_alone_where_they_cannot_be_seen() -> None:
    with FakeTensorMode():
        Teacher(torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3))
    Teacher(torch.zeros(2, 3, dtype=torch.int64, device="meta"), torch.ones(2, 3, device="meta"))
    indices = torch.zeros(4, 3, dtype=torch.int64)
    mapped = torch.func.vmap(lambda log_probs: Teacher(indices[0], log_probs).log_probs.sum())(torch.full((4, 3), -9.0))
    assert mapped.tolist() == [-27.0] * 4


# ---------------------------------------------------------------------------------------------------- from_logits


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(), (0,), (5,), (2, 3)]),
    classes=st.sampled_from([1, 2, 7, 100, 1003]),
    scale=st.sampled_from([0.1, 1.0, 20.0]),
    offset=st.sampled_from([0.0, 1e4, -3e5]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_top_k_and_the_rest_equal_the_definition(
    seed: int,
    shape: tuple[int, ...],
    classes: int,
    scale: float,
    offset: float,
    dtype: torch.dtype,
    data: st.DataObject,
) -> None:
    k = data.draw(st.integers(1, classes), label="k")
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn((*shape, classes), generator=generator, dtype=torch.float64) + offset).to(dtype)
    teacher = Teacher.from_logits(logits, k)
    assert teacher.indices.shape == teacher.log_probs.shape == (*shape, k)
    assert teacher.log_probs.dtype == torch.float32 and teacher.log_rest is not None
    exact = logits.double().log_softmax(-1)
    got = teacher.log_probs.double()
    assert torch.equal(got, got.sort(-1, descending=True).values)
    assert (exact.gather(-1, teacher.indices) - got).abs().le(2e-6 + 2e-7 * got.abs()).all()
    assert torch.equal(logits.gather(-1, teacher.indices), logits.topk(k).values)
    rest = exact.scatter(-1, teacher.indices, -torch.inf).logsumexp(-1)
    both = rest.isneginf() == teacher.log_rest.isneginf()
    assert both.all() and (k < classes or rest.isneginf().all())
    assert torch.where(rest.isneginf(), 0, rest - teacher.log_rest).abs().le(2e-6 + 2e-7 * rest.abs()).all()


@pytest.mark.parametrize("rest", [1e-3, 1e-6, 1e-9])
def test_the_rest_is_summed_and_not_subtracted(rest: float) -> None:
    logits = torch.full((4, 10_000), math.log(rest / 9_990))
    logits[:, :10] = math.log((1 - rest) / 10)
    log_rest = Teacher.from_logits(logits, 10).log_rest
    assert log_rest is not None
    assert (log_rest.double().exp() / rest - 1).abs().max() < 3e-6
    subtracted = torch.log1p(-Teacher.from_logits(logits, 10).log_probs.exp().sum(-1))
    assert rest > 1e-5 or (subtracted.double().exp() / rest - 1).abs().max() > 1e-2, "or the test tells nothing"


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 3, 11, generator=torch.Generator().manual_seed(0))
    whole = Teacher.from_logits(logits, 4)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 100)
    parts = Teacher.from_logits(logits, 4)
    assert torch.equal(whole.indices, parts.indices) and torch.equal(whole.log_probs, parts.log_probs)


def test_impossible_classes_take_no_slot() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0, -torch.inf]])
    teacher = Teacher.from_logits(logits, 3)
    assert sorted(teacher.indices[0].tolist()) == [-1, 0, 2]
    assert teacher.log_rest is not None and teacher.log_rest.isneginf().all()


def test_no_gradient_flows_to_a_teacher() -> None:
    teacher = Teacher.from_logits(torch.randn(3, 5, requires_grad=True), 2)
    assert not teacher.log_probs.requires_grad


@pytest.mark.parametrize(
    ("logits", "k", "error", "message"),
    [
        (torch.zeros(2, 3), 4, ValueError, "k: got 4, expected between 1 and 3"),
        (torch.zeros(2, 3), 0, ValueError, "k: got 0"),
        (torch.zeros(2, 3), 1.5, TypeError, "k: got float"),
        (torch.zeros(2, 3), True, TypeError, "k: got bool"),
        (torch.zeros(2, 3, dtype=torch.int64), 1, TypeError, "logits: got torch.int64"),
        (torch.zeros(()), 1, ValueError, r"logits: got shape \(\)"),
        (torch.zeros(2, 0), 1, ValueError, r"logits: got shape \(2, 0\)"),
        (torch.full((2, 3), math.nan), 1, ValueError, "log_probs: got nan"),
        (torch.tensor([math.inf, 0.0]), 1, ValueError, "log_probs: got nan"),
        (torch.full((2,), -math.inf), 1, ValueError, "log_probs: got nan"),
    ],
)
def test_logits_that_make_no_teacher(logits: torch.Tensor, k: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        Teacher.from_logits(logits, k)  # type: ignore[arg-type]
    if "k:" not in message:
        with pytest.raises(error, match=f"^{message}"):
            Teacher.sample(logits, 3)


def test_numpy_numbers_are_numbers() -> None:
    assert Teacher.from_logits(torch.zeros(2, 3), np.int32(2)).indices.shape == (2, 2)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- sample


@given(seed=st.integers(0, 2**32 - 1), classes=st.sampled_from([1, 2, 5, 1000]), draws=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_samples_are_shares_of_the_draws(seed: int, classes: int, draws: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(6, classes, generator=generator)
    teacher = Teacher.sample(logits, draws, generator=generator)
    occupied = teacher.indices >= 0
    counts = teacher.log_probs.double().exp() * draws
    assert torch.allclose(counts, counts.round(), atol=1e-4)
    assert counts.round().sum(-1).tolist() == [draws] * 6
    assert ((counts.round() > 0) == occupied).all()
    for indices in teacher.indices:
        known = indices[indices >= 0].tolist()
        assert known == sorted(set(known)) and max(known) < classes
    assert teacher.log_rest is not None and teacher.log_rest.isneginf().all()
    again = Teacher.sample(logits, draws, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.indices, Teacher.sample(logits, draws, generator=torch.Generator().manual_seed(1)).indices)


def test_draws_follow_the_distribution_and_never_what_is_impossible() -> None:
    logits = torch.tensor([-torch.inf, 2.0, -torch.inf, 0.0, -3.0, 1.0, -torch.inf])
    rows, draws = 500, 100
    teacher = Teacher.sample(logits.expand(rows, 7), draws, generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(8).double()
    counts.index_add_(0, teacher.indices.flatten() % 8, teacher.log_probs.double().exp().flatten() * draws)
    expected = rows * draws * logits.double().softmax(-1)
    assert counts[[0, 2, 6, 7]].abs().max() < 1e-9
    possible = expected > 0
    statistic = float(((counts[:7] - expected)[possible] ** 2 / expected[possible]).sum())
    assert 0.07 < statistic < 17.7, "chi-square of 3 degrees of freedom: 99 % of its mass"


@pytest.mark.parametrize(("draws", "error"), [(0, ValueError), (2.0, TypeError)])
def test_draws_are_a_number_of_them(draws: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="draws: got"):
        Teacher.sample(torch.zeros(2, 3), draws)  # type: ignore[arg-type]
