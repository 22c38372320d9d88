"""Mistakes that libraries of this kind have made, one test each; the others are where their subject is tested:

rows that nobody writes (every test under `poison`), gradients with reduction="none", a loss below zero
(test_native.py, test_triton_interpreter.py), host syncs and graph capture (test_gpu.py).
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from quick import slow_but
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import smoothloss.functional as F
from smoothloss import targets
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


V = 60
TABLE, EXACT, CLASS_WEIGHT = make_table(V), make_table(V, tail="exact"), torch.rand(V)


def of_sequence(z: Tensor, y: Tensor, samples: Tensor, *omega: Tensor, **more: Any) -> Tensor:
    return F.sequence_cross_entropy(z.expand(samples.shape[0] + 1, *z.shape), y, samples, *omega, **more)


def of_top_k(z: Tensor, y: Tensor, temperature: float, **more: Any) -> Tensor:
    classes = torch.stack((y, (y + 1) % V), -1)
    return F.cross_entropy(z, targets.top_k(classes, -classes.float(), temperature=temperature), **more)


# Logits, labels, samples, their weights, and a number that varies from call to call.
NUMBERS: dict[str, Callable[..., Tensor]] = {
    "smoothing": lambda z, y, s, w, x, **o: F.cross_entropy(z, y, label_smoothing=x, kl=True, **o),
    "weighted": lambda z, y, s, w, x, **o: F.cross_entropy(z, y, label_smoothing=x, weight=CLASS_WEIGHT, **o),
    "tok": lambda z, y, s, w, x, **o: F.cross_entropy(z, y, table=TABLE, alpha=x, **o),
    "exact": lambda z, y, s, w, x, **o: F.cross_entropy(z, y, table=EXACT, alpha=x, **o),
    "lazy": lambda z, y, s, w, x, **o: F.lazy_sequence_cross_entropy(z, y, s, alpha=x, **o),
    "lazy tok": lambda z, y, s, w, x, **o: F.lazy_sequence_cross_entropy(
        z, y, s, w, alpha=x, table=TABLE, token_alpha=1 - x, **o
    ),
    "sequence": lambda z, y, s, w, x, **o: of_sequence(z, y, s, w, alpha=x, **o),
    "mixture": lambda z, y, s, w, x, **o: F.cross_entropy(
        z, x * targets.labels(y) + (1 - x) * targets.token(y, TABLE, 0.3), **o
    ),
    "top_k": lambda z, y, s, w, x, **o: of_top_k(z, y, x, **o),
    "linear": lambda z, y, s, w, x, **o: F.linear_cross_entropy(
        z, torch.eye(V), y, table=EXACT, alpha=x, label_smoothing=x, **o
    ),
}
# As an operator's argument, which it is to the kernels, a number is a constant.
OPTIONS = ("entropy", "z_loss", "logit_scale", "softcap")
NUMBERS |= {name: lambda z, y, s, w, x, name=name, **o: F.cross_entropy(z, y, **{name: x}, **o) for name in OPTIONS}


# What all implementations share is compiled with one of them.
OF_ALL = ("smoothing", "tok", "exact", "sequence", *OPTIONS)


@compiles
@pytest.mark.parametrize("case", slow_but(("lazy tok",), NUMBERS))
def test_another_number_or_batch_size_is_not_compiled_again(impl: str, case: str) -> None:
    if case in OPTIONS and impl != "reference":
        pytest.skip("a constant of the kernels")
    if case not in OF_ALL and impl == "reference":
        pytest.skip("compiled with the kernels")
    torch.compiler.reset()
    count, function = CompileCounterWithBackend("aot_eager"), functools.partial(NUMBERS[case], impl=impl)
    compiled_function, compiled = torch.compile(function, fullgraph=True, backend=count), []
    for batch, number in [(3, 0.1), (4, 0.2), (5, 0.3), (6, 0.45)]:
        arguments = *make_sequences(batch, 5, V, 4), number
        logits = torch.randn(batch, 5, V, requires_grad=True)
        results = []
        for run in (compiled_function, function):
            loss = run(logits, *arguments)
            results.append((loss.detach(), torch.autograd.grad(loss, logits)[0]))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)
        compiled.append(count.frame_count)
    assert compiled == [1, 2, 2, 2]  # once more for sizes and numbers that vary, then never again


@pytest.mark.slow
def test_the_first_call_of_a_process_may_be_a_compiled_one() -> None:
    program = """
import torch, smoothloss.functional as F
logits, target = torch.randn(4, 9, requires_grad=True), torch.arange(4)
function = torch.compile(lambda z: F.cross_entropy(z, target), fullgraph=True, backend="aot_eager")
function(logits).backward()
assert torch.allclose(logits.grad.sum(), torch.zeros(()), atol=1e-6)
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=300)
