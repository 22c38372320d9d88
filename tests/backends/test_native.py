"""The C++ kernels on their own: every instruction set, layouts, aliasing, repeatability, bad arguments."""

from __future__ import annotations

import functools
import itertools
import os
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quick import slow_but
from torch import Tensor

from smoothloss import _compiled
from smoothloss.backends import native
from smoothloss.backends.common import RowOptions, RowTarget
from smoothloss.backends.native import linear as native_linear
from smoothloss.ops.linear_layer import LinearLayer, column_sums, has_fast_gemm
from smoothloss.testing import (
    Inputs,
    Oracle,
    assert_error_budget,
    eager,
    make_inputs,
    oracle,
    relative_error,
    row_target,
)

CLASSES = (1, 7, 8, 100, 1003, 9800)
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
OPTIONS = {
    "plain": RowOptions(),
    "scale": RowOptions(logit_scale=1.7),
    "softcap": RowOptions(softcap=4.0),
    "entropy": RowOptions(entropy=0.3),
    "all": RowOptions(0.1, 0.3, 0.01, 0.7, 4.0),
}


@pytest.fixture(params=["baseline", "avx2", "avx512", "avx512bf16"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Force each instruction set that this machine can run."""
    if request.param not in native.instruction_sets():
        pytest.skip(f"this machine or build has no {request.param}")
    monkeypatch.setenv("SMOOTHLOSS_ISA", request.param)
    return str(request.param)


def random_grad(inputs: Inputs) -> Tensor:
    """Return a random incoming gradient, one number a row."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(inputs.logits.shape[0], generator=generator).to(inputs.weights.dtype)


def poisoned(logits: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return a buffer for the gradient that shows what was not written."""
    return torch.full_like(logits, float("nan"), dtype=dtype, memory_format=torch.contiguous_format)


def two_steps(inputs: Inputs, options: RowOptions, grad: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return loss and gradient of forward, then backward."""
    out = poisoned(inputs.logits) if out is None else out
    loss, statistics, *_ = native.forward(inputs.logits, row_target(inputs), options, "none")
    native.backward(grad, None, inputs.logits, statistics, row_target(inputs), options, out)
    return loss, out


def one_step(inputs: Inputs, options: RowOptions, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return loss and gradient of both in one go."""
    out = poisoned(inputs.logits) if out is None else out
    (loss, *_), _ = native.forward_backward(inputs.logits, row_target(inputs), options, out, "none")
    return loss, out


def run_once() -> None:
    inputs = make_inputs(2, 3, 1)
    native.forward(inputs.logits, row_target(inputs), RowOptions(), "none")


def assert_close(actual: Tensor, yardstick: Tensor, expected: Tensor) -> None:
    """Assert the error budget; in float64, where the oracle itself rounds, 1e-12 of the largest element."""
    if actual.dtype == torch.float64:
        scale = expected.abs().max().item() if expected.numel() else 0.0
        assert actual.shape == expected.shape
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12 * scale + 1e-15)
    else:
        assert_error_budget(actual, yardstick, expected)


class Problem(NamedTuple):
    """Inputs, an incoming gradient, and what the oracle and eager PyTorch make of them."""

    inputs: Inputs
    grad: Tensor
    oracle: Oracle
    eager: Oracle


@functools.cache
def solved(dtype: torch.dtype, name: str, uniform: bool, classes: int) -> Problem:
    """Return a problem, solved once for all instruction sets."""
    inputs = make_inputs(11, classes, 21, dtype=dtype, uniform=uniform, seed=classes)
    grad = random_grad(inputs)
    return Problem(inputs, grad, oracle(inputs, OPTIONS[name], grad), eager(inputs, OPTIONS[name], grad))


@pytest.mark.parametrize("uniform", slow_but((True,), [False, True]))
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_meets_the_error_budget(isa: str, dtype: torch.dtype, name: str, uniform: bool) -> None:
    options = OPTIONS[name]
    for classes in (100, 9800):
        problem = solved(dtype, name, uniform, classes)
        loss, d_logits = two_steps(problem.inputs, options, problem.grad)
        assert_close(loss, problem.eager.loss, problem.oracle.loss)
        assert_close(d_logits, problem.eager.grad, problem.oracle.grad)
        loss, d_logits = one_step(problem.inputs, options)
        assert_close(loss, problem.eager.loss, problem.oracle.loss)
        # Rows depend on their incoming gradient linearly, and that is never 0 here.
        scaled = problem.grad.double()[:, None]
        assert_close(d_logits, problem.eager.grad / scaled, problem.oracle.grad / scaled)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 5),
    classes=st.sampled_from(CLASSES),
    slots=st.integers(0, 40),
    dtype=st.sampled_from(DTYPES),
    options=st.builds(
        RowOptions,
        label_smoothing=st.sampled_from([0.0, 0.1, 1.0]),
        entropy=st.sampled_from([0.0, 0.5]),
        z_loss=st.sampled_from([0.0, 0.01]),
        logit_scale=st.sampled_from([1.0, 0.3, 2.5]),
        softcap=st.sampled_from([0.0, 5.0, 30.0]),
    ),
    uniform=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_the_oracle_on_any_problem(
    isa: str, rows: int, classes: int, slots: int, dtype: torch.dtype, options: RowOptions, uniform: bool, seed: int
) -> None:
    """Norm-wise, since single rows may err by more than eager PyTorch does by luck."""
    inputs = make_inputs(rows, classes, slots, dtype=dtype, uniform=uniform, seed=seed)
    grad = random_grad(inputs)
    expected = oracle(inputs, options, grad)
    loss, d_logits = two_steps(inputs, options, grad)
    assert loss.shape == expected.loss.shape
    assert d_logits.shape == expected.grad.shape
    accumulator_eps, eps = torch.finfo(loss.dtype).eps, torch.finfo(dtype).eps
    # What a sum of terms of this size can be off by, whatever it cancels to.
    terms = inputs.weights.abs().sum().item() * (inputs.logits.abs().max().item() if inputs.logits.numel() else 0) + 1
    terms += 0 if inputs.uniform is None else inputs.uniform.sum().item() * 20
    assert (loss - expected.loss).abs().max().item() <= 20 * accumulator_eps * terms if rows else True
    # The gradient is as large as the target's mass, the uniform part included, times the scale of the logits.
    mass = inputs.weights.abs().sum().item() + (0 if inputs.uniform is None else inputs.uniform.sum().item()) + rows
    bound = (4 * eps + 40 * accumulator_eps) * mass * max(1.0, options.logit_scale) * 3
    assert (d_logits.double() - expected.grad).norm().item() <= bound


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_without_mass_are_ignored_whatever_their_logits(isa: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(12, 100, 5, dtype=dtype, ignored=0.5, uniform=True)
    dead = (inputs.indices < 0).all(1) & (inputs.uniform == 0)
    assert 0 < dead.sum() < 12
    expected = one_step(inputs, OPTIONS["all"])
    for value in (float("nan"), float("inf"), -float("inf")):
        logits = inputs.logits.clone()
        logits[dead] = value
        loss, d_logits = one_step(inputs._replace(logits=logits), OPTIONS["all"])
        again, d_again = two_steps(inputs._replace(logits=logits), OPTIONS["all"], random_grad(inputs))
        assert torch.equal(loss, expected[0])
        assert torch.equal(d_logits, expected[1])
        assert torch.equal(again == 0, dead)
        assert torch.equal(d_again[dead], torch.zeros_like(d_again[dead]))
        assert not d_again.isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_in_a_live_row_is_seen(isa: str, dtype: torch.dtype) -> None:
    for place in (0, 50, 99):
        inputs = make_inputs(1, 100, 5, dtype=dtype, ignored=0.0)
        inputs.logits[0, place] = float("nan")
        loss, d_logits = one_step(inputs, RowOptions())
        assert loss.isnan().all()
        assert d_logits.isnan().all()


@pytest.mark.parametrize("name", OPTIONS)
def test_masked_classes_get_no_probability(isa: str, name: str) -> None:
    """Logits of -inf: p is exactly 0; a whole leading block of them must not poison the row."""
    options = OPTIONS[name]._replace(label_smoothing=0.0, softcap=0.0)
    inputs = make_inputs(3, 9800, 4, ignored=0.0, empty=0.0)
    inputs = inputs._replace(indices=inputs.indices.clamp(min=5000))
    inputs.logits[:, :5000] = -float("inf")
    loss, d_logits = two_steps(inputs, options, torch.ones(1))
    one_loss, one_d_logits = one_step(inputs, options)
    kept = inputs._replace(logits=inputs.logits[:, 5000:].contiguous(), indices=inputs.indices - 5000)
    expected = oracle(kept, options)
    assert relative_error(loss, expected.loss) < 1e-6
    assert relative_error(one_loss, expected.loss) < 1e-6
    for gradient in (d_logits, one_d_logits):
        assert torch.equal(gradient[:, :5000], torch.zeros(3, 5000))
        assert relative_error(gradient[:, 5000:], expected.grad) < 1e-6


def test_an_entry_of_weight_zero_on_a_masked_class_has_no_influence(isa: str) -> None:
    logits = torch.tensor([[0.0, 1.0, -float("inf")]])
    indices, weights = torch.tensor([[1, 2]], dtype=torch.int32), torch.tensor([[1.0, 0.0]])
    loss, _ = one_step(Inputs(logits, indices, weights, None), RowOptions())
    assert loss.item() == pytest.approx(torch.tensor([0.0, 1.0]).logsumexp(0).item() - 1, rel=1e-6)
    loss, _ = one_step(Inputs(logits, indices, weights + 1, None), RowOptions())
    assert loss.item() == float("inf")


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_is_never_negative(isa: str, dtype: torch.dtype) -> None:
    """The selected logit goes through the same arithmetic as the largest one."""
    for options in (RowOptions(), RowOptions(softcap=4.0), RowOptions(logit_scale=1.7, softcap=30.0)):
        for seed in range(20):
            inputs = make_inputs(64, 7, 1, dtype=dtype, seed=seed, scale=60.0, ignored=0.0, empty=0.0)
            best = inputs.logits.argmax(1, keepdim=True).int()
            loss, *_ = native.forward(inputs.logits, RowTarget(best, inputs.weights), options, "none")
            assert (loss >= 0).all()


@pytest.mark.parametrize("name", OPTIONS)
def test_shifted_logits_lose_nothing(isa: str, name: str) -> None:
    """Backward works from the lse, whose rounding must not be felt when the logits are far from zero."""
    options = OPTIONS[name]._replace(logit_scale=1.0, softcap=0.0, z_loss=0.0)
    inputs = make_inputs(8, 1003, 5)
    shifted = inputs._replace(logits=inputs.logits.round(decimals=3) + 1000.0)
    expected = oracle(shifted, options)
    assert relative_error(two_steps(shifted, options, torch.ones(1))[1], expected.grad) < 1e-6
    assert relative_error(one_step(shifted, options)[1], expected.grad) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_be_strided(isa: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(9, 1003, 21, dtype=dtype, uniform=True)
    wide = torch.full((9, 1100), float("nan"), dtype=dtype)
    wide[:, 31:1034] = inputs.logits
    view = wide[:, 31:1034]
    canvas = torch.full((9, 1200), 7.0, dtype=dtype)
    expected = two_steps(inputs, OPTIONS["all"], random_grad(inputs))
    loss, out = two_steps(inputs._replace(logits=view), OPTIONS["all"], random_grad(inputs), canvas[:, 5:1008])
    assert torch.equal(loss, expected[0])
    assert torch.equal(out, expected[1])
    assert (canvas[:, :5] == 7).all() and (canvas[:, 1008:] == 7).all()


def test_rows_may_be_the_same_row(isa: str) -> None:
    """An expanded tensor has row stride 0."""
    inputs = make_inputs(4, 100, 5)
    expanded = inputs._replace(logits=inputs.logits[:1].expand(4, -1))
    copied = inputs._replace(logits=expanded.logits.clone())
    for run in (lambda i: one_step(i, RowOptions()), lambda i: two_steps(i, RowOptions(), torch.ones(1))):
        assert torch.equal(run(expanded)[1], run(copied)[1])


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_equals_out_of_place(isa: str, dtype: torch.dtype, name: str) -> None:
    inputs = make_inputs(9, 1003, 21, dtype=dtype, uniform=True)
    grad = random_grad(inputs)
    for run in (lambda i, out: one_step(i, OPTIONS[name], out), lambda i, out: two_steps(i, OPTIONS[name], grad, out)):
        expected = run(inputs, None)
        logits = inputs.logits.clone()
        loss, out = run(inputs._replace(logits=logits), logits)
        assert out.data_ptr() == logits.data_ptr()
        assert torch.equal(loss, expected[0])
        assert torch.equal(out, expected[1])


@pytest.mark.parametrize(("dtype", "out_dtype"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_out_of_another_dtype(isa: str, dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    inputs = make_inputs(9, 1003, 21, dtype=dtype)
    wide = inputs._replace(logits=inputs.logits.float())
    loss, out = one_step(inputs, OPTIONS["all"], poisoned(inputs.logits, out_dtype))
    expected_loss, expected = one_step(wide, OPTIONS["all"])
    assert torch.equal(loss, expected_loss)
    assert torch.equal(out, expected.to(out_dtype))


def test_bfloat16_is_rounded_to_nearest_even_and_keeps_nan(isa: str) -> None:
    inputs = make_inputs(64, 1003, 5, ignored=0.0, uniform=True)
    single = one_step(inputs, RowOptions())[1]
    half = one_step(inputs, RowOptions(), poisoned(inputs.logits, torch.bfloat16))[1]
    assert torch.equal(half, single.bfloat16())
    for bits in (0x7FC00000, 0x7FFFFFFF, -1):  # rounding up could carry out of the last two
        inputs.logits[3] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
        half = one_step(inputs, RowOptions(), torch.zeros(64, 1003, dtype=torch.bfloat16))[1]
        assert half[3].isnan().all()
        assert not half[4:].isnan().any()


@pytest.mark.parametrize(("dtype", "smallest", "vanished"), [(torch.float32, -80, -88), (torch.float64, -700, -709)])
def test_small_probabilities_are_as_precise_as_large_ones(
    isa: str, dtype: torch.dtype, smallest: float, vanished: float
) -> None:
    """The largest logit is 0, so that no distance from it is rounded."""
    logits = torch.cat((torch.linspace(0, smallest, 1001), torch.linspace(vanished, 100 * vanished, 70))).to(dtype)
    target = torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1, dtype=dtype)
    d_logits = one_step(Inputs(logits[None], *target, None), RowOptions())[1][0]
    expected = logits.double().softmax(0)
    assert ((d_logits[1:1001] - expected[1:1001]).abs() / expected[1:1001]).max() < 8 * torch.finfo(dtype).eps
    assert not d_logits[1001:].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_do_not_depend_on_the_number_of_threads(isa: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(67, 9800, 21, dtype=dtype, uniform=True)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 8, 3):
            torch.set_num_threads(threads)
            results.append((*one_step(inputs, OPTIONS["all"]), *two_steps(inputs, OPTIONS["all"], random_grad(inputs))))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def test_the_first_index_out_of_range_is_named_and_nothing_is_written(isa: str) -> None:
    inputs = make_inputs(5, 100, 8, empty=0.5)
    for dtype, far in itertools.product((torch.int32, torch.int64), (100, 101, 2**31 - 1)):
        indices = inputs.indices.clone().to(dtype)
        indices[3, 2], indices[4, 7] = far, 100
        target, out = RowTarget(indices, inputs.weights), torch.full_like(inputs.logits, 7.0)
        for call in (
            lambda t, o: native.forward(inputs.logits, t, RowOptions(), "mean"),
            lambda t, o: native.forward(inputs.logits, t, RowOptions(), "none"),
            lambda t, o: native.forward_backward(inputs.logits, t, RowOptions(), o, "sum"),
            lambda t, o: native.token_statistics(inputs.logits, t.indices, RowOptions()),
        ):
            with pytest.raises(IndexError, match=rf"indices\[3, 2\]: got {far}, expected an index below 100"):
                call(target, out)
        assert out.eq(7).all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_negative_indices_are_empty_slots(isa: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(5, 100, 8, empty=0.5)
    below = inputs.indices.where(inputs.indices >= 0, torch.tensor([-1, -7, -(2**31), -2, -1, -3, -9, -200])).to(dtype)
    expected = one_step(inputs, RowOptions())
    assert all(map(torch.equal, one_step(inputs._replace(indices=below), RowOptions()), expected))
    if dtype == torch.int64:
        below = below.where(below >= 0, -(2**40) + 5)  # wraps around to 5 in int32
        assert all(map(torch.equal, one_step(inputs._replace(indices=below), RowOptions()), expected))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("ignored", [-100, 3])
def test_labels_equal_entries_of_weight_one(isa: str, dtype: torch.dtype, ignored: int) -> None:
    for logits_dtype in DTYPES:
        inputs = make_inputs(9, 1003, 1, dtype=logits_dtype, uniform=True, empty=0.0)
        labels = inputs.indices[:, 0].to(dtype)
        labels[2], labels[5] = ignored, 1002
        entries = inputs._replace(
            indices=labels.masked_fill(labels == ignored, -1).int()[:, None], weights=torch.ones_like(inputs.weights)
        )
        target, grad = RowTarget(labels, None, inputs.uniform, None, ignored), random_grad(inputs)
        for options in OPTIONS.values():
            out, again = poisoned(inputs.logits), poisoned(inputs.logits)
            loss, statistics, *_ = native.forward(inputs.logits, target, options, "none")
            native.backward(grad, None, inputs.logits, statistics, target, options, out)
            assert all(map(torch.equal, (loss, out), two_steps(entries, options, grad)))
            (loss, *_), some_ignored = native.forward_backward(inputs.logits, target, options, again, "none")
            assert all(map(torch.equal, (loss, again), one_step(entries, options)))
            assert not some_ignored  # there is uniform mass everywhere
    for wrong in (-1, -7, 1003, torch.iinfo(dtype).max):
        labels[4] = wrong
        with pytest.raises(IndexError, match=rf"target\[4\]: got {wrong}, expected an index below 1003"):
            native.forward(inputs.logits, target._replace(indices=labels), RowOptions(), "mean")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions(isa: str, reduction: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(40, 100, 5, dtype=dtype, ignored=0.3)
    losses, statistics, mass, scale = native.forward(inputs.logits, row_target(inputs), RowOptions(), "none")
    assert scale is None and mass is not None
    count = mass.count_nonzero()
    expected = losses.double().sum() / (count if reduction == "mean" else 1)
    loss, again, no_mass, scale = native.forward(inputs.logits, row_target(inputs), RowOptions(), reduction)
    assert no_mass is None and torch.equal(again, statistics)
    torch.testing.assert_close(loss, expected.to(loss.dtype))
    torch.testing.assert_close(scale, torch.ones_like(loss) / (count if reduction == "mean" else 1))
    assert all(map(torch.equal, native.reduce(losses, mass, reduction), (loss, scale)))
    result, some_ignored = native.forward_backward(
        inputs.logits, row_target(inputs), RowOptions(), poisoned(inputs.logits), reduction
    )
    assert some_ignored
    assert all(map(torch.equal, (result.loss, result.mass, result.scale), (loss, mass, scale)))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_large_common_offset_changes_nothing(isa: str, dtype: torch.dtype, name: str) -> None:
    options = OPTIONS[name]._replace(logit_scale=1.0, softcap=0.0, z_loss=0.0)
    inputs = make_inputs(8, 1003, 5, dtype=dtype, uniform=True)
    small = inputs._replace(logits=(inputs.logits * 2).round())  # on a grid that the offset keeps
    grad = random_grad(inputs)
    expected = two_steps(small, options, grad)
    for offset in (100.0, -100.0) if dtype == torch.bfloat16 else (2.0**20, -(2.0**20)):
        moved = small._replace(logits=small.logits + offset)
        assert torch.equal(moved.logits.double() - offset, small.logits.double())
        for actual in (two_steps(moved, options, grad), one_step(moved, options)):
            torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(two_steps(moved, options, grad)[1], expected[1], rtol=1e-5, atol=1e-7)
    equal = small._replace(logits=torch.zeros_like(small.logits))
    expected = two_steps(equal, options, grad)
    for offset in (torch.finfo(dtype).min, torch.finfo(dtype).max, -2e38, 1e15):
        moved = equal._replace(logits=torch.full_like(small.logits, offset))
        assert all(map(torch.equal, two_steps(moved, options, grad), expected))


def test_rows_of_the_lowest_number_but_for_a_few_classes(isa: str) -> None:
    for lowest in (torch.finfo(torch.float32).min, -torch.inf):
        inputs = make_inputs(4, 1003, 3, ignored=0.0, empty=0.0)
        inputs.logits[:, 7:] = lowest
        inputs = inputs._replace(indices=inputs.indices % 7)
        kept = inputs._replace(logits=inputs.logits[:, :7].contiguous())
        for steps in (lambda i: two_steps(i, RowOptions(), torch.ones(1)), lambda i: one_step(i, RowOptions())):
            loss, grad = steps(inputs)
            expected = steps(kept)
            torch.testing.assert_close(loss, expected[0])
            torch.testing.assert_close(grad[:, :7], expected[1])
            assert not grad[:, 7:].any()


def test_empty_batches_and_no_slots(isa: str) -> None:
    for rows, slots in ((0, 5), (0, 0), (3, 0)):
        inputs = make_inputs(rows, 10, slots)
        loss, out = two_steps(inputs, RowOptions(), torch.ones(1))
        assert loss.shape == (rows,)
        assert torch.equal(out, torch.zeros(rows, 10))
        statistics, _ = native.token_statistics(inputs.logits, inputs.indices, RowOptions())
        assert statistics.log_prob.shape == (rows, slots) and statistics.entropy.shape == (rows,)


def test_bad_tensors_are_refused_by_name() -> None:
    logits, indices, weights, _ = make_inputs(4, 10, 3)
    options, out = RowOptions(), torch.empty(4, 10)
    good = RowTarget(indices, weights)
    calls = {
        "logits": (logits.T, good),
        "indices": (logits, RowTarget(indices[:2], weights)),
        "weights": (logits, RowTarget(indices, weights.double())),
        "weights: got none": (logits, RowTarget(indices)),
        "uniform": (logits, RowTarget(indices, weights, torch.ones(5))),
        "contiguous": (logits, RowTarget(indices, weights.t().contiguous().t())),
        "labels a row": (logits, RowTarget(indices, weights, ignore_index=-100)),
    }
    for name, arguments in calls.items():
        with pytest.raises(ValueError, match=name):
            native.forward(*arguments, options, "none")
    for bad in (out[:2], out.half(), out.double(), out[:1].expand(4, -1)):
        with pytest.raises(ValueError, match="out"):
            native.forward_backward(logits, good, options, bad, "none")
    one, statistics = torch.ones(4), torch.ones(4, 3)
    with pytest.raises(ValueError, match="grad"):
        native.backward(torch.ones(3), None, logits, statistics, good, options, out)
    with pytest.raises(ValueError, match="statistics"):
        native.backward(one, None, logits, statistics.double(), good, options, out)
    with pytest.raises(ValueError, match="options"):
        smoothed = RowOptions(label_smoothing=0.1)
        native.backward(one, None, logits, statistics, good, smoothed, out, mass=one)
    with pytest.raises(ValueError, match="logit_scale"):
        native.forward(logits, good, RowOptions(logit_scale=0.0), "none")


def test_unknown_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOOTHLOSS_ISA", "sse9")
    with pytest.raises(ValueError, match=r"sse9.*baseline"):
        run_once()


def test_what_cannot_run_says_why() -> None:
    assert native.unavailable("cpu", torch.float32) is None
    assert "float16" in str(native.unavailable("cpu", torch.float16))
    assert "mps" in str(native.unavailable("mps", torch.float32))
    if not torch.cuda.is_available():
        assert native.unavailable("cuda", torch.float32)


@pytest.mark.skipif("SMOOTHLOSS_SANITIZED" in os.environ, reason="a sanitized process maps more than one runtime")
def test_threads_come_from_the_openmp_library_of_torch() -> None:
    """A second library would keep a pool of threads of its own: twice as many as there are cores."""
    run_once()
    try:
        with open("/proc/self/maps") as maps:  # noqa: PTH123
            runtimes = {line.split()[-1] for line in maps if "libgomp" in line or "libomp" in line}
    except FileNotFoundError:
        pytest.skip("no /proc here")
    assert len(runtimes) == 1, runtimes
    module, _ = _compiled.load("_C")
    assert module is not None
    assert module.has_openmp()


needs_widening_matmul = pytest.mark.skipif(
    not native_linear.matmul_isas(), reason="this machine or build has neither AVX512_BF16 nor AMX"
)
matmul_isas = pytest.mark.parametrize("isa", native_linear.matmul_isas())


def beside_nan(values: Tensor, more: int) -> Tensor:
    """Return the values as a part of a buffer whose other columns must not be read."""
    buffer = values.new_full((values.shape[0], values.shape[1] + more), torch.nan)
    buffer[:, : values.shape[1]] = values
    return buffer[:, : values.shape[1]]


# Full tiles of 14 or 32 rows and 32 columns, rests of both, an odd inner size, nothing to multiply, nothing at all.
@matmul_isas
@pytest.mark.parametrize(
    ("rows", "columns", "inner"),
    [
        (14, 32, 2),
        (29, 100, 64),
        (5, 37, 11),
        (1, 1, 1),
        (32, 64, 32),
        (33, 70, 7),
        (48, 33, 33),
        (3, 4, 0),
        (0, 5, 3),
        (5, 0, 3),
        (300, 999, 130),
    ],
)
def test_widening_matmul_rounds_nothing_to_bfloat16(rows: int, columns: int, inner: int, isa: str) -> None:
    generator = torch.Generator().manual_seed(1)
    # Rows that lie apart, in a buffer whose rest must stay as it is.
    a = beside_nan(torch.randn(rows, inner, generator=generator).bfloat16(), 3)
    b = beside_nan(torch.randn(columns, inner, generator=generator).bfloat16(), 1)
    buffer = torch.full((rows, columns + 5), 7.0)
    for bias in (None, torch.randn(columns, generator=generator)):
        native_linear.widening_matmul(a, b, buffer[:, :columns], bias, isa=isa)
        expected = a.double() @ b.double().t() + (0 if bias is None else bias)
        assert relative_error(buffer[:, :columns], expected) < 1e-6
        assert buffer[:, columns:].eq(7).all()


@needs_widening_matmul
def test_widening_matmul_refuses_what_does_not_fit() -> None:
    a, b, out = torch.zeros(4, 6).bfloat16(), torch.zeros(5, 6).bfloat16(), torch.zeros(4, 5)
    for name, arguments in {
        "a": (a.float(), b, out),
        "b": (a, b[:, :5], out),
        "out": (a, b, out.bfloat16()),
        "bias": (a, b, out, torch.zeros(4)),
    }.items():
        with pytest.raises(ValueError, match=f"^{name}: "):
            native_linear.widening_matmul(*arguments)
    with pytest.raises(ValueError, match="a: "):
        native_linear.widening_matmul(a.t(), b, out)
    with pytest.raises(ValueError, match=r"bfloat16_matmul: .*isa: got 'sse'"):
        native_linear.widening_matmul(a, b, out, isa="sse")


# Small integers, whose sums are exact, so that no element may differ.
@needs_widening_matmul
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_products_of_any_shape_are_exact(data: st.DataObject) -> None:
    rows, columns, inner = (data.draw(st.integers(0, most)) for most in (80, 200, 150))
    ends = [*sorted(data.draw(st.lists(st.integers(0, inner), max_size=4))), inner]
    isa = data.draw(st.sampled_from(native_linear.matmul_isas()))
    generator = torch.Generator().manual_seed(rows + 81 * columns + 16281 * inner)
    a, b, weight = (
        beside_nan(torch.randint(-4, 5, shape, generator=generator).bfloat16(), data.draw(st.integers(0, 3)))
        for shape in ((rows, inner), (inner, columns), (columns, inner))
    )
    order = torch.randperm(inner, generator=generator)
    bands = torch.full((len(ends), rows, columns), torch.nan)
    native_linear.banded_matmul(a, b, bands, order=order, ends=ends, isa=isa)
    for band, first, last in zip(bands, [0, *ends], ends, strict=False):
        assert band.equal(a[:, first:last].float() @ b[order[first:last]].float())
    out, bias = torch.full((rows, columns), torch.nan), torch.arange(float(columns))
    native_linear.widening_matmul(a, weight, out, bias, isa=isa)
    assert out.equal(a.float() @ weight.float().t() + bias)


@needs_widening_matmul
def test_products_keep_to_the_instruction_set_that_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, out = torch.ones(4, 6).bfloat16(), torch.ones(5, 6).bfloat16(), torch.zeros(4, 5)
    monkeypatch.setenv("SMOOTHLOSS_ISA", "avx512bf16")
    assert native_linear.matmul_isas() == ("avx512bf16",)
    native_linear.widening_matmul(a, b, out)
    assert out.eq(6).all()
    monkeypatch.setenv("SMOOTHLOSS_ISA", "avx2")
    assert not has_fast_gemm("cpu", torch.bfloat16)
    with pytest.raises(ValueError, match="SMOOTHLOSS_ISA"):
        native_linear.widening_matmul(a, b, out)
    inputs, weight = torch.randn(3, 6).bfloat16(), torch.randn(5, 6).bfloat16()
    layer = LinearLayer(inputs, weight, None)
    assert relative_error(layer.logits(None, torch.empty(3, 5)), inputs.double() @ weight.double().t()) < 1e-6


# Bands of every length, none, odd; rows of b in another order, more of them than are taken, and apart.
@matmul_isas
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "columns", "inner", "ends"),
    [
        (14, 32, 2, None),
        (33, 100, 64, [1, 7, 7, 40, 64]),
        (5, 37, 11, [11]),
        (1, 70, 1280, None),
        (3, 5, 0, [0, 0]),
        (0, 4, 3, [2, 3]),
        (4, 0, 3, None),
        (70, 65, 333, [0, 200, 333]),
        (40, 300, 9000, [4500, 9000]),
    ],
)
def test_banded_matmul_is_a_product_of_each_band(
    rows: int, columns: int, inner: int, ends: list[int] | None, dtype: torch.dtype, isa: str
) -> None:
    generator = torch.Generator().manual_seed(1)
    a = beside_nan(torch.randn(rows, inner, generator=generator).bfloat16(), 3)
    b = beside_nan(torch.randn(inner + 9, columns, generator=generator).bfloat16(), 1)
    for order in (None, torch.randperm(inner + 9, generator=generator)[:inner]):
        taken = b[:inner] if order is None else b
        out = torch.full((rows, columns) if ends is None else (len(ends), rows, columns), torch.nan, dtype=dtype)
        native_linear.banded_matmul(a, taken, out, order=order, ends=ends, isa=isa)
        chosen = taken.double() if order is None else taken[order].double()
        bands = [inner] if ends is None else ends
        expected = torch.stack(
            [a[:, s:e].double() @ chosen[s:e] for s, e in zip([0, *bands], bands, strict=False)]
        ).view_as(out)
        if dtype == torch.bfloat16:  # rounded once
            off = (out.float() - expected.float().bfloat16().float()).abs()
            assert not (off > expected.abs().float() * 2**-7 + 1e-5).any()
        else:
            assert not out.isnan().any()
            assert relative_error(out, expected) < 1e-6


@needs_widening_matmul
def test_banded_matmul_refuses_what_does_not_fit() -> None:
    a, b, out = torch.zeros(4, 6).bfloat16(), torch.zeros(6, 5).bfloat16(), torch.zeros(4, 5)
    order = torch.arange(6)
    for name, arguments, options in (
        ("a", (a.float(), b, out), {}),
        ("b", (a, b[:5], out), {}),
        ("out", (a, b, out.double()), {}),
        ("out", (a, b, out[None]), {}),
        ("out", (a, b, torch.zeros(5, 4).t()), {}),
        ("order", (a, b, out), {"order": order.int()}),
        ("order", (a, b, out), {"order": order[:5]}),
        ("ends", (a, b, out[None]), {"ends": [5]}),
        ("ends", (a, b, torch.zeros(2, 4, 5)), {"ends": [7, 6]}),
        ("ends", (a, b, torch.zeros(0, 4, 5)), {"ends": []}),
    ):
        with pytest.raises(ValueError, match=f"^{name}: "):
            native_linear.banded_matmul(*arguments, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (300, 70)])
def test_sums_of_columns_are_not_rounded(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    torch.testing.assert_close(
        column_sums(matrix, torch.float32).double(), matrix.double().sum(0), rtol=1e-6, atol=1e-4
    )
