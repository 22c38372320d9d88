"""The smoothed target: the reference against loops in plain Python, the C++ against the reference, bit for bit."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smoothloss.backends import native, reference
from smoothloss.backends.common import Candidates, TableRows
from smoothloss.ops.smoothed_target import smoothed_target
from smoothloss.testing import make_table

IGNORE = -100


def make_candidates(count: int, batch: int, length: int, num_tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return candidates with repeats, ignored positions, negative and unknown tokens, and their weights."""
    generator = torch.Generator().manual_seed(seed)
    candidates = torch.randint(num_tokens, (count, batch, length), generator=generator)
    again = torch.rand(candidates.shape, generator=generator) < 0.5
    candidates = torch.where(again, candidates[:1], candidates)
    for value, share in ((IGNORE, 0.15), (num_tokens, 0.1), (num_tokens + 2**33, 0.05)):
        candidates[torch.rand(candidates.shape, generator=generator) < share] = value
    return candidates, torch.rand(count, batch, generator=generator)


def split(candidates: Tensor, weights: Tensor | None) -> Candidates:
    """Return candidates as the ground truth and samples, each with twice its weight (1 without) times one half."""
    samples = candidates[1:].contiguous() if candidates.shape[0] > 1 else None
    if weights is None:
        weights = torch.ones(candidates.shape[:2])
    own, others = (2 * weights[0]).contiguous(), (2 * weights[1:]).contiguous()
    return Candidates(candidates[0].contiguous(), samples, own, None if samples is None else others, 0.5, IGNORE)


def by_hand(
    candidates: Tensor, weights: Tensor, table: TableRows | None, alpha: float
) -> tuple[list[dict[int, float]], list[float]]:
    """Return each position's entries by class and its tail."""
    count, batch, length = candidates.shape
    entries: list[dict[int, float]] = []
    tails: list[float] = []
    for b in range(batch):
        for t in range(length):
            row: dict[int, float] = {}
            tail = 0.0
            for j in range(count):
                token, weight = int(candidates[j, b, t]), float(weights[j, b])
                if candidates[0, b, t] == IGNORE or token < 0:
                    continue
                known = table is not None and token < table.indices.shape[0]
                row[token] = row.get(token, 0.0) + weight * (1 if table is None else 1 - alpha)
                if table is None or not known:
                    continue
                for index, share in zip(table.indices[token].tolist(), table.weights[token].tolist(), strict=True):
                    if index >= 0:
                        row[index] = row.get(index, 0.0) + weight * alpha * share
                tail += 0.0 if table.tail is None else weight * alpha * float(table.tail[token])
            entries.append(row)
            tails.append(tail)
    return entries, tails


def rows_of(mode: str | None, num_tokens: int) -> TableRows | None:
    if mode is None:
        return None
    table = make_table(num_tokens, k=5, tail=mode)
    return TableRows(table.indices, table.weights, table.tail if mode == "uniform" else None)


@pytest.mark.parametrize("mode", [None, "uniform", "renormalize"])
def test_the_reference_equals_loops(mode: str | None) -> None:
    candidates, weights = make_candidates(4, 3, 6, 30, seed=1)
    candidates = candidates.clamp(max=30)
    table = rows_of(mode, 30)
    indices, entries, uniform = reference.smoothed_target(split(candidates, weights), table, 0.3)
    expected, tails = by_hand(candidates, weights, table, 0.3)
    assert indices.dtype == torch.int32
    assert (uniform is None) == (mode != "uniform")
    for n, row in enumerate(expected):
        actual: dict[int, float] = {}
        for index, weight in zip(indices[n].tolist(), entries[n].tolist(), strict=True):
            if index >= 0:
                actual[index] = actual.get(index, 0.0) + weight
            else:
                assert weight == 0
        assert actual == pytest.approx(row, rel=1e-5, abs=1e-9)
        if uniform is not None:
            assert float(uniform[n]) == pytest.approx(tails[n], rel=1e-5, abs=1e-9)


@given(
    count=st.integers(1, 7), batch=st.integers(0, 5), length=st.integers(0, 9), seed=st.integers(0, 10**6),
    mode=st.sampled_from([None, "uniform", "renormalize"]), wide=st.booleans(), alpha=st.sampled_from([0.0, 0.3, 1.0]),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_native_equals_the_reference(
    count: int, batch: int, length: int, seed: int, mode: str | None, wide: bool, alpha: float
) -> None:
    candidates, weights = make_candidates(count, batch, length, 30, seed)
    if not wide:
        candidates = candidates.clamp(max=31).int()
    table = rows_of(mode, 30)
    given_weights = None if seed % 5 == 0 else weights
    actual = native.smoothed_target(split(candidates, given_weights), table, alpha)
    expected = reference.smoothed_target(split(candidates, given_weights), table, alpha)
    assert torch.equal(actual[0], expected[0])
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(actual[2], expected[2], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("implementation", [native, reference])
def test_without_weights_samples_share_alpha_alike(implementation: ModuleType) -> None:
    candidates, _ = make_candidates(5, 3, 4, 30, seed=2)
    target, samples = candidates[0].contiguous(), candidates[1:].contiguous()
    given = Candidates(target, samples, torch.ones(3), torch.full((4, 3), 0.25), 0.6, IGNORE)
    for one, other in zip(
        implementation.smoothed_target(given, None, 0.0),
        implementation.smoothed_target(Candidates(target, samples, alpha=0.6, ignore_index=IGNORE), None, 0.0),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("implementation", [native, reference])
def test_wide_weights_of_samples_are_rounded(implementation: ModuleType) -> None:
    candidates, weights = make_candidates(5, 3, 4, 30, seed=2)
    given = split(candidates, weights)
    wide = weights[1:].double() * 2 + 1e-12
    rounded = given._replace(sample_weights=wide.float())
    for table in (None, rows_of("uniform", 30)):
        one, other = (
            implementation.smoothed_target(drawn, table, 0.3)
            for drawn in (given._replace(sample_weights=wide), rounded)
        )
        assert one[1].dtype == torch.float32
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("impl", ["native", "reference"])
@pytest.mark.parametrize("where", ["target", "samples"])
def test_a_negative_candidate_is_an_error(impl: str, where: str) -> None:
    target, samples = torch.ones(2, 3, dtype=torch.long), torch.ones(4, 2, 3, dtype=torch.long)
    {"target": target, "samples": samples}[where][..., 1, 2] = -7
    with pytest.raises(IndexError):
        smoothed_target(Candidates(target, samples, alpha=0.5), None, 0.0, impl)
    target[..., 1, 2] = -100  # nobody looks at an ignored position
    if impl == "native":
        smoothed_target(Candidates(target, samples, alpha=0.5), None, 0.0, impl)


def test_many_threads_write_every_position() -> None:
    candidates, weights = make_candidates(6, 80, 70, 500, seed=4)
    table = rows_of("uniform", 500)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        many = native.smoothed_target(split(candidates, weights), table, 0.3)
        torch.set_num_threads(1)
        one = native.smoothed_target(split(candidates, weights), table, 0.3)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(many, one, strict=True))


def test_opcheck_and_unavailable() -> None:
    candidates, weights = make_candidates(3, 2, 4, 30, seed=5)
    candidates = candidates.clamp(max=29)
    table = rows_of("uniform", 30)
    assert table is not None
    for impl in ("reference", "native"):
        torch.library.opcheck(torch.ops.smoothloss.smoothed_target, (*split(candidates, weights), *table, 0.3, impl))
    with pytest.raises(ValueError, match="impl: got 'fast'"):
        smoothed_target(split(candidates, weights), table, 0.3, "fast")
