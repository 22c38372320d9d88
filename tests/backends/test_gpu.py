"""What only a GPU can show: half precision, large tensors, streams, graphs, memory. Through the public functions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import smoothloss.functional as F
from smoothloss.backends import unavailable
from smoothloss.backends.common import RowOptions, StatisticsGradients
from smoothloss.testing import (
    Inputs,
    assert_error_budget,
    eager,
    make_inputs,
    oracle,
    random_gradients,
    statistics_gradient,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available"),
]

PLAIN = RowOptions()
ALL = RowOptions(label_smoothing=0.1, entropy=0.3, z_loss=0.01, logit_scale=1.7, softcap=30.0)
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.fixture
def impl(gpu_impl: str) -> str:
    return gpu_impl


def loss_of(
    logits: Tensor, inputs: Inputs, options: RowOptions, impl: str, reduction: str = "none", inplace: bool = False
) -> Tensor:
    return F.sparse_cross_entropy(
        logits, inputs.indices, inputs.weights, uniform=inputs.uniform, reduction=reduction, inplace=inplace, impl=impl,
        **options._asdict() | {"softcap": options.softcap or None},
    )  # fmt: skip


def run(inputs: Inputs, options: RowOptions, grad: Tensor, impl: str, inplace: bool = False) -> tuple[Tensor, Tensor]:
    leaf = inputs.logits.clone().requires_grad_()
    logits = leaf * 1 if inplace else leaf  # a leaf must not be overwritten
    loss = loss_of(logits, inputs, options, impl, inplace=inplace)
    return loss.detach(), torch.autograd.grad(loss, leaf, grad)[0]


def random_grad(inputs: Inputs) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(7)
    return torch.randn(len(inputs.logits), generator=generator, device="cuda", dtype=inputs.weights.dtype)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("options", [PLAIN, ALL], ids=["plain", "all"])
@pytest.mark.parametrize(
    ("n", "v", "s"), [(64, 7, 3), (64, 1003, 21), (64, 9800, 126), (32, 50257, 1), (16, 128256, 300)]
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("poison")
def test_error_budget(
    impl: str, dtype: torch.dtype, n: int, v: int, s: int, options: RowOptions, inplace: bool
) -> None:
    inputs = make_inputs(n, v, s, dtype=dtype, device="cuda", uniform=options == ALL)
    grad = random_grad(inputs)
    expected, yardstick = oracle(inputs, options, grad), eager(inputs, options, grad)
    loss, d_logits = run(inputs, options, grad, impl, inplace)
    assert loss.dtype == torch.float32
    assert d_logits.dtype == dtype
    assert_error_budget(loss, yardstick.loss, expected.loss)
    assert_error_budget(d_logits, yardstick.grad, expected.grad)


@pytest.mark.parametrize("options", [PLAIN, ALL], ids=["plain", "all"])
@pytest.mark.parametrize("s", [1, 21, 300])
def test_float64_equals_the_dense_definition(s: int, options: RowOptions) -> None:
    if (reason := unavailable("triton", "cuda", torch.float64)) is not None:
        pytest.skip(reason)
    inputs = make_inputs(9, 1003, s, dtype=torch.float64, device="cuda", uniform=True)
    grad = random_grad(inputs)
    expected = oracle(inputs, options, grad)
    for inplace in (False, True):
        loss, d_logits = run(inputs, options, grad, "triton", inplace)
        torch.testing.assert_close(loss, expected.loss, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(d_logits, expected.grad, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("options", [PLAIN, ALL], ids=["plain", "all"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_token_statistics(impl: str, dtype: torch.dtype, options: RowOptions) -> None:
    for classes, slots in ((9801, 21), (64, 0), (128256, 64), (70000, 300)):
        inputs = make_inputs(64, classes, slots, dtype=dtype, device="cuda")
        logits = inputs.logits.clone().requires_grad_()
        statistics = F.token_statistics(
            logits, inputs.indices, logit_scale=options.logit_scale, softcap=options.softcap or None, impl=impl
        )
        grads = StatisticsGradients(*(g.cuda() for g in random_gradients(inputs.indices.cpu(), inputs.weights.dtype)))
        actual_grad = torch.autograd.grad(statistics[:4], logits, list(grads))[0]
        oracle, expected = statistics_gradient(inputs.logits, inputs.indices, options, grads, torch.float64)
        yardstick, eager_grad = statistics_gradient(inputs.logits, inputs.indices, options, grads, torch.float32)
        if dtype == torch.float64:
            torch.testing.assert_close(tuple(statistics), tuple(oracle), rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(actual_grad, expected, rtol=1e-11, atol=1e-12)
            continue
        for mine, theirs, exact in list(zip(statistics, yardstick, oracle, strict=True))[:4]:
            assert_error_budget(mine, theirs, exact)
        assert torch.equal(statistics.argmax, oracle.argmax)
        assert_error_budget(actual_grad, eager_grad.to(dtype), expected)


def test_indices_out_of_range_touch_nothing(impl: str) -> None:
    inputs = make_inputs(32, 1000, 8, dtype=torch.bfloat16, device="cuda", ignored=0.0, empty=0.0)
    wild, tame = inputs.indices.clone(), inputs.indices.clone()
    wild[:, 1], wild[:, 2], wild[:, 3] = 1000, 2**31 - 1, -(2**31)
    tame[:, 1:4] = -1
    grad = random_grad(inputs)
    one, other = (run(inputs._replace(indices=indices), ALL, grad, impl) for indices in (wild, tame))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("s", [21, 300])
def test_the_same_bits_twenty_times(impl: str, s: int) -> None:
    inputs = make_inputs(512, 9800, s, dtype=torch.bfloat16, device="cuda", uniform=True)
    grad = random_grad(inputs)
    first = run(inputs, ALL, grad, impl)
    for repeat in range(20):
        again = run(inputs, ALL, grad, impl, inplace=repeat % 2 == 1)
        assert torch.equal(again[0], first[0])
        assert torch.equal(again[1], first[1])


def test_more_than_two_to_the_31_elements(impl: str) -> None:
    rows, classes = 16640, 131072
    assert rows * classes > 2**31
    free, _ = torch.cuda.mem_get_info()
    if free < 3 * rows * classes * 2:
        pytest.skip("needs 13 GB of GPU memory")
    logits = torch.zeros(rows, classes, dtype=torch.bfloat16, device="cuda")
    logits[-64:].normal_()
    indices = torch.randint(classes, (rows, 3), device="cuda", dtype=torch.int32)
    weights = torch.rand(rows, 3, device="cuda")
    tail = Inputs(logits[-64:].clone(), indices[-64:], weights[-64:], None)
    grad = torch.ones(64, device="cuda")
    expected, yardstick = oracle(tail, PLAIN, grad), eager(tail, PLAIN, grad)
    logits.requires_grad_()
    loss = F.sparse_cross_entropy(logits, indices, weights, reduction="none", impl=impl)
    d_logits = torch.autograd.grad(loss, logits, torch.ones_like(loss))[0]
    assert_error_budget(loss[-64:], yardstick.loss, expected.loss)
    assert_error_budget(d_logits[-64:], yardstick.grad, expected.grad)


def test_on_a_side_stream(impl: str) -> None:
    inputs = make_inputs(256, 9800, 21, dtype=torch.bfloat16, device="cuda")
    grad = random_grad(inputs)
    expected = run(inputs, ALL, grad, impl)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # a kernel that goes to the default stream would run before this has ended
        late = Inputs(inputs.logits + 0, inputs.indices + 0, inputs.weights + 0, None)
        actual = run(late, ALL, grad, impl)
    stream.synchronize()
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_captured_in_a_graph(impl: str, reduction: str) -> None:
    first = make_inputs(256, 9800, 21, dtype=torch.bfloat16, device="cuda", seed=1)
    second = make_inputs(256, 9800, 21, dtype=torch.bfloat16, device="cuda", seed=2)
    static = Inputs(first.logits.clone().requires_grad_(), first.indices.clone(), first.weights.clone(), None)

    def step() -> tuple[Tensor, Tensor]:
        loss = loss_of(static.logits, static, ALL, impl, reduction)
        return loss, torch.autograd.grad(loss, static.logits)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, d_logits = step()
    for inputs in (second, first):
        with torch.no_grad():
            for ours, new in zip(static[:3], inputs[:3], strict=True):
                ours.copy_(new)
        graph.replay()
        logits = inputs.logits.clone().requires_grad_()
        expected = loss_of(logits, inputs, ALL, impl, reduction)
        assert torch.equal(loss, expected)
        assert torch.equal(d_logits, torch.autograd.grad(expected, logits)[0])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_never_waits_for_the_device(impl: str, reduction: str, no_host_sync: Callable[[], None]) -> None:
    inputs = make_inputs(256, 9800, 21, dtype=torch.bfloat16, device="cuda", uniform=True)
    target = torch.randint(9800, (256,), device="cuda")

    def step() -> None:
        for inplace in (False, True):
            logits = inputs.logits.detach().requires_grad_() * 1
            loss = loss_of(logits, inputs, ALL, impl, reduction, inplace)
            torch.autograd.grad(loss, logits, torch.ones_like(loss))
        logits = inputs.logits.detach().requires_grad_()
        loss = F.cross_entropy(logits, target, label_smoothing=0.1, reduction=reduction, impl=impl)
        torch.autograd.grad(loss, logits, torch.ones_like(loss))

    step()  # compiles, which may wait
    no_host_sync()
    step()


@pytest.mark.parametrize("inplace", [False, True])
def test_peak_memory_is_the_gradient(impl: str, inplace: bool) -> None:
    inputs = make_inputs(1024, 32768, 21, dtype=torch.bfloat16, device="cuda", uniform=True)
    size = inputs.logits.numel() * 2

    def step() -> None:
        logits = inputs.logits.detach().requires_grad_()
        base = logits * 1
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = loss_of(base, inputs, ALL, impl, "mean", inplace)
        torch.autograd.grad(loss, base)
        extra = torch.cuda.max_memory_allocated() - before
        assert extra < (0 if inplace else size) + 2**20

    step()


def test_mean_divides_by_the_rows_that_count_and_scales_by_any_gradient(impl: str) -> None:
    inputs = make_inputs(128, 1003, 9, dtype=torch.bfloat16, device="cuda", ignored=0.4)
    logits = inputs.logits.clone().requires_grad_()
    factor = torch.tensor(-2.5, device="cuda")
    loss = loss_of(logits, inputs, PLAIN, impl, "mean")
    d_logits = torch.autograd.grad(loss, logits, factor)[0]
    count = oracle(inputs).loss.count_nonzero()
    grad = (factor / count).expand(128).contiguous()
    torch.testing.assert_close(loss.double(), oracle(inputs).loss.sum() / count, rtol=1e-5, atol=1e-5)
    assert_error_budget(d_logits, eager(inputs, PLAIN, grad).grad, oracle(inputs, PLAIN, grad).grad)


def test_varying_numbers_do_not_compile_again() -> None:
    if (reason := unavailable("triton", "cuda", torch.bfloat16)) is not None:
        pytest.skip(reason)
    from smoothloss.backends import triton as triton_kernels

    def variants() -> int:
        kernels = (
            triton_kernels._sparse_cross_entropy_forward_kernel,
            triton_kernels._sparse_cross_entropy_backward_kernel,
        )
        return sum(len(cache[0]) for kernel in kernels for cache in kernel.device_caches.values())

    def step(rows: int, classes: int, options: RowOptions) -> None:
        inputs = make_inputs(rows, classes, 9, dtype=torch.bfloat16, device="cuda")
        run(inputs, options, random_grad(inputs), "triton")

    step(3, 9800, ALL)
    before = variants()
    step(16, 9808, ALL._replace(label_smoothing=0.2, z_loss=0.0))
    step(1, 16384, ALL._replace(logit_scale=1.0, softcap=50.0))
    assert variants() == before


@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_compiled_model(impl: str) -> None:
    inputs = make_inputs(64, 1000, 9, dtype=torch.bfloat16, device="cuda")

    def loss(logits: Tensor) -> Tensor:
        return loss_of(logits, inputs, ALL, impl, "mean")

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True)):
        logits = inputs.logits.clone().requires_grad_()
        value = function(logits)
        results.append((value, torch.autograd.grad(value, logits)[0]))
    assert torch.equal(results[0][1], results[1][1])
    torch.testing.assert_close(results[0][0], results[1][0])
