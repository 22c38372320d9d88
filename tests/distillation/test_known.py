"""What is known of a teacher: each class once, what is left, and both at a temperature."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothloss.distillation import Teacher
from smoothloss.distillation._known import known, merged
from smoothloss.distillation.teacher import unchecked


@given(
    rows=st.integers(1, 6).flatmap(
        lambda width: st.lists(
            st.lists(st.tuples(st.integers(-2, 5), st.floats(-300, 0)), min_size=width, max_size=width), max_size=4
        )
    )
)
@settings(max_examples=200, deadline=None)
def test_each_class_once(rows: list[list[tuple[int, float]]]) -> None:
    width = len(rows[0]) if rows else 1
    indices = torch.tensor([[index for index, _ in row] for row in rows], dtype=torch.int64).reshape(-1, width)
    values = torch.tensor([[value for _, value in row] for row in rows], dtype=torch.float64).reshape(-1, width)
    once, sums = merged(indices, values.masked_fill(indices < 0, -math.inf))
    for row, got, logs in zip(rows, once.tolist(), sums, strict=True):
        expected: dict[int, list[float]] = {}
        for index, value in row:
            if index >= 0:
                expected.setdefault(index, []).append(value)
        assert sorted(index for index in got if index >= 0) == sorted(expected)
        for index, log in zip(got, logs, strict=True):
            whole = torch.tensor(expected[index], dtype=torch.float64).logsumexp(0) if index >= 0 else -math.inf
            torch.testing.assert_close(log, torch.as_tensor(whole, dtype=torch.float64))


def test_who_is_known_to_repeat_no_class() -> None:
    log_probs = torch.full((2, 3), -3.0)
    distinct, repeating = torch.tensor([[0, 1, -1], [4, -1, -1]]), torch.tensor([[0, 1, 2], [4, -1, 4]])
    teacher = Teacher(distinct, log_probs)
    assert teacher.is_distinct and teacher.to("cpu").is_distinct
    assert not Teacher(repeating, log_probs).is_distinct
    assert not unchecked(distinct, log_probs, None).is_distinct
    assert Teacher.from_logits(torch.randn(2, 9), 4).is_distinct
    assert Teacher.sample(torch.randn(2, 9), 20).is_distinct
    for value in (teacher, unchecked(distinct, log_probs, None)):
        said = known(value, 6, 1.0, "bucket", torch.float32)
        assert said.filled is not None and said.filled.sum(-1).tolist() == [2, 1]


def test_who_is_known_to_have_no_empty_slot() -> None:
    full = torch.tensor([[0, 1], [4, 2]])
    teacher = Teacher(full, torch.full((2, 2), -3.0))
    assert teacher.is_full and teacher.to("cpu").is_full
    assert known(teacher, 6, 1.0, "bucket", torch.float32).filled is None
    for indices in (torch.tensor([[0, 1], [4, -1]]), full[:, :0]):
        assert not Teacher(indices, torch.full(indices.shape, -3.0)).is_full
    assert not unchecked(full, torch.full((2, 2), -3.0), None).is_full
    logits = torch.randn(2, 9)
    assert Teacher.from_logits(logits, 4).is_full
    logits[0, 3:] = -math.inf
    assert not Teacher.from_logits(logits, 4).is_full
    repeating = Teacher(torch.tensor([[1, 1]]), torch.full((1, 2), -3.0))  # one of its slots is emptied
    assert repeating.is_full and known(repeating, 6, 1.0, "bucket", torch.float32).filled is not None


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_temperature_keeps_what_there_is(temperature: float) -> None:
    q = torch.tensor([[0.4, 0.3, 0.1]], dtype=torch.float64)
    teacher = Teacher(torch.tensor([[2, 0, 5]]), q.log(), torch.tensor([0.2], dtype=torch.float64).log())
    treatments = ("bucket", "uniform", "drop", "renormalize")
    bucket, *others, shares = (known(teacher, 9, temperature, missing, torch.float64) for missing in treatments)
    whole = torch.tensor([0.4, 0.3, 0.1, 0.2], dtype=torch.float64) ** (1 / temperature)
    both = torch.cat((bucket.log_q[0], bucket.log_rest)).exp()
    torch.testing.assert_close(both, whole / whole.sum())
    for said in others:
        torch.testing.assert_close(said.log_rest.exp(), torch.tensor([0.2], dtype=torch.float64))
        torch.testing.assert_close(said.log_q[0].exp(), 0.8 * whole[:3] / whole[:3].sum())
    torch.testing.assert_close(shares.log_q[0].exp(), whole[:3] / whole[:3].sum())


def test_no_class_is_left() -> None:
    for log_rest in (None, torch.tensor([-1.0])):
        teacher = Teacher(torch.tensor([[1, 0, 1]]), torch.tensor([[0.2, 0.2, 0.2]]).log(), log_rest)
        assert known(teacher, 2, 1.0, "bucket", torch.float32).log_rest == -math.inf
        assert known(teacher, 3, 1.0, "bucket", torch.float32).log_rest > -2
