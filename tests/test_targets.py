"""Targets: their mass, their entries, and that merging changes neither."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothloss.targets import (
    SparseTarget,
    lazy_sequence_target,
    merge_equal,
    negative_entropy,
    sequence_target,
    token_target,
)
from smoothloss.testing import dense_target, make_sequences, make_table, table_rows

B, T, V, L = 3, 5, 60, 4


def densify(target: SparseTarget) -> torch.Tensor:
    uniform = None if target.uniform is None else target.uniform.flatten()
    slots = target.indices.shape[-1]
    return dense_target(target.indices.reshape(-1, slots), target.weights.reshape(-1, slots), uniform, V)


@given(rows=st.integers(0, 4), slots=st.integers(0, 70), classes=st.integers(1, 12), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_merging_keeps_the_target_and_leaves_no_repeats(rows: int, slots: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(-1, classes, (rows, slots), generator=generator)
    weights = torch.rand(rows, slots, generator=generator, dtype=torch.float64)
    merged, merged_weights = merge_equal(indices, weights)
    torch.testing.assert_close(
        dense_target(merged, merged_weights, None, classes), dense_target(indices, weights, None, classes)
    )
    for row, weight in zip(merged.tolist(), merged_weights.tolist(), strict=True):
        filled = [index for index in row if index >= 0]
        assert len(filled) == len(set(filled))
        assert all(value == 0 for index, value in zip(row, weight, strict=True) if index < 0)


@pytest.mark.parametrize("tail", [None, "uniform", "exact"])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_every_counted_position_has_mass_one(tail: str | None, alpha: float) -> None:
    target, samples, omega = make_sequences(B, T, V, L)
    table = None if tail is None else make_table(V, tail=tail)
    counted = (target != -100).float()
    torch.testing.assert_close(token_target(target, table, alpha if table else 0.0).mass(V), counted)
    lazy = lazy_sequence_target(target, samples, omega, alpha=alpha, table=table, token_alpha=0.3)
    torch.testing.assert_close(lazy.mass(V), counted)
    exact = sequence_target(target, samples.where(target != -100, -100), omega, alpha=alpha, table=table)
    torch.testing.assert_close(exact.mass(V).sum(0), counted)


def test_exact_rows_are_those_of_the_table() -> None:
    target, _, _ = make_sequences(B, T, V, L)
    table = make_table(V, tail="exact")
    soft = token_target(target, table, 0.4)
    assert soft.rows is not None
    expected = 0.4 * table_rows(table)[target.clamp(min=0)] * (target != -100)[..., None]
    torch.testing.assert_close(soft.rows.dense(torch.float64), expected, rtol=1e-5, atol=1e-8)


def test_equal_samples_share_one_slot() -> None:
    target = torch.tensor([[4, 5]])
    samples = torch.tensor([[[4, 6]], [[4, 6]], [[7, 5]]])
    soft = lazy_sequence_target(target, samples, alpha=0.6)
    assert soft.indices.tolist() == [[[4, -1, -1, 7], [5, 6, -1, -1]]]
    torch.testing.assert_close(soft.weights, torch.tensor([[[0.8, 0.0, 0.0, 0.2], [0.6, 0.4, 0.0, 0.0]]]))


@pytest.mark.parametrize("tail", ["uniform", "exact"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_negative_entropy_is_that_of_the_dense_target(tail: str, label_smoothing: float) -> None:
    target, samples, omega = make_sequences(B, T, V, L)
    soft = lazy_sequence_target(target, samples, omega, alpha=0.5, table=make_table(V, tail=tail), token_alpha=0.3)
    q = densify(soft)
    if soft.rows is not None:
        q = q + soft.rows.dense(torch.float64).flatten(0, -2)
    q = (1 - label_smoothing) * q + label_smoothing * q.sum(-1, keepdim=True) / V
    actual = negative_entropy(soft, V, label_smoothing)
    torch.testing.assert_close(actual.flatten().double(), torch.xlogy(q, q).sum(-1), rtol=1e-5, atol=1e-5)


def test_samples_weigh_alike_by_default() -> None:
    target, samples, _ = make_sequences(B, T, V, L)
    given = lazy_sequence_target(target, samples, torch.full((L, target.shape[0]), 1 / L), alpha=0.5)
    torch.testing.assert_close(densify(lazy_sequence_target(target, samples, alpha=0.5)), densify(given))
