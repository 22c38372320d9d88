"""The primitive on logits, every implementation against the dense definition in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import smoothloss.functional as F
from smoothloss.backends import unavailable
from smoothloss.backends.common import RowOptions
from smoothloss.ops.similarity_rows import SimilarityMixture
from smoothloss.targets import token
from smoothloss.testing import (
    Inputs,
    assert_error_budget,
    eager,
    make_dense_rows,
    make_inputs,
    make_table,
    oracle,
)

OPTIONS = {
    "plain": RowOptions(),
    "label_smoothing": RowOptions(label_smoothing=0.1),
    "entropy": RowOptions(entropy=0.3),
    "z_loss": RowOptions(z_loss=0.01),
    "scale": RowOptions(logit_scale=1.7),
    "softcap": RowOptions(softcap=4.0),
    "all": RowOptions(0.1, 0.3, 0.01, 1.7, 4.0),
}


def keywords(options: RowOptions) -> dict[str, float | None]:
    """Return the options as keywords of the public functions."""
    return options._asdict() | {"softcap": options.softcap or None}


def run(inputs: Inputs, options: RowOptions, grad: Tensor, impl: str, **more: object) -> tuple[Tensor, Tensor]:
    """Return loss and gradient of the public function."""
    logits = inputs.logits.clone().requires_grad_()
    loss = F.sparse_cross_entropy(
        logits, inputs.indices, inputs.weights, uniform=inputs.uniform, reduction="none", impl=impl,
        **keywords(options), **more,
    )  # fmt: skip
    return loss.detach(), torch.autograd.grad(loss, logits, grad)[0]


def random_grad(inputs: Inputs) -> Tensor:
    """Return a random incoming gradient, one number a row."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(inputs.weights.shape[0], generator=generator, dtype=torch.float64).to(inputs.weights.dtype)


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("poison")
def test_equals_the_dense_definition(impl: str, dtype: torch.dtype, name: str, uniform: bool) -> None:
    reason = unavailable(impl, "cpu", dtype)
    if reason is not None:
        pytest.skip(reason)
    inputs, options = make_inputs(13, 203, 9, dtype=dtype, uniform=uniform), OPTIONS[name]
    grad = random_grad(inputs)
    loss, d_logits = run(inputs, options, grad, impl)
    expected, yardstick = oracle(inputs, options, grad), eager(inputs, options, grad)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_error_budget(loss, yardstick.loss, expected.loss)
    assert_error_budget(d_logits, yardstick.grad, expected.grad)


@given(
    v=st.sampled_from([1, 7, 8, 100, 1003, 9800]),
    n=st.integers(0, 5),
    s=st.integers(0, 20),
    seed=st.integers(0, 2**20),
    uniform=st.booleans(),
    name=st.sampled_from(list(OPTIONS)),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(impl: str, v: int, n: int, s: int, seed: int, uniform: bool, name: str) -> None:
    inputs = make_inputs(n, v, s, dtype=torch.float64, seed=seed, uniform=uniform)
    grad = random_grad(inputs)
    loss, d_logits = run(inputs, OPTIONS[name], grad, impl)
    expected = oracle(inputs, OPTIONS[name], grad)
    torch.testing.assert_close(loss, expected.loss, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(d_logits, expected.grad, rtol=1e-11, atol=1e-12)


def test_ignored_rows_have_no_influence(impl: str) -> None:
    inputs = make_inputs(8, 50, 4, dtype=torch.float64, ignored=0.0, empty=0.0)
    indices = inputs.indices.clone()
    indices[2] = -1
    logits = inputs.logits.clone()
    clean = run(Inputs(logits, indices, inputs.weights, None), OPTIONS["all"], torch.ones(8).double(), impl)
    logits[2] = torch.nan
    logits[2, 3] = torch.inf
    dirty = run(Inputs(logits, indices, inputs.weights, None), OPTIONS["all"], torch.ones(8).double(), impl)
    assert torch.equal(dirty[0], clean[0])
    assert torch.equal(dirty[1], clean[1])
    assert dirty[0][2] == 0
    assert dirty[1][2].eq(0).all()


def test_a_class_ruled_out_by_an_infinite_logit(impl: str) -> None:
    logits = torch.randn(3, 40, dtype=torch.float64)
    logits[:, 5] = -torch.inf
    inputs = make_inputs(3, 40, 4, dtype=torch.float64, ignored=0.0)
    indices = inputs.indices.where(inputs.indices != 5, 6)
    loss, grad = run(inputs._replace(logits=logits, indices=indices), RowOptions(), torch.ones(3).double(), impl)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(grad).all()
    assert grad[:, 5].eq(0).all()


def test_large_logits_do_not_overflow(impl: str) -> None:
    inputs = make_inputs(4, 100, 5, ignored=0.0, scale=3e4)
    grad = random_grad(inputs)
    loss, d_logits = run(inputs, RowOptions(), grad, impl)
    expected, yardstick = oracle(inputs, RowOptions(), grad), eager(inputs, RowOptions(), grad)
    assert_error_budget(loss, yardstick.loss, expected.loss)
    assert_error_budget(d_logits, yardstick.grad, expected.grad)


def test_the_loss_of_a_certain_prediction_is_not_negative(impl: str) -> None:
    logits = torch.full((64, 1000), -60.0)
    logits[torch.arange(64), torch.arange(64)] = 40.0
    loss = F.cross_entropy(logits, torch.arange(64), reduction="none", impl=impl)
    assert (loss >= 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions_and_incoming_scalars(impl: str, reduction: str) -> None:
    inputs = make_inputs(12, 70, 6, dtype=torch.float64, uniform=True)
    logits = inputs.logits.clone().requires_grad_()
    loss = F.sparse_cross_entropy(
        logits, inputs.indices, inputs.weights, uniform=inputs.uniform, reduction=reduction, impl=impl
    )
    (grad,) = torch.autograd.grad(loss * -2.5, logits)
    expected = oracle(inputs)
    count = expected.grad.abs().sum(-1).count_nonzero() if reduction == "mean" else 1
    torch.testing.assert_close(loss, expected.loss.sum() / count)
    torch.testing.assert_close(grad, -2.5 * expected.grad / count)


def test_rows_that_are_slices_of_a_wider_tensor(impl: str) -> None:
    inputs = make_inputs(6, 33, 4, dtype=torch.float64)
    wide = torch.full((6, 50), torch.nan, dtype=torch.float64)
    wide[:, 7:40] = inputs.logits
    base = wide.requires_grad_()
    loss = F.sparse_cross_entropy(base[:, 7:40], inputs.indices, inputs.weights, reduction="sum", impl=impl)
    (grad,) = torch.autograd.grad(loss, base)
    torch.testing.assert_close(loss, oracle(inputs).loss.sum())
    torch.testing.assert_close(grad[:, 7:40], oracle(inputs).grad)
    transposed = inputs.logits.t().contiguous().t()
    loss = F.sparse_cross_entropy(transposed, inputs.indices, inputs.weights, reduction="sum", impl=impl)
    torch.testing.assert_close(loss, oracle(inputs).loss.sum())


def test_gradcheck(impl: str) -> None:
    inputs = make_inputs(5, 11, 4, dtype=torch.float64, uniform=True)
    for options in OPTIONS.values():
        for reduction in ("none", "mean"):
            assert torch.autograd.gradcheck(
                lambda z, options=options, reduction=reduction: F.sparse_cross_entropy(
                    z, inputs.indices, inputs.weights, uniform=inputs.uniform, reduction=reduction, impl=impl,
                    **keywords(options),
                ),
                inputs.logits.clone().requires_grad_(),
                fast_mode=True,
            )  # fmt: skip


def test_double_backward_is_supported_by_the_reference_alone(impl: str) -> None:
    inputs = make_inputs(4, 9, 3, dtype=torch.float64)

    def function(z: Tensor) -> Tensor:
        return F.sparse_cross_entropy(z, inputs.indices, inputs.weights, entropy=0.2, impl=impl)

    logits = inputs.logits.clone().requires_grad_()
    if impl == "reference":
        assert torch.autograd.gradgradcheck(function, logits)
        return
    (grad,) = torch.autograd.grad(function(logits), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once; use impl='reference'"):
        grad.sum().backward()


def test_backward_twice_with_retain_graph(impl: str) -> None:
    inputs = make_inputs(6, 40, 5)
    logits = inputs.logits.clone().requires_grad_()
    loss = F.sparse_cross_entropy(logits, inputs.indices, inputs.weights, impl=impl)
    first = torch.autograd.grad(loss, logits, torch.tensor(3.0), retain_graph=True)[0].clone()
    second = torch.autograd.grad(loss, logits, torch.tensor(3.0))[0]
    assert torch.equal(first, second)


def test_inplace_writes_over_the_logits_once() -> None:
    reason = unavailable("native", "cpu", torch.float32)
    if reason is not None:
        pytest.skip(reason)
    inputs = make_inputs(6, 40, 5)
    expected = run(inputs, RowOptions(), torch.ones(6), "native")[1]
    logits = inputs.logits.clone().requires_grad_()
    loss = F.sparse_cross_entropy(logits, inputs.indices, inputs.weights, reduction="sum", inplace=True, impl="native")
    (grad,) = torch.autograd.grad(loss, logits, retain_graph=True)
    assert torch.equal(grad, expected)
    assert grad.data_ptr() == logits.data_ptr()
    with pytest.raises(RuntimeError, match="overwritten by their gradient"):
        loss.backward()


def test_inplace_is_seen_by_whoever_saved_the_logits() -> None:
    reason = unavailable("native", "cpu", torch.float32)
    if reason is not None:
        pytest.skip(reason)
    inputs = make_inputs(6, 40, 5)
    leaf = inputs.logits.clone().requires_grad_()
    logits = leaf.exp()  # its backward needs its output, which the loss gives away
    loss = F.sparse_cross_entropy(logits, inputs.indices, inputs.weights, inplace=True, impl="native")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_repeatable_bit_for_bit(impl: str) -> None:
    inputs = make_inputs(40, 500, 24, uniform=True)
    grad = random_grad(inputs)
    first = run(inputs, OPTIONS["all"], grad, impl)
    for _ in range(3):
        again = run(inputs, OPTIONS["all"], grad, impl)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


def test_autocast_gives_a_float32_loss(impl: str) -> None:
    if unavailable(impl, "cpu", torch.bfloat16) is not None:
        pytest.skip("no bfloat16 here")
    inputs = make_inputs(6, 30, 4, ignored=0.0)
    hidden, weight = torch.randn(6, 8), torch.randn(30, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        logits = torch.nn.functional.linear(hidden, weight)
        loss = F.sparse_cross_entropy(logits, inputs.indices, inputs.weights, impl=impl)
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    loss.backward()
    assert weight.grad is not None and torch.isfinite(weight.grad).all()


# torch.compile itself instantiates autograd functions.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_into_one_graph(impl: str) -> None:
    inputs = make_inputs(6, 40, 5, uniform=True)
    torch.compiler.reset()

    def function(z: Tensor) -> Tensor:
        return F.sparse_cross_entropy(
            z * 2, inputs.indices, inputs.weights, uniform=inputs.uniform, label_smoothing=0.1, kl=True, impl=impl
        )

    logits = inputs.logits.clone().requires_grad_()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    expected, actual = function(logits), compiled(logits)
    torch.testing.assert_close(actual, expected)
    grads = [torch.autograd.grad(value, logits)[0] for value in (actual, expected)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_opcheck(impl: str, reduction: str) -> None:
    if impl == "reference":
        pytest.skip("the reference is plain torch code, no operator")
    inputs = make_inputs(4, 20, 3, uniform=True)
    ops = torch.ops.smoothloss
    options = OPTIONS["all"]
    mixture = token(torch.tensor([3, 4, 5, 6]), make_table(20, tail="exact"), 0.3).flat.source
    assert isinstance(mixture, SimilarityMixture)
    logits = inputs.logits.requires_grad_()
    for entries in (
        (inputs.indices, inputs.weights, inputs.uniform, None, [], [], None),
        (inputs.indices, inputs.weights, inputs.uniform, torch.rand(20).softmax(-1), [], [], None),
        (torch.tensor([3, -100, 0, 19]), None, None, None, [], [], -100),
        (inputs.indices, inputs.weights, None, None, list(make_dense_rows(inputs, 3, 2)), [], None),
        (inputs.indices, inputs.weights, None, None, *mixture.pack(), None),
    ):
        torch.library.opcheck(ops.cross_entropy, (logits, *entries, [*options], reduction, impl))
        _, statistics, _ = ops.cross_entropy(inputs.logits, *entries, [*options], reduction, impl)
        grad = torch.randn(4 if reduction == "none" else 1)
        saved = (torch.tensor(0.5), logits.detach(), statistics.detach())
        torch.library.opcheck(ops.cross_entropy_backward, (grad, *saved, *entries, None, [*options], impl))


def test_kl_subtracts_the_targets_entropy(impl: str) -> None:
    inputs = make_inputs(9, 30, 6, dtype=torch.float64, uniform=True)
    arguments = (inputs.logits, inputs.indices, inputs.weights)
    options = {"uniform": inputs.uniform, "label_smoothing": 0.1, "impl": impl}
    expected = oracle(inputs, RowOptions(label_smoothing=0.1)).loss
    from smoothloss.testing import dense_target

    q = dense_target(inputs.indices, inputs.weights, inputs.uniform, 30)
    q = 0.9 * q + 0.1 * q.sum(-1, keepdim=True) / 30
    expected = expected + torch.xlogy(q, q).sum(-1)
    torch.testing.assert_close(F.sparse_cross_entropy(*arguments, kl=True, reduction="none", **options), expected)
    count = q.sum(-1).count_nonzero()
    torch.testing.assert_close(F.sparse_cross_entropy(*arguments, kl=True, **options), expected.sum() / count)


def test_kl_of_the_targets_own_distribution_is_zero(impl: str) -> None:
    q = torch.rand(5, 12, dtype=torch.float64).softmax(-1)
    indices = torch.arange(12).expand(5, 12).contiguous()
    loss = F.sparse_cross_entropy(q.log(), indices, q, kl=True, reduction="none", impl=impl)
    torch.testing.assert_close(loss, torch.zeros(5, dtype=torch.float64), atol=1e-14, rtol=0)
