"""Mistakes that libraries of this kind have made, one test each; the others are where their subject is tested:

rows that nobody writes (every test under `poison`), gradients with reduction="none", a loss below zero
(test_native.py, test_triton_interpreter.py), host syncs and graph capture (test_gpu.py).
"""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import smoothloss.functional as F
from smoothloss.testing import assert_error_budget, make_sequences, make_table, relative_error

# torch.compile itself instantiates autograd functions.
compiles = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")


@compiles
@pytest.mark.usefixtures("poison")
def test_ignored_rows_are_written_under_compile(impl: str) -> None:
    torch.compiler.reset()
    logits, target = torch.randn(6, 40), torch.tensor([3, -100, 5, -100, -100, 1])
    logits[1] = torch.nan

    def function(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, label_smoothing=0.1, reduction="none", impl=impl)

    leaf = logits.clone().requires_grad_()
    loss = torch.compile(function, fullgraph=True, backend="aot_eager")(leaf)
    (grad,) = torch.autograd.grad(loss, leaf, torch.randn(6))
    for n in (1, 3, 4):
        assert loss[n] == 0
        assert not grad[n].any()
    assert loss.isfinite().all()
    assert grad.isfinite().all()


def test_whoever_saved_the_logits_hears_that_they_were_overwritten(impl: str) -> None:
    if impl == "reference":
        pytest.skip("the reference overwrites nothing")
    base = torch.randn(4, 30, requires_grad=True)
    logits = base * 2
    other = logits.exp().sum() + logits.square().sum()  # the square's backward reads the logits
    loss = F.cross_entropy(logits, torch.arange(4), inplace=True, impl=impl)
    torch.autograd.grad(loss, logits, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(other, logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_weights_gradient_does_not_lose_precision_with_the_number_of_chunks(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    rows, classes, size = 512, 60, 24
    hidden = (torch.rand(rows, size, generator=generator) + 0.5).to(dtype)
    weight = torch.randn(classes, size, generator=generator).to(dtype)
    target = torch.randint(classes, (rows,), generator=generator)

    def weight_gradient(dtype: torch.dtype, chunk_bytes: int | None, impl: str) -> Tensor:
        leaf = weight.to(dtype).requires_grad_()
        loss = F.linear_cross_entropy(hidden.to(dtype), leaf, target, chunk_bytes=chunk_bytes, impl=impl)
        return torch.autograd.grad(loss, leaf)[0]

    truth = weight_gradient(torch.float64, None, "reference")
    one, many = (relative_error(weight_gradient(dtype, size, "auto"), truth) for size in (None, classes * 4))
    assert many < 1.5 * one


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_budget_of_half_precision_lets_no_larger_error_pass(dtype: torch.dtype) -> None:
    oracle = torch.randn(500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    eager = oracle.to(dtype)
    for factor, is_within in ((1.9, True), (2.1, False), (torch.nan, False)):
        actual = oracle + factor * (eager.double() - oracle)
        with contextlib.nullcontext() if is_within else pytest.raises(AssertionError, match="exceeds"):
            assert_error_budget(actual.float(), eager, oracle)


@compiles
@pytest.mark.parametrize("case", ["logits", "linear", "lazy"])
def test_another_number_or_batch_size_is_not_compiled_again(impl: str, case: str) -> None:
    torch.compiler.reset()
    table, count = make_table(60), CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=count)
    def function(input: Tensor, weight: Tensor, sequences: tuple[Tensor, ...], alpha: float, eps: float) -> Tensor:
        target, samples, omega = sequences
        options = {"table": table, "label_smoothing": eps, "impl": impl}
        if case == "logits":
            return F.cross_entropy(input @ weight.t(), target, alpha=alpha, **options)
        if case == "linear":
            return F.linear_cross_entropy(input, weight, target, alpha=alpha, **options)
        logits = input @ weight.t()
        return F.lazy_sequence_cross_entropy(
            logits, target, samples, omega, alpha=alpha, token_alpha=1 - alpha, **options
        )

    weight = torch.randn(60, 8, requires_grad=True)
    compiled = []
    for batch, alpha, eps in [(3, 0.1, 0.1), (4, 0.2, 0.15), (5, 0.3, 0.2), (6, 0.4, 0.05), (7, 0.45, 0.07)]:
        sequences = make_sequences(batch, 5, 60, 4)
        input = torch.randn(batch, 5, 8, requires_grad=True)
        loss = function(input, weight, sequences, alpha, eps)
        eager = function.__wrapped__(input, weight, sequences, alpha, eps)  # type: ignore[attr-defined]
        torch.testing.assert_close(loss, eager)
        grads = (torch.autograd.grad(value, (input, weight)) for value in (loss, eager))
        for ours, theirs in zip(*grads, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        compiled.append(count.frame_count)
    assert compiled[0] == 1
    assert len(set(compiled[1:])) == 1  # once more for sizes and numbers that vary, then never again


def test_the_first_call_of_a_process_may_be_a_compiled_one() -> None:
    program = """
import torch, smoothloss.functional as F
logits, target = torch.randn(4, 9, requires_grad=True), torch.arange(4)
function = torch.compile(lambda z: F.cross_entropy(z, target), fullgraph=True, backend="aot_eager")
function(logits).backward()
assert torch.allclose(logits.grad.sum(), torch.zeros(()), atol=1e-6)
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=300)
