"""The Triton kernels on the CPU, in Triton's interpreter, against the dense definition in float64.

Needs a process of its own: ``TRITON_INTERPRET=1`` counts when triton is imported. `make test` starts one.
"""
# ruff: noqa: E402

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1", allow_module_level=True)
triton = pytest.importorskip("triton", reason="triton is not installed")
np = pytest.importorskip("numpy")
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
    pytest.skip("this Triton's interpreter does not run loops with numpy 2.4 or newer", allow_module_level=True)

import smoothloss.functional as F
from smoothloss.backends import triton as triton_kernels
from smoothloss.backends.common import RowOptions, RowTarget
from smoothloss.testing import Inputs, assert_error_budget, eager, make_inputs, oracle, row_target

pytestmark = [
    pytest.mark.usefixtures("poison"),
    # The interpreter computes what a masked lane would, in numpy, which warns of log(0).
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

PLAIN = RowOptions()
ALL = RowOptions(label_smoothing=0.1, entropy=0.3, z_loss=0.01, logit_scale=1.7, softcap=6.0)
OPTIONS = {
    "plain": PLAIN,
    "label_smoothing": RowOptions(label_smoothing=0.1),
    "entropy": RowOptions(entropy=0.3),
    "z_loss": RowOptions(z_loss=0.01),
    "scale": RowOptions(logit_scale=0.7),
    "softcap": RowOptions(softcap=6.0),
    "all": ALL,
}


def random_grad(inputs: Inputs, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(inputs.logits), generator=generator, dtype=torch.float64).to(inputs.weights.dtype)


def two_launches(
    inputs: Inputs, options: RowOptions, grad: Tensor, inplace: bool = False, out_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, mass and gradient of forward and backward, every result poisoned beforehand."""
    loss, statistics, mass, _ = triton_kernels.forward(inputs.logits, row_target(inputs), options, "none")
    logits = inputs.logits.clone()
    out = logits if inplace else torch.full(logits.shape, torch.nan, dtype=out_dtype or logits.dtype)
    triton_kernels.backward(grad, None, logits, statistics, row_target(inputs), options, out)
    return loss, mass, out


def one_launch(inputs: Inputs, options: RowOptions, out: Tensor, logits: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return loss and mass; the gradient goes to `out`."""
    logits = inputs.logits if logits is None else logits
    (loss, _, mass, _), _ = triton_kernels.forward_backward(logits, row_target(inputs), options, out, "none")
    assert mass is not None
    return loss, mass


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12, check_dtype=False)


def expected_mass(inputs: Inputs) -> Tensor:
    filled = (inputs.indices >= 0) & (inputs.indices < inputs.logits.shape[1])
    mass = inputs.weights.where(filled, 0.0).sum(-1)
    return mass if inputs.uniform is None else mass + inputs.uniform


def test_runs_where_it_says_it_does() -> None:
    assert triton_kernels.unavailable("cpu", torch.float32) is None
    assert triton_kernels.unavailable("cpu", torch.float64) is None
    assert "interpreter" in str(triton_kernels.unavailable("cpu", torch.bfloat16))
    assert "CPU" in str(triton_kernels.unavailable("cuda", torch.float32))
    assert "int64" in str(triton_kernels.unavailable("cpu", torch.int64))


@pytest.mark.parametrize(("uniform", "inplace"), [(False, True), (True, False)])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("v", "s"), [(1, 3), (7, 5), (8, 1), (100, 21), (1003, 0), (1003, 40)])
def test_equals_the_dense_definition(v: int, s: int, name: str, uniform: bool, inplace: bool) -> None:
    inputs = make_inputs(5, v, s, dtype=torch.float64, seed=v + s, uniform=uniform)
    grad = random_grad(inputs)
    expected = oracle(inputs, OPTIONS[name], grad)
    loss, mass, d_logits = two_launches(inputs, OPTIONS[name], grad, inplace)
    assert_equal(loss, expected.loss)
    assert_equal(mass, expected_mass(inputs))
    assert_equal(d_logits, expected.grad)


@pytest.mark.parametrize("name", ["plain", "all"])
def test_rows_of_several_blocks(name: str) -> None:
    inputs = make_inputs(3, 9800, 21, dtype=torch.float64, uniform=True)
    grad = random_grad(inputs)
    expected = oracle(inputs, OPTIONS[name], grad)
    loss, _, d_logits = two_launches(inputs, OPTIONS[name], grad, inplace=True)
    assert_equal(loss, expected.loss)
    assert_equal(d_logits, expected.grad)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("s", [33, 128, 129, 300])
def test_many_entries(s: int, inplace: bool) -> None:
    inputs = make_inputs(3, 50, s, dtype=torch.float64, uniform=True)
    grad = random_grad(inputs)
    expected = oracle(inputs, ALL, grad)
    loss, _, d_logits = two_launches(inputs, ALL, grad, inplace)
    assert_equal(loss, expected.loss)
    assert_equal(d_logits, expected.grad)
    logits = inputs.logits.clone()
    one_launch(inputs, ALL, logits, logits)
    assert_equal(logits, oracle(inputs, ALL).grad)


@pytest.mark.parametrize("v", [7, 100, 1003, 9800])
@pytest.mark.parametrize("name", OPTIONS)
def test_float32_within_the_error_budget(name: str, v: int) -> None:
    inputs = make_inputs(7, v, 9, dtype=torch.float32, uniform=True, seed=v)
    grad = random_grad(inputs)
    expected, yardstick = oracle(inputs, OPTIONS[name], grad), eager(inputs, OPTIONS[name], grad)
    loss, _, d_logits = two_launches(inputs, OPTIONS[name], grad)
    assert loss.dtype == d_logits.dtype == torch.float32
    assert_error_budget(loss, yardstick.loss, expected.loss)
    assert_error_budget(d_logits, yardstick.grad, expected.grad)
    expected, yardstick = oracle(inputs, OPTIONS[name]), eager(inputs, OPTIONS[name])
    loss, _ = one_launch(inputs, OPTIONS[name], d_logits)
    assert_error_budget(loss, yardstick.loss, expected.loss)
    assert_error_budget(d_logits, yardstick.grad, expected.grad)


def test_an_offset_of_all_logits_costs_no_precision() -> None:
    inputs = make_inputs(5, 100, 9, dtype=torch.float32, ignored=0.0)
    inputs = inputs._replace(logits=(inputs.logits * 1024).round() / 1024 + 2048)
    out = torch.full_like(inputs.logits, torch.nan)
    loss, _ = one_launch(inputs, PLAIN, out)
    assert_error_budget(loss, eager(inputs).loss, oracle(inputs).loss)
    assert_error_budget(out, eager(inputs).grad, oracle(inputs).grad)
    _, _, out = two_launches(inputs, PLAIN, torch.ones(5))
    assert_error_budget(out, eager(inputs).grad, oracle(inputs).grad)


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_in_one_go(name: str, uniform: bool) -> None:
    inputs = make_inputs(6, 203, 9, dtype=torch.float64, uniform=uniform)
    expected = oracle(inputs, OPTIONS[name])
    out = torch.full_like(inputs.logits, torch.nan)
    loss, mass = one_launch(inputs, OPTIONS[name], out)
    assert_equal(loss, expected.loss)
    assert_equal(mass, expected_mass(inputs))
    assert_equal(out, expected.grad)
    logits = inputs.logits.clone()
    again, _ = one_launch(inputs, OPTIONS[name], logits, logits)
    assert torch.equal(again, loss)
    assert torch.equal(logits, out), "in place gives the same bits"


def test_the_gradient_may_have_another_dtype() -> None:
    inputs = make_inputs(4, 203, 9, dtype=torch.float64)
    grad = random_grad(inputs)
    _, _, wide = two_launches(inputs, ALL, grad)
    _, _, narrow = two_launches(inputs, ALL, grad, out_dtype=torch.float32)
    assert torch.equal(narrow, wide.float())
    out = torch.full(inputs.logits.shape, torch.nan, dtype=torch.float32)
    one_launch(inputs, ALL, out)
    assert_error_budget(out, oracle(inputs, ALL).grad.float(), oracle(inputs, ALL).grad)


def test_one_gradient_for_all_rows() -> None:
    inputs = make_inputs(4, 60, 5, dtype=torch.float64)
    one = torch.tensor(-1.7, dtype=torch.float64)
    expected = two_launches(inputs, ALL, one.expand(4).contiguous())
    for grad in (one, one.reshape(1)):
        assert torch.equal(two_launches(inputs, ALL, grad)[2], expected[2])


def test_rows_that_lie_apart() -> None:
    inputs = make_inputs(4, 60, 5, dtype=torch.float64)
    grad = random_grad(inputs)
    storage = torch.randn(4, 77, dtype=torch.float64)
    before = storage[:, 60:].clone()
    storage[:, :60] = inputs.logits
    apart = inputs._replace(logits=storage[:, :60])
    loss, statistics, *_ = triton_kernels.forward(apart.logits, row_target(apart), ALL, "none")
    triton_kernels.backward(grad, None, apart.logits, statistics, row_target(apart), ALL, apart.logits)
    assert_equal(loss, oracle(inputs, ALL).loss)
    assert_equal(storage[:, :60], oracle(inputs, ALL, grad).grad)
    assert torch.equal(storage[:, 60:], before), "nothing beside the rows is written"


@pytest.mark.parametrize("name", ["plain", "all"])
@pytest.mark.parametrize("junk", [torch.nan, torch.inf, -torch.inf])
def test_ignored_rows_are_zero_whatever_their_logits(junk: float, name: str) -> None:
    options = OPTIONS[name]
    inputs = make_inputs(6, 40, 4, dtype=torch.float64, ignored=0.0, empty=0.0)
    inputs.indices[2] = -1
    inputs.indices[4] = 40
    clean, dirty = inputs.logits, inputs.logits.clone()
    dirty[[2, 4], ::3] = junk
    grad = random_grad(inputs)
    grad[2] = torch.inf
    expected, actual = (two_launches(inputs._replace(logits=logits), options, grad) for logits in (clean, dirty))
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)
    assert actual[0][[2, 4]].eq(0).all()
    assert actual[2][[2, 4]].eq(0).all()
    _, statistics, mass, _ = triton_kernels.forward(dirty, row_target(inputs), options, "none")
    assert statistics is not None and mass is not None
    assert statistics[[2, 4]].tolist() == [[0, 1, 0]] * 2
    assert mass[[2, 4]].eq(0).all()
    out = torch.full_like(dirty, torch.nan)
    loss, _ = one_launch(inputs, options, out, dirty)
    assert loss[[2, 4]].eq(0).all()
    assert out[[2, 4]].eq(0).all()


@pytest.mark.parametrize("name", OPTIONS)
def test_no_rows(name: str) -> None:
    inputs = make_inputs(0, 40, 4, dtype=torch.float64, uniform=True)
    loss, mass, d_logits = two_launches(inputs, OPTIONS[name], random_grad(inputs))
    assert loss.shape == mass.shape == (0,)
    assert d_logits.shape == (0, 40)


def test_indices_out_of_range_are_empty_slots() -> None:
    inputs = make_inputs(4, 40, 6, dtype=torch.float64, ignored=0.0, empty=0.0)
    wild, tame = inputs.indices.clone(), inputs.indices.clone()
    wild[:, 1], wild[:, 2], wild[:, 3] = 40, 2**31 - 1, -(2**31)
    tame[:, 1:4] = -1
    grad = random_grad(inputs)
    results = [two_launches(inputs._replace(indices=indices), ALL, grad, inplace=True) for indices in (wild, tame)]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["plain", "entropy"])
def test_logits_of_minus_infinity(name: str) -> None:
    inputs = make_inputs(4, 40, 3, dtype=torch.float64, ignored=0.0, empty=0.0)
    inputs.logits[:, 5] = -torch.inf
    inputs.logits[1, :39] = -torch.inf
    inputs.indices[inputs.indices == 5] = 6
    inputs.indices[1] = 39
    inputs.indices[:, 2] = 5
    inputs.weights[:, 2] = 0.0
    loss, _, d_logits = two_launches(inputs, OPTIONS[name], random_grad(inputs))
    assert torch.isfinite(loss).all()
    assert torch.isfinite(d_logits).all()
    assert d_logits[:, 5].eq(0).all()
    inputs.weights[2, 2] = 0.5
    assert torch.equal(two_launches(inputs, OPTIONS[name], random_grad(inputs))[0].isinf(), torch.arange(4) == 2)


def test_a_nan_in_a_row_that_counts_is_seen() -> None:
    inputs = make_inputs(2, 40, 3, dtype=torch.float64, ignored=0.0, empty=0.0)
    inputs.logits[0, 17] = torch.nan
    loss, _, d_logits = two_launches(inputs, PLAIN, random_grad(inputs))
    assert loss.isnan().tolist() == [True, False]
    assert d_logits[0].isnan().all()


def test_large_logits_do_not_overflow() -> None:
    inputs = make_inputs(4, 100, 3, dtype=torch.float64, scale=1e5, ignored=0.0)
    expected = oracle(inputs, OPTIONS["entropy"])
    loss, _, d_logits = two_launches(inputs, OPTIONS["entropy"], torch.ones(4, dtype=torch.float64))
    assert_equal(loss, expected.loss)
    assert_equal(d_logits, expected.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_softcap_is_exact_for_small_and_large_logits(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e-6, -1e-3, 0.1, -0.9, 2.0, -30.0, 1e3, 0.74]], dtype=dtype)
    inputs = Inputs(logits, torch.tensor([[0, 3]], dtype=torch.int32), torch.tensor([[0.3, 0.7]], dtype=dtype), None)
    options = RowOptions(softcap=3.0)
    expected, yardstick = oracle(inputs, options), eager(inputs, options)
    loss, _, d_logits = two_launches(inputs, options, torch.ones(1, dtype=dtype))
    assert_error_budget(loss, yardstick.loss, expected.loss)
    assert_error_budget(d_logits, yardstick.grad, expected.grad)


def test_the_loss_of_a_certain_class_is_not_negative() -> None:
    # Cancellation (m lse - sum w z) or two different sums would give a small negative number here.
    logits = torch.zeros(16, 1003, dtype=torch.float32)
    logits[:, 7] = torch.linspace(5, 60, 16)
    indices = torch.full((16, 1), 7, dtype=torch.int32)
    loss, *_ = triton_kernels.forward(logits, RowTarget(indices, torch.ones(16, 1)), PLAIN, "none")
    assert loss.ge(0).all()
    statistics, _ = triton_kernels.token_statistics(logits, indices, PLAIN)
    assert statistics.log_prob.le(0).all()


@pytest.mark.parametrize("s", [0, 5, 140])
def test_backward_with_a_mass_of_its_own(s: int) -> None:
    inputs = make_inputs(5, 203, s, dtype=torch.float64)
    mass = random_grad(inputs, seed=3)
    mass[1] = 0.0
    everywhere = RowTarget(inputs.indices, inputs.weights, torch.ones(5, dtype=torch.float64))  # no row is ignored
    statistics = triton_kernels.forward(inputs.logits, everywhere, PLAIN, "none").statistics
    assert statistics is not None
    logits = inputs.logits.clone().requires_grad_()
    filled = inputs.indices >= 0
    selected = logits.gather(1, inputs.indices.where(filled, 0).long()).where(filled, 0.0)
    expected = torch.autograd.grad(
        (logits.logsumexp(-1) * mass).sum() - (selected * inputs.weights).sum(), logits, torch.tensor(1.0).double()
    )[0]
    dirty = inputs.logits.clone()
    dirty[1] = torch.nan  # its p has no weight: not read
    out = torch.full_like(dirty, torch.nan)
    one, target = torch.ones(1, dtype=torch.float64), RowTarget(inputs.indices, inputs.weights)
    triton_kernels.backward(one, None, dirty, statistics, target, PLAIN, out, mass)
    assert_equal(out, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["plain", "label_smoothing", "entropy"])
def test_a_large_common_offset_changes_nothing(name: str, dtype: torch.dtype) -> None:
    inputs = make_inputs(4, 100, 3, dtype=dtype, ignored=0.0, uniform=name != "plain")
    equal = inputs._replace(logits=torch.zeros_like(inputs.logits))
    grad = random_grad(inputs)
    expected = two_launches(equal, OPTIONS[name], grad)
    for offset in (torch.finfo(dtype).min, torch.finfo(dtype).max, -2e38, 1e15):
        moved = equal._replace(logits=torch.full_like(inputs.logits, offset))
        for one, other in zip(two_launches(moved, OPTIONS[name], grad), expected, strict=True):
            assert torch.equal(one, other)
    inputs.logits.copy_((inputs.logits * 2).round())
    expected = two_launches(inputs, OPTIONS[name], grad)
    moved = two_launches(inputs._replace(logits=inputs.logits + 2.0**20), OPTIONS[name], grad)
    torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("ignored", [-100, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_labels_equal_entries_of_weight_one(name: str, ignored: int, dtype: torch.dtype) -> None:
    inputs = make_inputs(6, 203, 1, dtype=torch.float64, uniform=True, empty=0.0)
    labels = inputs.indices[:, 0].to(dtype)
    labels[2], labels[5] = ignored, 202
    entries = inputs._replace(
        indices=labels.masked_fill(labels == ignored, -1).int()[:, None], weights=torch.ones_like(inputs.weights)
    )
    target, grad = RowTarget(labels, None, inputs.uniform, None, ignored), random_grad(inputs)
    expected = two_launches(entries, OPTIONS[name], grad)
    loss, statistics, mass, _ = triton_kernels.forward(inputs.logits, target, OPTIONS[name], "none")
    out = torch.full_like(inputs.logits, torch.nan)
    triton_kernels.backward(grad, None, inputs.logits, statistics, target, OPTIONS[name], out)
    for one, other in zip((loss, mass, out), expected, strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def quick_gradcheck() -> Iterator[None]:
    # gradcheck allocates and compares NaN-filled memory of its own under deterministic algorithms.
    torch.use_deterministic_algorithms(False)
    return


@pytest.mark.usefixtures("quick_gradcheck")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", OPTIONS)
def test_gradcheck(name: str, reduction: str) -> None:
    inputs = make_inputs(3, 11, 4, dtype=torch.float64, uniform=name in ("plain", "all"))
    options = OPTIONS[name]._asdict() | {"softcap": OPTIONS[name].softcap or None}

    def loss(logits: Tensor) -> Tensor:
        return F.sparse_cross_entropy(
            logits,
            inputs.indices,
            inputs.weights,
            uniform=inputs.uniform,
            reduction=reduction,
            impl="triton",
            **options,
        )

    assert torch.autograd.gradcheck(loss, inputs.logits.clone().requires_grad_(), fast_mode=True)
