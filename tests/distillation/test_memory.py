"""Peak memory of the divergences on the CPU: nothing of the size of the logits beside the budget and the gradients."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from divergence_definitions import CELLS

from smoothloss import distillation
from smoothloss.distillation import Teacher

N, V, D, K = 768, 16384, 48, 16
BUDGET_MIB = 12
# Allocator, thread stacks, tensors of the size of the teacher; and what Linux's count of resident pages, kept on each
# processor apart, may be off by.
SLACK_MIB = 16
GRADIENTS_MIB = 2 * (N + V) * D * 4 / 2**20  # as they are made, and as they are returned
LOGITS_MIB = N * V * 4 / 2**20  # 48

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
cells = pytest.mark.parametrize(("divergence", "missing"), CELLS)


def resident(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":"))


@pytest.fixture(scope="module", autouse=True)
def memory_goes_back_at_once() -> Iterator[None]:
    """Let the C library keep nothing of what is freed: pieces of a heap with holes are no memory that a loss needs."""
    library, threshold = ctypes.CDLL(None), -3  # M_MMAP_THRESHOLD
    if not hasattr(library, "mallopt"):
        pytest.skip("needs glibc's malloc")
    library.mallopt(threshold, 1 << 16)
    library.malloc_trim(0)
    yield
    library.mallopt(threshold, 32 << 20)


def peak_mib(function: Callable[[], object]) -> float:
    """Return how far the resident set rises above where it was, at the second call."""
    function()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    function()
    return resident("VmHWM") - before


def make_teacher() -> Teacher:
    indices = torch.arange(K).expand(N, K) * (V // K)
    q = 0.9 * torch.randn(N, K, generator=torch.Generator().manual_seed(0)).softmax(-1)
    return Teacher(indices.contiguous(), q.log(), torch.full((N,), 0.1).log())


@pytest.mark.slow
@cells
def test_the_linear_version_keeps_to_its_budget(divergence: str, missing: str) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = [torch.randn(rows, D, generator=generator).requires_grad_() for rows in (N, V)]
    teacher = make_teacher()

    def step() -> None:
        loss = distillation.linear_loss(
            *layer, teacher, divergence=divergence, missing=missing, chunk_bytes=BUDGET_MIB << 20
        )
        torch.autograd.grad(loss, layer)

    assert peak_mib(step) < BUDGET_MIB + GRADIENTS_MIB + SLACK_MIB


@pytest.mark.slow
@pytest.mark.parametrize(("divergence", "missing"), CELLS)
def test_on_logits_there_is_nothing_but_the_gradient(divergence: str, missing: str) -> None:
    logits = torch.randn(N, V, requires_grad=True)
    teacher = make_teacher()

    def step() -> None:
        loss = distillation.loss(logits, teacher, divergence=divergence, missing=missing)
        torch.autograd.grad(loss, logits)

    assert peak_mib(step) < LOGITS_MIB + SLACK_MIB
