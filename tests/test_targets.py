"""Targets as values: what each constructor stands for, that they mix, and what can be asked of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import smoothloss.functional as F
from smoothloss import targets
from smoothloss.backends.common import merge_equal
from smoothloss.targets import Target
from smoothloss.testing import dense_target, make_sequences, make_table, table_rows

B, T, V, L = 3, 5, 60, 4
TAILS = [None, "uniform", "renormalize", "exact"]


def one_hot(y: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(y.clamp(min=0), V).double() * (y >= 0)[..., None]


def smoothed(y: Tensor, tail: str | None, alpha: float) -> Tensor:
    if tail is None:
        return one_hot(y)
    rows = table_rows(make_table(V, tail=tail))[y.clamp(min=0)] * (y >= 0)[..., None]
    return (1 - alpha) * one_hot(y) + alpha * rows


def top_k_of(teacher: Tensor, k: int) -> tuple[Tensor, Tensor]:
    log_probs, indices = teacher.log_softmax(-1).topk(k, -1)
    return indices, log_probs


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


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_constructors_equal_their_dense_definitions(tail: str | None, alpha: float) -> None:
    y, samples, omega = make_sequences(B, T, V, L)
    table = None if tail is None else make_table(V, tail=tail)
    token_alpha = 0.3 if table else 0.0
    rows = [smoothed(sample, tail, token_alpha) for sample in samples]
    weights = [weight.double()[:, None, None] for weight in omega]
    counted = (y != -100)[..., None]
    lazy = (1 - alpha) * smoothed(y, tail, token_alpha) + alpha * sum(w * r for w, r in zip(weights, rows, strict=True))
    exact = torch.stack(
        [(1 - alpha) * smoothed(y, tail, token_alpha), *(alpha * w * r for w, r in zip(weights, rows, strict=True))]
    )
    options = {"alpha": alpha, "table": table, "token_alpha": token_alpha}
    for made, expected in (
        (targets.labels(y), one_hot(y)),
        (targets.token(y, table, alpha if table else 0.0), smoothed(y, tail, alpha)),
        (targets.lazy_sequence(y, samples, omega, **options), lazy * counted),
        (targets.sequence(y, samples, omega, **options), exact),
    ):
        assert made.shape == expected.shape[:-1]
        torch.testing.assert_close(made.dense(V).double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(made.mass().double(), expected.sum(-1), rtol=1e-5, atol=1e-6)
        for eps in (0.0, 0.2):
            q = (1 - eps) * expected + eps * expected.sum(-1, keepdim=True) / V
            entropy = made.entropy(V, label_smoothing=eps).double()
            torch.testing.assert_close(entropy, -torch.xlogy(q, q).sum(-1), rtol=1e-5, atol=1e-4)


def test_entries_and_their_uniform_mass() -> None:
    indices = torch.tensor([[[3, 3, -1], [0, 5, 9]]])
    weights, uniform = torch.rand(1, 2, 3), torch.rand(1, 2)
    made = targets.entries(indices, weights, uniform)
    expected = dense_target(indices.flatten(0, 1), weights.flatten(0, 1), uniform.flatten(), 10)
    torch.testing.assert_close(made.dense(10).double().flatten(0, 1), expected)
    assert torch.equal(made.indices, indices)
    assert torch.equal(made.weights, weights)
    assert made.uniform is not None and torch.equal(made.uniform, uniform)


@pytest.mark.parametrize("missing", ["uniform", "renormalize", "drop"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_top_k(dtype: torch.dtype, temperature: float, missing: str) -> None:
    teacher = torch.randn(4, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    indices, log_probs = top_k_of(teacher, 7)
    log_probs = log_probs.to(dtype)
    indices[1, 4:], log_probs[1, 4:] = -1, torch.nan  # ragged
    indices[2], log_probs[2] = -1, 0.0  # a position without a teacher
    made = targets.top_k(indices, log_probs, temperature=temperature, missing=missing)
    for row in range(4):
        known = indices[row] >= 0
        p = log_probs[row][known].double()
        kept = p.exp().sum() if known.any() else torch.tensor(0.0).double()
        q = (p / temperature).softmax(-1) * (1 if missing == "renormalize" else kept)
        rest = (1 - kept) if missing == "uniform" and known.any() else 0.0
        expected = torch.zeros(V).double().index_add(0, indices[row][known], q) + rest / V
        torch.testing.assert_close(made.dense(V)[row].double(), expected, rtol=1e-5, atol=1e-6)
    if missing != "drop":
        torch.testing.assert_close(made.mass().double(), torch.tensor([1.0, 1.0, 0.0, 1.0]).double())


@pytest.mark.parametrize("missing", ["uniform", "renormalize", "drop"])
def test_top_k_at_its_limits(missing: str) -> None:
    """Of log-probabilities that all fall without end equal ones share alike; of a cold teacher the largest do."""
    inf = torch.inf
    indices = torch.tensor([[1, 2, -1], [1, 2, 3], [-1, -1, -1]])
    nothing = targets.top_k(indices, torch.full((3, 3), -inf), missing=missing)
    own = 1.0 if missing == "renormalize" else 0.0
    rest = 1.0 if missing == "uniform" else 0.0
    expected = torch.full((3, V), rest / V)
    expected[0, 1:3] += own / 2
    expected[1, 1:4] += own / 3
    expected[2] = 0
    torch.testing.assert_close(nothing.dense(V), expected)
    cold = targets.top_k(indices, torch.tensor([[-1.0, -2, 0], [-inf, -2, -2], [0, 0, 0]]), temperature=1e-10)
    assert cold.weights[0].tolist() == pytest.approx([math.exp(-1) + math.exp(-2), 0, 0])
    assert cold.weights[1].tolist() == pytest.approx([0, math.exp(-2), math.exp(-2)])
    assert targets.top_k(torch.ones(2, 1, dtype=torch.long), torch.full((2, 1), torch.nan)).weights.isnan().all()
    assert targets.top_k(torch.ones(2, 0, dtype=torch.long), torch.ones(2, 0)).mass().tolist() == [0, 0]


def test_a_teachers_whole_distribution_gives_a_kl_of_zero_at_the_teacher() -> None:
    teacher = torch.randn(5, 12, dtype=torch.float64)
    made = targets.top_k(*top_k_of(teacher, 12))
    loss = F.cross_entropy(teacher, made, kl=True, reduction="none")
    torch.testing.assert_close(loss, torch.zeros(5).double(), atol=1e-12, rtol=0)


PARTS: dict[str, Callable[[Tensor], Target]] = {
    "labels": targets.labels,
    "token": lambda y: targets.token(y, make_table(V), 0.4),
    "exact": lambda y: targets.token(y, EXACT, 0.4),
    "top_k": lambda y: targets.top_k(
        *top_k_of(torch.randn(*y.shape, V, generator=torch.Generator().manual_seed(1)), 6)
    ),
    "entries": lambda y: targets.entries(y.clamp(min=0)[..., None].int(), torch.full((*y.shape, 1), 2.0).double()),
}
EXACT = make_table(V, tail="exact")


@pytest.mark.parametrize("a", PARTS)
@pytest.mark.parametrize("b", PARTS)
def test_targets_mix(a: str, b: str, impl: str) -> None:
    y, _, _ = make_sequences(B, T, V, L)
    one, other = PARTS[a](y), PARTS[b](y)
    mixed = 0.25 * one + other * np.float32(0.75)
    expected = 0.25 * one.dense(V).double() + 0.75 * other.dense(V).double()
    torch.testing.assert_close(mixed.dense(V).double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mixed.mass().double(), expected.sum(-1), rtol=1e-5, atol=1e-6)
    logits = torch.randn(B, T, V, dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(logits, mixed, reduction="none", impl=impl)
    dense = -(expected * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(loss, dense, rtol=1e-5, atol=1e-5)
    grads = [torch.autograd.grad(value.sum(), logits)[0] for value in (loss, dense)]
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)


def test_a_target_serves_every_loss_alike(impl: str) -> None:
    y, samples, omega = make_sequences(B, T, V, L)
    table, options = make_table(V), {"alpha": 0.6, "token_alpha": 0.3}
    hidden, weight = torch.randn(B, T, 8), torch.randn(V, 8)
    logits = hidden @ weight.t()
    lazy = targets.lazy_sequence(y, samples, omega, table=table, **options)
    expected = F.lazy_sequence_cross_entropy(logits, y, samples, omega, table=table, impl=impl, **options)
    torch.testing.assert_close(F.cross_entropy(logits, lazy, impl=impl), expected)
    torch.testing.assert_close(F.linear_cross_entropy(hidden, weight, lazy, impl=impl), expected)
    samples = samples.where(y != -100, -100)
    exact = targets.sequence(y, samples, omega, table=table, **options)
    many = torch.randn(L + 1, B, T, V)
    expected = F.sequence_cross_entropy(many, y, samples, omega, table=table, impl=impl, **options)
    torch.testing.assert_close(F.cross_entropy(many, exact, impl=impl), expected)


def counted_by_hand(y: Tensor, samples: Tensor, omega: Tensor, alpha: float) -> int:
    """Return how many positions "mean" averages over, from its description."""
    total = 0
    for b in range(y.shape[0]):
        has_weight = [omega[sample, b] * alpha != 0 for sample in range(len(samples))]
        own = sum(int(token) != -100 for token in y[b]) if any(has_weight) or alpha < 1 else 0
        others = sum(
            any(weighs and int(sample[b, t]) != -100 for weighs, sample in zip(has_weight, samples, strict=True))
            for t in range(y.shape[1])
        )
        total += own or others
    return total


@pytest.mark.slow
@given(
    data=st.data(), num_samples=st.integers(0, 3), alpha=st.sampled_from([0.0, 0.6, 1.0]),
    ignored=st.sampled_from([0.0, 0.5, 1.0]), in_samples=st.sampled_from([0.0, 0.5, 1.0]), seed=st.integers(0, 1000),
    linear=st.booleans(), kl=st.booleans(),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_the_mean_of_exact_sequences(
    data: st.DataObject, num_samples: int, alpha: float, ignored: float, in_samples: float, seed: int, linear: bool,
    kl: bool,
) -> None:  # fmt: skip
    """Whatever is ignored, in the ground truth, in samples or in all: a mean over positions, or nan of none."""
    generator = torch.Generator().manual_seed(seed)
    y, samples, _ = make_sequences(B, T, V, 3)
    y, samples = y.clamp(min=0), samples[:num_samples]
    if data.draw(st.booleans()):  # whole sentences
        y[torch.rand(B, generator=generator) < ignored] = -100
    else:
        y[torch.rand(y.shape, generator=generator) < ignored] = -100
    samples[torch.rand(samples.shape, generator=generator) < in_samples] = -100
    omega = torch.rand(num_samples, B, generator=generator)
    omega[torch.rand(omega.shape, generator=generator) < data.draw(st.sampled_from([0.0, 0.5, 1.0]))] = 0.0
    target = targets.sequence(y, samples, omega, alpha=alpha)
    if data.draw(st.booleans()):  # with mass of something else wherever it has some: a teacher's, say
        nothing = torch.zeros(*target.shape, 1)
        other = targets.entries(nothing.int() - 1, nothing, target.mass())
        target = data.draw(st.sampled_from([0.5 * target + other, other + 0.5 * target]))
    leaves = [torch.randn(num_samples + 1, B, T, 8, generator=generator), torch.randn(V, 8, generator=generator)]
    leaves = [leaf.requires_grad_() for leaf in (leaves if linear else [leaves[0] @ leaves[1].t()])]
    function = F.linear_cross_entropy if linear else F.cross_entropy
    mean, total = (function(*leaves, target, reduction=reduction, kl=kl) for reduction in ("mean", "sum"))
    count = counted_by_hand(y, samples, omega, alpha)
    assert bool(mean.isnan()) == (count == 0)
    if count == 0:
        assert total == 0
    else:
        torch.testing.assert_close(mean, total / count)
    for one, other in zip(torch.autograd.grad(mean, leaves), torch.autograd.grad(total, leaves), strict=True):
        torch.testing.assert_close(one, other / max(count, 1))


def test_samples_without_a_ground_truth_have_a_mean() -> None:
    y, samples, _ = make_sequences(B, T, V, L)
    samples = samples.where(y != -100, -100)
    logits = torch.randn(L + 1, B, T, V)
    alone = targets.sequence(torch.full_like(y, -100), samples, alpha=0.6)
    expected = F.cross_entropy(logits, alone, reduction="sum") / (y != -100).sum()
    torch.testing.assert_close(F.cross_entropy(logits, alone), expected)
    # What is weighed out counts no more, and what is mixed in counts too.
    assert F.cross_entropy(logits, 0.0 * alone).isnan()
    none = targets.sequence(torch.full_like(y, -100), torch.full_like(samples, -100), alpha=0.6)
    assert F.cross_entropy(logits, none).isnan()
    torch.testing.assert_close(F.cross_entropy(logits, none + alone), expected)
    labels = targets.labels(torch.cat((y[None], samples)))
    for mixed in (none + labels, labels + none):
        torch.testing.assert_close(
            F.cross_entropy(logits, mixed), F.cross_entropy(logits, mixed, reduction="sum") / (y != -100).sum()
        )


def test_what_is_mixed_into_longer_samples_is_divided_by_the_ground_truths_positions() -> None:
    y, samples, _ = make_sequences(B, T, V, L)
    longer = samples.clamp(min=0)
    logits = torch.randn(L + 1, B, T, V)
    for alpha in (0.6, 1.0):
        sequences = targets.sequence(y, longer, alpha=alpha)
        teacher = targets.top_k(*top_k_of(torch.randn(L + 1, B, T, V), 6))
        uniform = targets.entries(torch.full((L + 1, B, T, 1), -1), torch.zeros(L + 1, B, T, 1), sequences.mass())
        for mixed in (sequences + uniform, 0.5 * uniform + sequences):
            total = F.cross_entropy(logits, mixed, reduction="sum")
            torch.testing.assert_close(F.cross_entropy(logits, mixed), total / (y != -100).sum())
        # What has mass of its own on positions that the ground truth ignores counts there too.
        total = F.cross_entropy(logits, sequences + teacher, reduction="sum")
        torch.testing.assert_close(F.cross_entropy(logits, sequences + teacher), total / y.numel())


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_the_order_of_a_mixture_is_of_no_account(order: tuple[int, ...]) -> None:
    """Of which positions count, too: whatever of ground truth and samples has mass in any of the parts."""
    y, samples, _ = make_sequences(B, T, V, L)
    y[0], samples[:, 1] = -100, -100
    generator = torch.Generator().manual_seed(5)
    present = torch.rand(2, L + 1, B, T, generator=generator) < 0.2
    present[:, 0, 0] = False
    present[0, 0, 0, 0] = True
    empty = torch.full((L + 1, B, T, 1), -1)
    uniform = [targets.entries(empty, torch.zeros(L + 1, B, T, 1), each.float()) for each in present]
    parts = [targets.sequence(y, samples, alpha=0.6), *uniform]
    one, two, three = (parts[place] for place in order)
    expected = (parts[0] + parts[1] + parts[2]).counted
    for mixed in (one + two + three, one + (two + three)):
        assert mixed.counted is not None and expected is not None
        assert torch.equal(mixed.counted, expected)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_the_means_of_lazy_and_exact_agree_on_what_has_no_weight(alpha: float) -> None:
    y, samples, omega = make_sequences(B, T, V, L)
    omega[:, 0] = 0.0
    logits = torch.randn(B, T, V)
    for count in (L, 0):
        lazy = targets.lazy_sequence(y, samples[:count], omega[:count], alpha=alpha)
        exact = targets.sequence(y, samples[:count].where(y != -100, -100), omega[:count], alpha=alpha)
        many = logits.expand(count + 1, B, T, V)
        torch.testing.assert_close(F.cross_entropy(many, exact), F.cross_entropy(logits, lazy), equal_nan=True)


def test_weighted_classes_of_no_weight_have_no_gradient() -> None:
    logits, y = torch.randn(B, T, V, requires_grad=True), torch.zeros(B, T, dtype=torch.long)
    loss = F.cross_entropy(logits, y, weight=torch.arange(float(V)))
    assert loss.isnan()
    assert not torch.autograd.grad(loss, logits)[0].any()


def test_equal_samples_share_one_slot() -> None:
    y = torch.tensor([[4, 5]])
    samples = torch.tensor([[[4, 6]], [[4, 6]], [[7, 5]]])
    made = targets.lazy_sequence(y, samples, alpha=0.6)
    assert made.indices.tolist() == [[[4, -1, -1, 7], [5, 6, -1, -1]]]
    torch.testing.assert_close(made.weights, torch.tensor([[[0.8, 0.0, 0.0, 0.2], [0.6, 0.4, 0.0, 0.0]]]))


def test_no_samples_leave_the_ground_truths_share() -> None:
    y, samples, _ = make_sequences(B, T, V, L)
    made = targets.lazy_sequence(y, samples[:0], alpha=0.4)
    torch.testing.assert_close(made.dense(V).double(), 0.6 * one_hot(y))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_default_dtype_is_of_no_account(dtype: torch.dtype) -> None:
    y, samples, _ = make_sequences(B, T, V, L)
    made = [targets.lazy_sequence(y, samples, alpha=0.6), targets.sequence(y, samples, alpha=0.6)]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        again = [targets.lazy_sequence(y, samples, alpha=0.6), targets.sequence(y, samples, alpha=0.6)]
        mixed = 0.5 * targets.labels(y) + 0.5 * again[0]
        dense, entropy = mixed.dense(V), mixed.entropy(V)
        loss = F.cross_entropy(torch.zeros(B, T, V, dtype=torch.float32), mixed, label_smoothing=0.1, kl=True)
    finally:
        torch.set_default_dtype(before)
    for one, other in zip(made, again, strict=True):
        assert torch.equal(one.weights, other.weights)
    assert dense.dtype == entropy.dtype == loss.dtype == torch.float32


def test_to_another_device_and_repr() -> None:
    y, samples, omega = make_sequences(B, T, V, L)
    for made in (targets.labels(y), targets.lazy_sequence(y, samples, omega, alpha=0.5, table=EXACT, token_alpha=0.3)):
        moved = made.to("meta")
        assert moved.device.type == "meta"
        assert moved.shape == made.shape
        assert moved.dense(V).shape == (B, T, V)
        assert "meta" in repr(moved) and "(3, 5)" in repr(made)


Y, SAMPLES = torch.zeros(B, T, dtype=torch.long), torch.zeros(L, B, T, dtype=torch.long)
TABLE = make_table(V)
NEGATIVE = Y.index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(-7))
LOG_PROBS = torch.zeros(L, B, T)
WRONG: dict[str, tuple[type[Exception], str, Callable[[], object]]] = {
    "labels": (TypeError, "target: got list, expected a torch.Tensor", lambda: targets.labels([1, 2])),
    "ignore_index": (TypeError, "ignore_index: got None", lambda: targets.labels(Y, ignore_index=None)),
    "alpha": (ValueError, "alpha: got 2", lambda: targets.token(Y, TABLE, 2)),
    "no table": (ValueError, "alpha: got 0.5 without a table", lambda: targets.token(Y, None, 0.5)),
    "samples": (ValueError, r"samples: got shape \(4, 3, 4\), expected \(4, 3, 5\)",
                lambda: targets.lazy_sequence(Y, SAMPLES[..., 1:], alpha=0.5)),
    "one sequence": (ValueError, r"target: got shape \(5,\), expected \(B, T\)",
                     lambda: targets.lazy_sequence(Y[0], SAMPLES, alpha=0.5)),
    "token_alpha": (ValueError, "token_alpha: got 0.5 without",
                    lambda: targets.sequence(Y, SAMPLES, alpha=1, token_alpha=0.5)),
    "sample weights": (ValueError, r"sample_weights: got shape \(3, 4\)",
                       lambda: targets.sequence(Y, SAMPLES, torch.ones(B, L), alpha=1)),
    "weights": (ValueError, r"weights: got shape \(3, 5\), expected \(4, 3, 5\)",
                lambda: targets.entries(SAMPLES, torch.ones(B, T))),
    "grad": (ValueError, "log_probs: got a tensor that requires grad",
             lambda: targets.top_k(SAMPLES, LOG_PROBS.clone().requires_grad_())),
    "missing": (ValueError, "missing: got 'bucket'", lambda: targets.top_k(SAMPLES, LOG_PROBS, missing="bucket")),
    "temperature": (ValueError, "temperature: got 0", lambda: targets.top_k(SAMPLES, LOG_PROBS, temperature=0)),
    "cold": (ValueError, r"temperature: got 1e-40, expected a number in \[1e-10, 1e\+10\]",
             lambda: targets.top_k(SAMPLES, LOG_PROBS, temperature=1e-40)),
    "sum of shapes": (ValueError, "target: got shapes", lambda: targets.labels(Y) + targets.labels(Y[0])),
    "sum of tables": (ValueError, "got targets over 60 and 7 classes",
                      lambda: targets.token(Y, TABLE, 0.1) + targets.token(Y, make_table(7, k=3), 0.1)),
    "sum of exact tails": (ValueError, "two tables with exact tails",
                           lambda: targets.token(Y, EXACT, 0.1) + targets.token(Y, make_table(V, tail="exact"), 0.1)),
    "factor": (TypeError, "factor: got '2'", lambda: targets.labels(Y) * "2"),
    "summand": (TypeError, "unsupported operand", lambda: targets.labels(Y) + 1),
    "classes": (ValueError, "num_classes: got 7, expected 60", lambda: targets.token(Y, TABLE, 0.1).dense(7)),
    "class beyond": (IndexError, r"target\[0, 0\]: got 9, expected an index below 7",
                     lambda: targets.labels(Y + 9).dense(7)),
    "class beyond, entropy": (IndexError, r"target\[0, 0\]: got 9", lambda: targets.labels(Y + 9).entropy(7)),
    "prior": (TypeError, "prior: got list", lambda: targets.labels(Y).entropy(2, prior=[0.5, 0.5])),
    "short prior": (ValueError, r"prior: got shape \(3,\), expected \(7,\)",
                    lambda: targets.labels(Y).entropy(7, prior=torch.ones(3) / 3)),
    "wide sample": (IndexError, r"samples\[0, 0, 0\]: got 4294967299",
                    lambda: targets.lazy_sequence(Y.int(), SAMPLES + 2**32 + 3, alpha=0.5).dense(V)),
    "wide sample, exact": (IndexError, r"samples\[0, 0, 0\]: got 4294967299",
                           lambda: targets.sequence(Y.int(), SAMPLES + 2**32 + 3, alpha=0.5).dense(V)),
    "wide ignore_index": (ValueError, "ignore_index: got 9223372036854775808, expected at most",
                          lambda: targets.labels(Y, ignore_index=2**63)),
    "no classes": (ValueError, "num_classes: got 0", lambda: targets.labels(Y).dense(0)),
    "negative label": (IndexError, r"target\[1, 2\]: got -7", lambda: targets.labels(NEGATIVE).dense(V)),
    "negative sample": (IndexError, r"samples\[0, 0, 0\]: got -1",
                        lambda: targets.lazy_sequence(Y, SAMPLES - 1, alpha=0.5)),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_where_it_is_built(name: str) -> None:
    error, message, build = WRONG[name]
    with pytest.raises(error, match=message):
        build()
