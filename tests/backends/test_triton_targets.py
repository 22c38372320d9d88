"""Dense rows, the smoothed target, the mean and shared programs of the Triton kernels, in Triton's interpreter.

Needs a process of its own: ``TRITON_INTERPRET=1`` counts when triton is imported. `make test` starts one.
"""
# ruff: noqa: E402

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1", allow_module_level=True)
triton = pytest.importorskip("triton", reason="triton is not installed")
np = pytest.importorskip("numpy")
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
    pytest.skip("this Triton's interpreter does not run loops with numpy 2.4 or newer", allow_module_level=True)

from smoothloss.backends import reference
from smoothloss.backends import triton as triton_kernels
from smoothloss.backends.common import Candidates, DenseRows, RowOptions, TableRows
from smoothloss.backends.triton.config import Memory, row_programs
from smoothloss.testing import (
    Inputs,
    Oracle,
    assert_error_budget,
    dense_loss,
    make_dense_rows,
    make_inputs,
    make_table,
    mixed_target,
    row_target,
)

pytestmark = [
    pytest.mark.usefixtures("poison"),
    # The interpreter computes what a masked lane would, in numpy, which warns of log(0).
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

PLAIN = RowOptions()
ALL = RowOptions(label_smoothing=0.1, entropy=0.3, z_loss=0.01, logit_scale=1.7, softcap=6.0)
OPTIONS = {"plain": PLAIN, "label_smoothing": RowOptions(label_smoothing=0.1), "all": ALL}


def expect(
    inputs: Inputs, dense: DenseRows, options: RowOptions, grad: Tensor, dtype: torch.dtype = torch.float64
) -> Oracle:
    logits = inputs.logits.to(dtype).requires_grad_()
    loss = dense_loss(logits, mixed_target(inputs, dense), options)
    return Oracle(loss.detach(), torch.autograd.grad(loss, logits, grad.to(dtype))[0])


def two_launches(
    inputs: Inputs, dense: DenseRows, options: RowOptions, grad: Tensor, inplace: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    target = row_target(inputs, dense)
    loss, statistics, mass, _ = triton_kernels.forward(inputs.logits, target, options, "none")
    logits = inputs.logits.clone()
    out = logits if inplace else torch.full_like(logits, torch.nan)
    triton_kernels.backward(grad, None, logits, statistics, target, options, out)
    return loss, mass, out


def one_launch(
    inputs: Inputs, dense: DenseRows | None, options: RowOptions, logits: Tensor, out: Tensor
) -> tuple[Tensor, Tensor]:
    (loss, _, mass, _), _ = triton_kernels.forward_backward(logits, row_target(inputs, dense), options, out, "none")
    assert mass is not None
    return loss, mass


def defined(inputs: Inputs, dense: DenseRows, options: RowOptions) -> tuple[Tensor, Tensor]:
    loss, _, mass, _ = reference.forward(inputs.logits, row_target(inputs, dense), options, "none")
    assert mass is not None
    return loss, mass


def random_grad(inputs: Inputs) -> Tensor:
    return torch.randn(len(inputs.logits), generator=torch.Generator().manual_seed(7), dtype=inputs.weights.dtype)


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12, check_dtype=False)


@pytest.mark.parametrize(("uniform", "inplace"), [(False, True), (True, False)])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(
    ("v", "s", "u", "j"),
    [(1, 3, 1, 2), (7, 5, 3, 1), (100, 21, 5, 0), (1003, 0, 4, 3), (700, 40, 9, 34), (50, 170, 6, 2)],
)  # fmt: skip
def test_dense_rows_equal_the_dense_definition(
    v: int, s: int, u: int, j: int, name: str, uniform: bool, inplace: bool
) -> None:
    options = OPTIONS[name]
    inputs = make_inputs(4, v, s, dtype=torch.float64, seed=v + s, uniform=uniform)
    dense = make_dense_rows(inputs, u, j)
    grad = random_grad(inputs)
    expected = expect(inputs, dense, options, grad)
    loss, mass, d_logits = two_launches(inputs, dense, options, grad, inplace)
    loss_of_reference, defined_mass = defined(inputs, dense, options)
    assert_equal(loss, expected.loss)
    assert_equal(loss, loss_of_reference)
    assert_equal(mass, defined_mass)
    assert_equal(d_logits, expected.grad)
    logits = inputs.logits.clone()
    out = logits if inplace else torch.full_like(logits, torch.nan)
    loss, mass = one_launch(inputs, dense, options, logits, out)
    assert_equal(loss, loss_of_reference)
    assert_equal(mass, defined_mass)
    assert_equal(out, expect(inputs, dense, options, torch.ones_like(grad)).grad)


@pytest.mark.parametrize("offset", [0, 2048])
@pytest.mark.parametrize("v", [100, 1003, 4100])
@pytest.mark.parametrize("name", OPTIONS)
def test_dense_rows_in_float32_within_the_error_budget(name: str, v: int, offset: int) -> None:
    options = OPTIONS[name] if offset == 0 else PLAIN
    inputs = make_inputs(4, v, 9, dtype=torch.float32, uniform=True, seed=v)
    inputs = inputs._replace(logits=(inputs.logits * 1024).round() / 1024 + offset)
    dense = make_dense_rows(inputs, 6, 3)
    grad = random_grad(inputs)
    expected = expect(inputs, dense, options, grad)
    yardstick = expect(inputs, dense, options, grad, torch.float32)
    loss, _, d_logits = two_launches(inputs, dense, options, grad)
    assert loss.dtype == d_logits.dtype == torch.float32
    assert_error_budget(loss, yardstick.loss, expected.loss)
    assert_error_budget(d_logits, yardstick.grad, expected.grad)


def test_a_share_of_zero_has_no_influence_where_the_logit_is_minus_infinity() -> None:
    inputs = make_inputs(4, 40, 3, dtype=torch.float64, ignored=0.0, empty=0.0)
    inputs.logits[:, [0, 5]] = -torch.inf
    inputs.logits[2, :39] = -torch.inf
    inputs.indices.fill_(39)
    dense = make_dense_rows(inputs, 5, 3)
    dense.values[:, [0, 5]] = 0.0
    dense.values[3], dense.values[3, 39] = 0.0, 1.0
    dense.values[4] = 1 / 40  # has a share everywhere, but no weight
    dense.rows.copy_(torch.tensor([0, 4, 1]))
    dense.rows[2] = torch.tensor([3, 4, 3])
    dense.weights[:, 1] = 0.0
    loss, _, d_logits = two_launches(inputs, dense, PLAIN, random_grad(inputs))
    assert torch.isfinite(loss).all()
    assert torch.isfinite(d_logits).all()
    assert_equal(loss, defined(inputs, dense, PLAIN)[0])
    dense.weights[1, 1] = 0.5
    loss = two_launches(inputs, dense, PLAIN, random_grad(inputs))[0]
    assert torch.equal(loss.isinf(), torch.arange(4) == 1)


@pytest.mark.parametrize("inplace", [False, True])
def test_rows_without_mass_are_zero_whatever_their_logits(inplace: bool) -> None:
    inputs = make_inputs(4, 1100, 3, dtype=torch.float64, ignored=0.0, empty=0.0)
    dense = make_dense_rows(inputs, 3, 2)
    inputs.indices[[1, 3]] = -1
    dense.rows[1] = -1
    dense.rows[3] = 3
    dense.rows[2] = 0
    inputs.logits[[1, 3], ::3] = torch.nan
    loss, mass, d_logits = two_launches(inputs, dense, ALL, random_grad(inputs), inplace)
    assert loss.eq(0).tolist() == mass.eq(0).tolist() == d_logits.eq(0).all(1).tolist() == [False, True, False, True]
    logits = inputs.logits.clone()
    loss, _ = one_launch(inputs, dense, ALL, logits, logits)
    assert loss.eq(0).tolist() == logits.eq(0).all(1).tolist() == [False, True, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_backward_scales_the_incoming_gradient(dtype: torch.dtype) -> None:
    inputs = make_inputs(5, 60, 5, dtype=dtype, uniform=True)
    scale = torch.tensor(0.3, dtype=dtype)
    target = row_target(inputs)
    _, statistics, *_ = triton_kernels.forward(inputs.logits, target, ALL, "none")
    for grad in (random_grad(inputs), torch.tensor(-1.7, dtype=dtype)):
        scaled, expected = torch.full_like(inputs.logits, torch.nan), torch.full_like(inputs.logits, torch.nan)
        saved = (inputs.logits, statistics, target, ALL)
        triton_kernels.backward(grad, scale, *saved, scaled)
        triton_kernels.backward(grad * scale, None, *saved, expected)
        assert torch.equal(scaled, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 7, 8192, 20001])
def test_reduce(n: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(n)
    loss = torch.rand(n, generator=generator, dtype=dtype) * 10
    mass = torch.rand(n, generator=generator, dtype=dtype).masked_fill(torch.rand(n, generator=generator) < 0.3, 0.0)
    mass[n // 2] = -1.0
    average, scale = triton_kernels.reduce(loss, mass, "mean")
    count = mass.count_nonzero()
    assert average.shape == scale.shape == ()
    assert average.dtype == scale.dtype == dtype
    torch.testing.assert_close(average, (loss.double().sum() / count).to(dtype))
    assert scale == count.to(dtype).reciprocal()
    torch.testing.assert_close((average, scale), reference.reduce(loss, mass, "mean"))
    total, one = triton_kernels.reduce(loss, mass, "sum")
    torch.testing.assert_close(total, loss.double().sum().to(dtype))
    assert one == 1 and one.dtype == dtype


@pytest.mark.parametrize("size", [0, 1, 4096, 5001])
@pytest.mark.parametrize(
    ("dtype", "out_dtype"),
    [(torch.float32, torch.float32), (torch.float32, torch.float16), (torch.float64, torch.float64)],
)
def test_scaled_copy(size: int, dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    values, factor = torch.randn(size, dtype=dtype), torch.tensor(0.37, dtype=dtype)
    scaled = triton_kernels.scaled_copy(values, factor, out_dtype)
    assert torch.equal(scaled, (values * factor).to(out_dtype))


@pytest.mark.parametrize("n", [0, 5])
def test_mean_of_nothing(n: int) -> None:
    average, scale = triton_kernels.reduce(torch.zeros(n), torch.zeros(n), "mean")
    assert average.isnan()
    assert scale == 1


def make_candidates(num_candidates: int, num_tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return candidates (J, 3, 5) that repeat, are ignored (-100 and 4), negative, or beyond `num_tokens`; weights."""
    generator = torch.Generator().manual_seed(num_candidates)
    shape = (num_candidates, 3, 5)
    candidates = torch.randint(num_tokens, shape, generator=generator)
    again = torch.rand(shape, generator=generator) < 0.5
    candidates = torch.where(again, candidates[:1], candidates)
    for odd in (-100, 4, -7, num_tokens, num_tokens + 3):
        candidates[torch.rand(shape, generator=generator) < 0.08] = odd
    candidates[0, 1, :2] = torch.tensor([-100, 4])
    return candidates.to(dtype), torch.rand(num_candidates, 3, generator=generator)


def split(candidates: Tensor, weights: Tensor | None, ignore_index: int) -> Candidates:
    """Return the first as the ground truth, the others as samples; without weights as they weigh by default."""
    samples = candidates[1:].contiguous() if len(candidates) > 1 else None
    if weights is None:
        return Candidates(candidates[0].contiguous(), samples, alpha=0.6, ignore_index=ignore_index)
    omega = None if samples is None else weights[1:].contiguous()
    return Candidates(candidates[0].contiguous(), samples, weights[0].contiguous(), omega, 0.6, ignore_index)


@pytest.mark.parametrize(("dtype", "ignore_index"), [(torch.int32, -100), (torch.int64, 4)])
@pytest.mark.parametrize("tail", [None, "uniform", "renormalize"])
@pytest.mark.parametrize(("j", "k"), [(1, 3), (5, 6), (40, 1), (10, 26)])
def test_smoothed_target(j: int, k: int, tail: str | None, dtype: torch.dtype, ignore_index: int) -> None:
    table = None
    if tail is not None:
        built = make_table(29, k=k)
        table = TableRows(built.indices, built.weights, built.tail if tail == "uniform" else None)
    candidates, weights = make_candidates(j, 29, dtype)
    for given in (weights, None):
        halves = split(candidates, given, ignore_index)
        expected = reference.smoothed_target(halves, table, 0.3)
        actual = triton_kernels.smoothed_target(halves, table, 0.3)
        assert torch.equal(actual[0], expected[0])
        torch.testing.assert_close(actual[1], expected[1])
        if halves.sample_weights is not None:  # wide ones are rounded as they are read
            wide = halves._replace(sample_weights=halves.sample_weights.double())
            assert torch.equal(triton_kernels.smoothed_target(wide, table, 0.3)[1], actual[1])
        assert (actual[2] is None) == (expected[2] is None) == (tail != "uniform")
        if tail == "uniform":
            torch.testing.assert_close(actual[2], expected[2])
    assert (expected[0] == -1).any(), "something is merged or ignored"


def test_smoothed_target_of_no_positions() -> None:
    empty = split(torch.zeros(3, 0, 5, dtype=torch.int64), torch.zeros(3, 0), -100)
    indices, weights, uniform = triton_kernels.smoothed_target(empty, None, 0.0)
    assert indices.shape == weights.shape == (0, 3)
    assert uniform is None


def test_programs_share_rows_only_where_that_keeps_rows_in_the_cache() -> None:
    h200 = Memory(132, 60 * 2**20)
    assert row_programs(8192, 128256 * 2, 1, h200) == 8192  # 34 MB at work: fit
    assert row_programs(8192, 256000 * 2, 1, h200) == 122  # as many as fit
    assert row_programs(100, 256000 * 2, 1, h200) == 100  # there are fewer rows than that
    assert row_programs(8192, 256000 * 4, 1, h200) == 8192  # not even half of the multiprocessors
    assert row_programs(8192, 32768 * 4, 4, h200) == 3 * 132  # the same number on each
    assert row_programs(8192, 32768 * 4, 4, None) == 8192
    assert row_programs(0, 256000 * 2, 1, h200) == 0
    assert row_programs(5, 0, 1, h200) == 5
    for row_bytes in range(2**16, 2**21, 99991):
        programs = row_programs(10**6, row_bytes, 1, h200)
        assert programs == 10**6 or 66 <= programs <= 132
        assert programs == 10**6 or programs * row_bytes <= h200.cache_bytes


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("v", "s", "j"), [(100, 5, 0), (700, 40, 2), (700, 170, 2)])
@pytest.mark.parametrize("n", [1, 5])
def test_programs_that_take_several_rows(
    n: int, v: int, s: int, j: int, inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_inputs(n, v, s, dtype=torch.float64, uniform=True)
    dense = make_dense_rows(inputs, 4, j) if j else None

    def run() -> tuple[Tensor, Tensor, Tensor]:
        logits = inputs.logits.clone()
        out = logits if inplace else torch.full_like(logits, torch.nan)
        loss, mass = one_launch(inputs, dense, ALL, logits, out)
        return loss, mass, out

    expected = run()
    touched = v * 8 if inplace else v * 12
    grids: list[int] = []

    def recorded(*arguments: Any) -> int:
        grids.append(row_programs(*arguments))
        return grids[-1]

    monkeypatch.setattr(triton_kernels, "memory", lambda device: Memory(3, 2 * touched + 1))
    monkeypatch.setattr(triton_kernels, "row_programs", recorded)
    actual = run()
    assert grids == [min(n, 2)]
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)
