"""What only a GPU can show of targets: dense rows, building them, averaging, and how many launches all of it takes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import smoothloss.functional as F
from smoothloss import backends
from smoothloss.backends import reference, unavailable
from smoothloss.backends.common import Candidates, DenseRows, RowOptions, TableRows
from smoothloss.similarity import TailMode
from smoothloss.testing import (
    Inputs,
    Oracle,
    assert_error_budget,
    dense_loss,
    dense_target,
    make_dense_rows,
    make_inputs,
    make_sequences,
    make_table,
    row_target,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available"),
]

PLAIN = RowOptions()
ALL = RowOptions(label_smoothing=0.1, entropy=0.3, z_loss=0.01, logit_scale=1.7, softcap=30.0)
Launched = Callable[[Callable[[], object]], list[str]]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.fixture
def impl(gpu_impl: str) -> str:
    return gpu_impl


def random_grad(inputs: Inputs) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(7)
    return torch.randn(len(inputs.logits), generator=generator, device="cuda", dtype=inputs.weights.dtype)


def dense_expected(inputs: Inputs, dense: DenseRows, options: RowOptions, grad: Tensor, dtype: torch.dtype) -> Oracle:
    target = dense_target(*inputs[1:], inputs.logits.shape[1])
    wide = dense._replace(values=dense.values.double(), weights=dense.weights.double())
    logits = inputs.logits.to(dtype).requires_grad_()
    loss = dense_loss(logits, target + reference.mixture(wide), options)
    return Oracle(loss.detach(), torch.autograd.grad(loss, logits, grad.to(dtype))[0])


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("options", [PLAIN, ALL], ids=["plain", "all"])
@pytest.mark.parametrize(
    ("n", "v", "s", "j"),
    [(64, 7, 3, 1), (64, 1003, 21, 40), (64, 9800, 126, 3), (16, 50257, 300, 2), (16, 128256, 1, 6)],
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("poison")
def test_dense_rows_within_the_error_budget(
    impl: str, dtype: torch.dtype, n: int, v: int, s: int, j: int, options: RowOptions, inplace: bool
) -> None:
    inputs = make_inputs(n, v, s, dtype=dtype, device="cuda", uniform=options == ALL)
    dense, grad, kernels = make_dense_rows(inputs, 9, j), random_grad(inputs), backends.kernels(impl)
    target = row_target(inputs, dense)
    for is_fused in (False, True):
        grad = torch.ones_like(grad) if is_fused else grad
        expected = dense_expected(inputs, dense, options, grad, torch.float64)
        yardstick = dense_expected(inputs, dense, options, grad, dtype)
        logits = inputs.logits.clone()
        out = logits if inplace else torch.empty_like(logits)
        if is_fused:
            (loss, *_), _ = kernels.forward_backward(logits, target, options, out, "none")
        else:
            loss, statistics, *_ = kernels.forward(logits, target, options, "none")
            kernels.backward(grad, None, logits, statistics, target, options, out)
        assert_error_budget(loss, yardstick.loss, expected.loss)
        assert_error_budget(out, yardstick.grad, expected.grad)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("k", [0, 7, 60])
@pytest.mark.usefixtures("poison")
def test_smoothed_target_equals_the_reference(impl: str, k: int, dtype: torch.dtype) -> None:
    target, samples, weights = make_sequences(64, 20, 100, 9)
    samples[0, 3, 2], samples[1, 5] = 105, -3
    built = make_table(100, k=max(k, 1))
    table = TableRows(built.indices, built.weights, built.tail) if k else None
    moved = TableRows(*(tensor.cuda() for tensor in table)) if table else None
    for omega in (weights, None):
        candidates = Candidates(target.to(dtype), samples.to(dtype), None, omega, 0.6, -100)
        on_device = Candidates(*(each.cuda() if isinstance(each, Tensor) else each for each in candidates))
        expected = reference.smoothed_target(candidates, table, 0.3)
        actual = backends.get(impl).smoothed_target(on_device, moved, 0.3)
        assert torch.equal(actual[0].cpu(), expected[0])
        torch.testing.assert_close(actual[1].cpu(), expected[1])
        assert (actual[2] is None) == (expected[2] is None) == (k == 0)
        if k:
            torch.testing.assert_close(actual[2].cpu(), expected[2])


@pytest.mark.parametrize("n", [0, 1, 8192, 1_000_003])
def test_reduce(impl: str, n: int) -> None:
    generator = torch.Generator("cuda").manual_seed(n)
    loss = torch.rand(n, generator=generator, device="cuda") * 10
    mass = torch.rand(n, generator=generator, device="cuda").round()
    average, scale = backends.get(impl).reduce(loss, mass, "mean")
    count = mass.count_nonzero()
    torch.testing.assert_close(average, (loss.double().sum() / count).float(), equal_nan=True)
    assert scale == count.clamp(min=1).float().reciprocal()
    for _ in range(5):
        again, _ = backends.get(impl).reduce(loss, mass, "mean")
        assert torch.equal(again.view(torch.int32), average.view(torch.int32))


@pytest.mark.filterwarnings("ignore")  # of the profiler
@pytest.mark.parametrize("s", [21, 300])
@pytest.mark.parametrize("options", [PLAIN, ALL], ids=["plain", "all"])
def test_forward_and_backward_of_a_mean_are_three_launches(
    impl: str, options: RowOptions, s: int, launched: Launched
) -> None:
    inputs = make_inputs(256, 9800, s, dtype=torch.bfloat16, device="cuda", uniform=True)
    logits, one = inputs.logits.requires_grad_(), torch.ones((), device="cuda")
    keywords = options._asdict() | {"softcap": options.softcap or None}

    def step() -> Tensor:
        loss = F.sparse_cross_entropy(
            logits, inputs.indices, inputs.weights, uniform=inputs.uniform, impl=impl, **keywords
        )
        return torch.autograd.grad(loss, logits, one)[0]

    names = launched(step)
    assert 2 <= len(names) <= 3, names


@pytest.mark.filterwarnings("ignore")  # of the profiler
def test_a_smoothed_target_is_one_launch(impl: str, launched: Launched) -> None:
    target, samples = torch.randint(100, (5, 16, 20), device="cuda").split((1, 4))
    built = make_table(100).to("cuda")
    table, weights = TableRows(built.indices, built.weights, built.tail), torch.rand(4, 16, device="cuda")
    candidates = Candidates(target[0], samples, None, weights, 0.6)
    names = launched(lambda: backends.get(impl).smoothed_target(candidates, table, 0.3))
    assert len(names) == 1, names


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("options", [PLAIN, ALL], ids=["plain", "all"])
@pytest.mark.parametrize(("s", "j"), [(21, 0), (300, 0), (21, 2)])
def test_programs_that_take_several_rows(
    s: int, j: int, options: RowOptions, inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (reason := unavailable("triton", "cuda", torch.bfloat16)) is not None:
        pytest.skip(reason)
    from smoothloss.backends import triton as triton_kernels
    from smoothloss.backends.triton.config import Memory, bytes_between_reads, memory

    inputs = make_inputs(600, 50264, s, dtype=torch.bfloat16, device="cuda", uniform=True)
    dense = make_dense_rows(inputs, 5, j)
    device = memory(inputs.logits.device)
    assert device is not None
    assert device.multiprocessors > 0
    assert device.cache_bytes > 2**20
    other = inputs.logits if inplace else torch.empty_like(inputs.logits)
    # As if the cache held the rows of two thirds of the multiprocessors; then as if all of them.
    small = Memory(device.multiprocessors, device.multiprocessors * 2 // 3 * bytes_between_reads(inputs.logits, other))
    results = []
    for limits in (small, None):
        monkeypatch.setattr(triton_kernels, "memory", lambda _, limits=limits: limits)
        logits = inputs.logits.clone()
        out = logits if inplace else torch.full_like(logits, torch.nan)
        target = row_target(inputs, dense if j else None)
        (loss, *_), _ = triton_kernels.forward_backward(logits, target, options, out, "none")
        results.append((loss, out))
    expected = dense_expected(inputs, dense, options, torch.ones(600, device="cuda"), torch.float64)
    for actual, yardstick, oracle in zip(*results, expected, strict=True):
        assert_error_budget(actual, yardstick, oracle, factor=1.1)


@pytest.mark.parametrize("tail", ["uniform", "exact"])
def test_smoothed_losses_never_wait_for_the_device(impl: str, tail: TailMode, no_host_sync: Callable[[], None]) -> None:
    table = make_table(1000, tail=tail).to("cuda")
    target, samples, weights = (tensor.cuda() for tensor in make_sequences(16, 20, 1000, 4))
    logits = torch.randn(16, 20, 1000, device="cuda", dtype=torch.bfloat16).requires_grad_()
    one = torch.ones((), device="cuda")

    def step() -> tuple[Tensor, Tensor]:
        loss = F.lazy_sequence_cross_entropy(
            logits, target, samples, weights, alpha=0.4, table=table, token_alpha=0.3, impl=impl
        )
        return loss.detach(), torch.autograd.grad(loss, logits, one)[0]

    expected = step()  # compiles, which may wait
    no_host_sync()
    actual = step()
    torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])
