"""The primitive on hidden states: chunked, without the logits, and never worse than the dense definition."""

from __future__ import annotations

import pytest
import torch
from quick import slow_but
from torch import Tensor

import smoothloss.functional as F
from smoothloss.backends import unavailable
from smoothloss.backends.common import RowOptions
from smoothloss.testing import Inputs, assert_error_budget, dense_loss, dense_target, make_inputs

N, V, D, S = 23, 300, 16, 6  # V: more than two slices of the vocabulary, the smallest of which has 128 classes
OPTIONS = RowOptions(0.1, 0.3, 0.01, 1.7, 4.0)


def make_problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Inputs]:
    generator = torch.Generator().manual_seed(11)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64).to(dtype)
    weight = (torch.randn(V, D, generator=generator, dtype=torch.float64) / 2).to(dtype)
    bias = torch.randn(V, generator=generator, dtype=torch.float64).to(dtype)
    return hidden, weight, bias, make_inputs(N, V, S, dtype=dtype, uniform=True)


def dense(layer: tuple[Tensor, ...], inputs: Inputs, reduction: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return loss and gradients of the dense definition computed in `dtype`."""
    leaves = [tensor.to(dtype).requires_grad_() for tensor in layer]
    target = dense_target(inputs.indices, inputs.weights, inputs.uniform, V)
    loss = dense_loss(torch.nn.functional.linear(*leaves), target, OPTIONS)
    if reduction == "mean":
        loss = loss.sum() / target.sum(-1).count_nonzero()
    return loss.detach(), *torch.autograd.grad(loss.sum() * 1.5, leaves)


def ours(
    layer: tuple[Tensor, ...], inputs: Inputs, reduction: str, impl: str, chunk_bytes: int | None, memory: str = "fast"
) -> tuple[Tensor, ...]:
    hidden, weight, bias = (tensor.clone().requires_grad_() for tensor in layer)
    loss = F.linear_sparse_cross_entropy(
        hidden, weight, inputs.indices, inputs.weights, linear_bias=bias, uniform=inputs.uniform, reduction=reduction,
        impl=impl, chunk_bytes=chunk_bytes, memory=memory, **OPTIONS._asdict(),
    )  # fmt: skip
    return loss.detach(), *torch.autograd.grad(loss.sum() * 1.5, (hidden, weight, bias))


@pytest.mark.parametrize("chunk_rows", slow_but((5,), [1, 5, 1000]))
@pytest.mark.parametrize(("reduction", "memory"), [("mean", "fast"), ("mean", "low"), ("none", "fast")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("poison")
def test_equals_the_dense_definition(
    impl: str, dtype: torch.dtype, reduction: str, memory: str, chunk_rows: int
) -> None:
    if unavailable(impl, "cpu", dtype):
        pytest.skip("dtype")
    *layer, inputs = make_problem(dtype)
    accumulator = 8 if dtype == torch.float64 else 4
    actual = ours(tuple(layer), inputs, reduction, impl, chunk_rows * V * accumulator, memory)
    eager = dense(tuple(layer), inputs, reduction, dtype)
    oracle = dense(tuple(layer), inputs, reduction, torch.float64)
    for mine, yardstick, truth in zip(actual, eager, oracle, strict=True):
        assert_error_budget(mine, yardstick, truth)


def test_chunks_do_not_change_the_result(impl: str) -> None:
    *layer, inputs = make_problem(torch.float64)
    whole = ours(tuple(layer), inputs, "mean", impl, None)
    chunked = ours(tuple(layer), inputs, "mean", impl, 3 * V * 8)
    for one, other in zip(whole, chunked, strict=True):
        torch.testing.assert_close(one, other)


def test_gradcheck(impl: str) -> None:
    *layer, inputs = make_problem(torch.float64)
    leaves = [tensor.clone().requires_grad_() for tensor in layer]
    for reduction in ("mean", "none"):
        assert torch.autograd.gradcheck(
            lambda hidden, weight, bias, reduction=reduction: F.linear_sparse_cross_entropy(
                hidden, weight, inputs.indices, inputs.weights, linear_bias=bias, uniform=inputs.uniform,
                reduction=reduction, impl=impl, chunk_bytes=4 * V * 8, **OPTIONS._asdict(),
            ),
            leaves,
            fast_mode=True,
        )  # fmt: skip


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_a_frozen_part_gets_no_gradient(impl: str, frozen: str) -> None:
    *layer, inputs = make_problem(torch.float64)
    leaves = dict(zip(("hidden", "weight", "bias"), layer, strict=True))
    for name, tensor in leaves.items():
        tensor.requires_grad_(name != frozen)
    loss = F.linear_sparse_cross_entropy(
        leaves["hidden"], leaves["weight"], inputs.indices, inputs.weights, linear_bias=leaves["bias"], impl=impl
    )
    loss.backward()
    for name, tensor in leaves.items():
        assert (tensor.grad is None) == (name == frozen)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_backward_twice_with_retain_graph(impl: str, reduction: str) -> None:
    hidden, weight, _, inputs = make_problem(torch.float32)
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    loss = F.linear_sparse_cross_entropy(*leaves, inputs.indices, inputs.weights, reduction=reduction, impl=impl)
    grad = torch.randn_like(loss)
    first = torch.autograd.grad(loss, leaves, grad, retain_graph=True)
    second = torch.autograd.grad(loss, leaves, grad)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_small_upstream_gradients_do_not_underflow() -> None:
    if unavailable("native", "cpu", torch.bfloat16):
        pytest.skip("no native kernels")
    hidden, weight, _, inputs = make_problem(torch.bfloat16)
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    loss = F.linear_sparse_cross_entropy(*leaves, inputs.indices, inputs.weights)
    small = torch.autograd.grad(loss * 2.0**-100, leaves, retain_graph=True)
    large = torch.autograd.grad(loss, leaves)
    for one, other in zip(small, large, strict=True):
        torch.testing.assert_close(one.float() * 2.0**100, other.float())


def test_autocast_casts_like_linear(impl: str) -> None:
    if unavailable(impl, "cpu", torch.bfloat16):
        pytest.skip("no bfloat16 here")
    hidden, weight, bias, inputs = make_problem(torch.float32)
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.linear_sparse_cross_entropy(
            hidden, weight, inputs.indices, inputs.weights, linear_bias=bias, impl=impl
        )
    rounded = [tensor.bfloat16() for tensor in (hidden, weight, bias)]
    expected = F.linear_sparse_cross_entropy(
        rounded[0], rounded[1], inputs.indices, inputs.weights, linear_bias=rounded[2], impl=impl
    )
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32


def test_double_backward_raises(impl: str) -> None:
    if impl == "reference":
        pytest.skip("the reference supports it")
    hidden, weight, _, inputs = make_problem(torch.float64)
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    for reduction in ("mean", "none"):
        loss = F.linear_sparse_cross_entropy(*leaves, inputs.indices, inputs.weights, reduction=reduction, impl=impl)
        grads = torch.autograd.grad(loss.sum(), leaves, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiable once"):
            grads[0].sum().backward()


# torch.compile itself instantiates autograd functions.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_compiles_into_one_graph(impl: str, reduction: str) -> None:
    if unavailable("triton", "cpu", torch.float32) is None:
        pytest.skip("the interpreter is not compiled")
    hidden, weight, bias, inputs = make_problem(torch.float32)
    leaves = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    torch.compiler.reset()

    def function(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear_sparse_cross_entropy(
            hidden.tanh(), weight, inputs.indices, inputs.weights, linear_bias=bias, reduction=reduction, impl=impl
        )

    actual, expected = torch.compile(function, fullgraph=True, backend="aot_eager")(*leaves), function(*leaves)
    torch.testing.assert_close(actual, expected)
    grads = [torch.autograd.grad(loss.sum(), leaves) for loss in (actual, expected)]
    for mine, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_opcheck(impl: str) -> None:
    if impl == "reference":
        pytest.skip("the reference is plain torch code, no operator")
    hidden, weight, bias, inputs = make_problem(torch.float32)
    layer, entries = (
        (hidden, weight, bias),
        (inputs.indices, inputs.weights, inputs.uniform, torch.rand(V).softmax(-1), [], [], None),
    )
    for tensor in layer:
        tensor.requires_grad_()
    ops = torch.ops.smoothloss
    for reduction in ("mean", "sum"):
        arguments = (*layer, *entries, [*OPTIONS], reduction, 2**12, [True, True, False], impl, None)
        torch.library.opcheck(ops.linear_cross_entropy_with_gradients, arguments)
    how = (2**12, [True] * 3, impl)
    arguments = (*layer, *entries, [*OPTIONS], "none", *how)
    torch.library.opcheck(ops.linear_cross_entropy, arguments)
    loss, statistics, _ = (result.detach() for result in ops.linear_cross_entropy(*arguments))
    saved = (torch.randn_like(loss), None, *(tensor.detach() for tensor in layer), statistics)
    torch.library.opcheck(ops.linear_cross_entropy_backward, (*saved, *entries, None, [*OPTIONS], *how))
