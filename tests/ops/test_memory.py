"""Peak memory on the CPU: nothing of the size of the logits, or of a dense target, is ever held beside the budget."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import smoothloss.functional as F
from smoothloss import SimilarityTable

N, V, D = 1536, 16384, 48
LOGITS_MIB = N * V * 4 / 2**20  # 96
BUDGET_MIB = 12
SLACK_MIB = 6  # allocator, thread stacks, targets

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")


def resident(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":"))


def peak_mib(function: Callable[[], object]) -> float:
    """Return how far the resident set rises above where it was, at the second call."""
    function()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    function()
    return resident("VmHWM") - before


@pytest.fixture(scope="module")
def layer() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator).requires_grad_()
    weight = torch.randn(V, D, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(4, V, (N,), generator=generator)


@pytest.mark.parametrize(("memory", "reduction"), [("fast", "mean"), ("low", "mean"), ("fast", "none")])
def test_the_linear_op_keeps_to_its_budget(layer: tuple[Tensor, Tensor, Tensor], memory: str, reduction: str) -> None:
    hidden, weight, target = layer

    def step() -> None:
        loss = F.linear_cross_entropy(
            hidden, weight, target, chunk_bytes=BUDGET_MIB << 20, memory=memory, reduction=reduction
        )
        torch.autograd.grad(loss.sum(), (hidden, weight))

    gradients = 2 * (N + V) * D * 4 / 2**20  # unscaled, and as they are returned
    assert peak_mib(step) < BUDGET_MIB + gradients + SLACK_MIB


def test_without_gradients_there_are_no_buffers_for_them(layer: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, target = layer

    def evaluate() -> None:
        with torch.no_grad():
            F.linear_cross_entropy(hidden, weight, target, chunk_bytes=BUDGET_MIB << 20)

    assert peak_mib(evaluate) < BUDGET_MIB + SLACK_MIB


def test_the_logits_op_holds_nothing_but_the_gradient() -> None:
    logits = torch.randn(N, V, requires_grad=True)
    indices, weights = torch.randint(V, (N, 64)), torch.rand(N, 64)

    def step(inplace: bool) -> None:
        doomed = logits.detach().requires_grad_()
        loss = F.sparse_cross_entropy(doomed, indices, weights, inplace=inplace)
        torch.autograd.grad(loss, doomed)

    entries = indices.numel() * 4 / 2**20
    assert peak_mib(lambda: step(inplace=False)) < LOGITS_MIB + entries + SLACK_MIB
    assert peak_mib(lambda: step(inplace=True)) < 2 * entries + SLACK_MIB


@pytest.mark.slow
def test_an_exact_tail_holds_no_dense_target(layer: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, target = layer
    vectors = torch.randn(V, 20, generator=torch.Generator().manual_seed(1))
    table = SimilarityTable.from_embeddings(vectors, k=2, tau=0.2, tail="exact", exclude=(0, 1, 2, 3))

    def step() -> None:
        loss = F.linear_cross_entropy(hidden, weight, target, table=table, alpha=0.3, chunk_bytes=BUDGET_MIB << 20)
        torch.autograd.grad(loss, (hidden, weight))

    gradients = 2 * (N + V) * D * 4 / 2**20
    # The scores of a block go through a few temporaries of a megabyte each.
    assert peak_mib(step) < BUDGET_MIB + gradients + 2 * SLACK_MIB < LOGITS_MIB / 2
