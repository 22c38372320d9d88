"""What only a GPU can show of the linear op: half precision, graphs, streams, memory. Through the public functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import smoothloss.functional as F
from smoothloss.backends.common import RowOptions
from smoothloss.testing import Inputs, assert_error_budget, dense_loss, dense_target, make_inputs, make_table

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available"),
]

PLAIN = RowOptions()
ALL = RowOptions(label_smoothing=0.1, entropy=0.3, z_loss=0.01, logit_scale=1.7, softcap=30.0)
D = 256


@pytest.fixture
def impl(gpu_impl: str) -> str:
    return gpu_impl


Layer = tuple[Tensor, Tensor, Tensor]


def make_layer(n: int, v: int, dtype: torch.dtype, seed: int = 0) -> Layer:
    """Return hidden states (N, D), weight (V, D) and bias (V,); the logits have a standard deviation of about 3."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, D, generator=generator)
    weight = torch.randn(v, D, generator=generator) * 3 / D**0.5
    bias = torch.randn(v, generator=generator) / 2
    return hidden.to("cuda", dtype), weight.to("cuda", dtype), bias.to("cuda", dtype)


def loss_of(layer: Layer, inputs: Inputs, options: RowOptions, impl: str, reduction: str, **keywords: Any) -> Tensor:
    hidden, weight, bias = layer
    return F.linear_sparse_cross_entropy(
        hidden, weight, inputs.indices, inputs.weights, linear_bias=bias, uniform=inputs.uniform, reduction=reduction,
        impl=impl, **options._asdict() | {"softcap": options.softcap or None}, **keywords,
    )  # fmt: skip


def run(
    layer: Layer, inputs: Inputs, options: RowOptions, impl: str, reduction: str, grad: Tensor, **keywords: Any
) -> tuple[Tensor, ...]:
    """Return the loss and the gradients of hidden states, weight and bias."""
    leaves = tuple(tensor.detach().requires_grad_() for tensor in layer)
    loss = loss_of((leaves[0], leaves[1], leaves[2]), inputs, options, impl, reduction, **keywords)
    return loss.detach(), *torch.autograd.grad(loss, leaves, grad)


def defined(
    layer: Layer, inputs: Inputs, options: RowOptions, reduction: str, grad: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Return the same from the dense definition in `dtype`: the oracle in float64, else eager PyTorch."""
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in layer]
    target = dense_target(*inputs[1:], leaves[1].shape[0])
    loss = dense_loss(torch.nn.functional.linear(*leaves), target, options)
    if reduction == "mean":
        loss = loss.sum() / target.sum(-1).count_nonzero()
    return loss.detach(), *torch.autograd.grad(loss, leaves, grad.to(loss.dtype))


@pytest.mark.parametrize(("reduction", "memory"), [("mean", "fast"), ("mean", "low"), ("none", "fast")])
@pytest.mark.parametrize("options", [PLAIN, ALL], ids=["plain", "all"])
@pytest.mark.parametrize(("v", "s"), [(1003, 5), (9800, 126), (32000, 300)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.usefixtures("poison")
def test_error_budget(
    impl: str, dtype: torch.dtype, v: int, s: int, options: RowOptions, reduction: str, memory: str
) -> None:
    layer, inputs = make_layer(500, v, dtype), make_inputs(500, v, s, dtype=dtype, device="cuda", uniform=True)
    generator = torch.Generator("cuda").manual_seed(7)
    shape = () if reduction == "mean" else (500,)
    grad = torch.randn(shape, generator=generator, device="cuda")
    chunk_bytes = 150 * v * 6  # several chunks of rows, or slices of the vocabulary
    actual = run(layer, inputs, options, impl, reduction, grad, memory=memory, chunk_bytes=chunk_bytes)
    yardstick = defined(layer, inputs, options, reduction, grad, dtype)
    expected = defined(layer, inputs, options, reduction, grad, torch.float64)
    assert actual[0].dtype == torch.float32
    for mine, eager, oracle, like in zip(actual[1:], yardstick[1:], expected[1:], layer, strict=True):
        assert mine.dtype == like.dtype
        assert_error_budget(mine, eager, oracle)
    assert_error_budget(actual[0], yardstick[0], expected[0])


def test_many_chunks_cost_the_weight_gradient_no_precision(impl: str) -> None:
    layer = make_layer(4096, 1000, torch.bfloat16)
    inputs = make_inputs(4096, 1000, 5, dtype=torch.bfloat16, device="cuda", ignored=0.0)
    grad = torch.ones((), device="cuda")
    expected = defined(layer, inputs, PLAIN, "mean", grad, torch.float64)
    few = run(layer, inputs, PLAIN, impl, "mean", grad)
    many = run(layer, inputs, PLAIN, impl, "mean", grad, chunk_bytes=128 * 1000 * 6)
    for one, other, oracle in zip(many, few, expected, strict=True):
        assert_error_budget(one, other, oracle, factor=1.2)


@pytest.mark.parametrize("memory", ["fast", "low"])
def test_the_same_bits_on_a_side_stream(impl: str, memory: str) -> None:
    layer, inputs = make_layer(512, 9800, torch.bfloat16), make_inputs(512, 9800, 21, device="cuda", uniform=True)
    grad = torch.tensor(-1.5, device="cuda")
    keywords = {"memory": memory, "chunk_bytes": 128 * 9800 * 6}
    expected = run(layer, inputs, ALL, impl, "mean", grad, **keywords)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a kernel that goes to the default stream would run before this has ended
        hidden, weight, bias = (tensor + 0 for tensor in layer)
        late = Inputs(inputs.logits, inputs.indices + 0, inputs.weights + 0, inputs.uniform)
        actual = run((hidden, weight, bias), late, ALL, impl, "mean", grad, **keywords)
    stream.synchronize()
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("reduction", "memory"), [("mean", "fast"), ("sum", "fast"), ("mean", "low")])
def test_captured_in_a_graph(impl: str, reduction: str, memory: str) -> None:
    problems = [
        (make_layer(512, 9800, torch.bfloat16, seed), make_inputs(512, 9800, 21, device="cuda", seed=seed))
        for seed in (1, 2)
    ]
    (hidden, weight, bias), inputs = problems[0]
    layer = (hidden.clone(), weight.clone(), bias.clone())
    static = Inputs(inputs.logits, inputs.indices.clone(), inputs.weights.clone(), None)
    grad = torch.tensor(-1.5, device="cuda")

    def step(layer: Layer, inputs: Inputs) -> tuple[Tensor, ...]:
        return run(layer, inputs, ALL, impl, reduction, grad, memory=memory, chunk_bytes=128 * 9800 * 6)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(layer, static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(layer, static)
    for new_layer, new in reversed(problems):
        for ours, theirs in zip((*layer, *static[1:3]), (*new_layer, *new[1:3]), strict=True):
            ours.copy_(theirs)
        graph.replay()
        for one, other in zip(results, step(new_layer, new), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("memory", ["fast", "low"])
def test_never_waits_for_the_device(impl: str, reduction: str, memory: str, no_host_sync: Callable[[], None]) -> None:
    layer, inputs = make_layer(300, 1000, torch.bfloat16), make_inputs(300, 1000, 21, device="cuda", uniform=True)
    exact, target = make_table(1000, tail="exact").to("cuda"), torch.randint(1000, (300,), device="cuda")
    grad = torch.ones(300 if reduction == "none" else (), device="cuda")

    def step() -> None:
        run(layer, inputs, ALL, impl, reduction, grad, memory=memory)
        hidden = layer[0].detach().requires_grad_()
        loss = F.linear_cross_entropy(
            hidden, layer[1], target, table=exact, alpha=0.3, reduction=reduction, memory=memory, impl=impl
        )
        torch.autograd.grad(loss, hidden, grad)

    step()  # compiles, which may wait
    no_host_sync()
    step()


@pytest.mark.parametrize("memory", ["fast", "low"])
def test_peak_memory_is_the_scratch_and_the_gradients(impl: str, memory: str) -> None:
    n, v, chunk_bytes = 4096, 32000, 64 * 2**20
    layer, inputs = make_layer(n, v, torch.bfloat16), make_inputs(n, 8, 5, device="cuda")
    grad = torch.ones((), device="cuda")
    assert n * v * 2 > 2 * chunk_bytes  # the logits alone would not fit the bound

    def step() -> None:
        run(layer, inputs, PLAIN, impl, "mean", grad, memory=memory, chunk_bytes=chunk_bytes)

    step()  # compiles, and makes what cuBLAS works in
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    extra = torch.cuda.max_memory_allocated() - before
    narrow = sum(tensor.numel() * 2 for tensor in layer)
    wide = sum(tensor.numel() * 4 for tensor in (layer if memory == "fast" else layer[:1]))  # sums over the chunks
    assert extra < chunk_bytes + narrow + wide + 2**23
