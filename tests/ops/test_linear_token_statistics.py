"""Token statistics of hidden states: the same numbers as of the logits, which are never there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import smoothloss.functional as F
from smoothloss import TokenStatistics
from smoothloss.backends import unavailable
from smoothloss.backends.common import RowOptions, StatisticsGradients, accumulator_dtype
from smoothloss.testing import (
    assert_error_budget,
    dense_statistics,
    make_inputs,
    random_gradients,
    relative_error,
)

OPTIONS = {"plain": RowOptions(), "softcap": RowOptions(0, 0, 0, 1.3, 4.0)}
N, V, D, S = 13, 53, 6, 5


def make_layer(dtype: torch.dtype = torch.float64, n: int = N) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden states, weight, bias and indices."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return draw(n, D), draw(V, D), draw(V), make_inputs(n, V, S).indices


def run(
    layer: tuple[Tensor, ...], indices: Tensor, grads: StatisticsGradients, name: str = "plain", **more: object
) -> tuple[TokenStatistics, tuple[Tensor, ...]]:
    options = OPTIONS[name]
    leaves = [tensor.clone().requires_grad_() for tensor in layer]
    statistics = F.linear_token_statistics(
        leaves[0], leaves[1], indices, linear_bias=leaves[2], logit_scale=options.logit_scale,
        softcap=options.softcap or None, **more,
    )  # fmt: skip
    used = [(value, grad) for value, grad in zip(statistics, grads, strict=False) if grad is not None]
    pulled = torch.autograd.grad([value for value, _ in used], leaves, [grad for _, grad in used])
    return TokenStatistics(*(value.detach() for value in statistics)), pulled


def defined(
    layer: tuple[Tensor, ...], indices: Tensor, grads: StatisticsGradients, name: str, dtype: torch.dtype
) -> tuple[TokenStatistics, tuple[Tensor, ...]]:
    leaves = [tensor.to(dtype).requires_grad_() for tensor in layer]
    statistics = dense_statistics(torch.nn.functional.linear(*leaves), indices, OPTIONS[name])
    used = [(value, grad.to(dtype)) for value, grad in zip(statistics, grads, strict=False) if grad is not None]
    pulled = torch.autograd.grad([value for value, _ in used], leaves, [grad for _, grad in used])
    return TokenStatistics(*(value.detach() for value in statistics)), pulled


@pytest.mark.slow
@given(
    n=st.integers(0, 9), rows_a_chunk=st.integers(1, 10), name=st.sampled_from(list(OPTIONS)),
    used=st.lists(st.booleans(), min_size=4, max_size=4).filter(any),
)  # fmt: skip
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_chunks_and_any_of_the_gradients(impl: str, n: int, rows_a_chunk: int, name: str, used: list[bool]) -> None:
    *layer, indices = make_layer(n=n)
    every = random_gradients(indices, torch.float64)
    grads = StatisticsGradients(*(grad if use else None for grad, use in zip(every, used, strict=True)))
    actual, pulled = run(layer, indices, grads, name, impl=impl, chunk_bytes=V * 8 * rows_a_chunk)
    oracle, expected = defined(layer, indices, grads, name, torch.float64)
    torch.testing.assert_close(tuple(actual), tuple(oracle))
    torch.testing.assert_close(pulled, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("poison")
def test_error_budget(impl: str, dtype: torch.dtype) -> None:
    reason = unavailable(impl, "cpu", dtype)
    if reason is not None:
        pytest.skip(reason)
    *layer, indices = make_layer(dtype)
    grads = random_gradients(indices, accumulator_dtype(dtype))
    results = []
    for chunk_bytes in (None, V * 4 * 5):
        actual, pulled = run(layer, indices, grads, impl=impl, chunk_bytes=chunk_bytes)
        oracle, expected = defined(layer, indices, grads, "plain", torch.float64)
        eager, eager_pulled = defined(layer, indices, grads, "plain", dtype)
        for mine, theirs, exact in list(zip(actual, eager, oracle, strict=True))[:4]:
            assert_error_budget(mine, theirs, exact)
        for mine, theirs, exact in zip(pulled, eager_pulled, expected, strict=True):
            assert mine.dtype == dtype
            assert_error_budget(mine, theirs, exact)
        results.append(actual)
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


def test_equal_those_of_the_logits(impl: str) -> None:
    *layer, indices = make_layer()
    shaped = layer[0].reshape(1, N, D), indices.reshape(1, N, S)
    actual = F.linear_token_statistics(shaped[0], layer[1], shaped[1], linear_bias=layer[2], impl=impl)
    expected = F.token_statistics(torch.nn.functional.linear(*layer)[None], shaped[1], impl=impl)
    torch.testing.assert_close(tuple(actual), tuple(expected))


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_what_is_wanted(impl: str, wanted: tuple[bool, ...]) -> None:
    *layer, indices = make_layer()
    grads = random_gradients(indices, torch.float64)
    _, expected = run(layer, indices, grads, impl=impl)
    leaves = [tensor.clone().requires_grad_(use) for tensor, use in zip(layer, wanted, strict=True)]
    statistics = F.linear_token_statistics(leaves[0], leaves[1], indices, linear_bias=leaves[2], impl=impl)
    (pulled,) = torch.autograd.grad(statistics[:4], [leaves[wanted.index(True)]], list(grads))
    torch.testing.assert_close(pulled, expected[wanted.index(True)])


def test_positions_that_nothing_comes_back_for_may_hold_anything(impl: str) -> None:
    if impl == "reference":
        pytest.skip("plain torch code multiplies NaN by 0")
    *layer, indices = make_layer()
    indices[3] = -1
    grads = random_gradients(indices, torch.float64)._replace(log_rest=None, entropy=None, logsumexp=None)
    _, expected = run(layer, indices, grads, impl=impl)
    for value in (torch.nan, torch.inf):
        layer[0][3] = value
        for chunk_bytes in (None, V * 8 * 4):
            _, pulled = run(layer, indices, grads, impl=impl, chunk_bytes=chunk_bytes)
            torch.testing.assert_close(pulled, expected)


def test_gradcheck(impl: str) -> None:
    *layer, indices = make_layer(n=4)

    def function(*leaves: Tensor) -> tuple[Tensor, ...]:
        hidden, weight, bias = leaves
        return tuple(F.linear_token_statistics(hidden, weight, indices, linear_bias=bias, impl=impl)[:4])

    leaves = [tensor.requires_grad_() for tensor in layer]
    assert torch.autograd.gradcheck(function, leaves, check_batched_grad=True, fast_mode=True)
    if impl == "reference":
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)
        return
    (grad, *_) = torch.autograd.grad(function(*leaves)[2].sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        grad.sum().backward()


@pytest.mark.slow
def test_torch_func_and_compile(impl: str) -> None:
    *layer, indices = make_layer(n=4)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        statistics = F.linear_token_statistics(hidden, weight, indices.long(), chunk_bytes=V * 16, impl=impl)
        return statistics.log_prob.sum() + statistics.entropy.sum() * statistics.log_rest.exp().sum()

    leaves = [tensor.clone().requires_grad_() for tensor in layer[:2]]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    torch.testing.assert_close(torch.func.grad(loss, (0, 1))(*layer[:2]), expected)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(*leaves), leaves), expected)


def test_opcheck(impl: str) -> None:
    if impl == "reference":
        pytest.skip("the reference is plain torch code, no operator")
    *layer, indices = make_layer(torch.float32, n=4)
    leaves, ops = [tensor.requires_grad_() for tensor in layer], torch.ops.smoothloss
    how = (1.3, 4.0, V * 8, [True, True, False], impl)
    torch.library.opcheck(ops.linear_token_statistics, (*leaves, indices, *how))
    saved = ops.linear_token_statistics(*leaves, indices, *how)[-1].detach()
    grads = [*random_gradients(indices, torch.float32)[:2], None, None]
    constants = [leaf.detach() for leaf in leaves]
    torch.library.opcheck(ops.linear_token_statistics_backward, (*grads, *constants, indices, saved, *how))


def test_autocast_casts_as_it_does_linear(impl: str) -> None:
    *layer, indices = make_layer(torch.float32)
    narrow = [tensor.bfloat16() for tensor in layer]
    expected = F.linear_token_statistics(narrow[0], narrow[1], indices, linear_bias=narrow[2], impl=impl)
    with torch.autocast("cpu", torch.bfloat16):
        actual = F.linear_token_statistics(layer[0], layer[1], indices, linear_bias=layer[2], impl=impl)
    assert all(map(torch.equal, actual, expected))
    assert relative_error(actual.entropy, F.token_statistics(torch.nn.functional.linear(*layer), indices).entropy) < 0.1
