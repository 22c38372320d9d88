"""Slices of the classes, one of which has next to all of the probability, or that have none: drawn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ranks import in_threads
from torch import Tensor

import smoothloss.functional as F
from smoothloss import distillation
from smoothloss.distillation import Teacher

SIZES = st.lists(st.integers(0, 9), min_size=2, max_size=8).filter(lambda sizes: sum(sizes) > 1)
# So far below that nothing is left of it in float64, or in float32 alone, or that it is ruled out.
DISTANCES = st.sampled_from([0.0, -3.0, -90.0, -120.0, -800.0, -1e6, -torch.inf])
FORGETS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def problems(draw: st.DrawFn) -> tuple[list[int], Tensor, Tensor]:
    """Sizes of slices, logits ``(5, V)`` of which each slice lies somewhere else, and classes ``(5, 3)``."""
    sizes = draw(SIZES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 16)))
    parts = [torch.randn(5, size, generator=generator, dtype=torch.float64) for size in sizes]
    filled = [number for number, size in enumerate(sizes) if size]
    nearest = draw(st.sampled_from(filled))
    far = [0.0 if number == nearest else draw(DISTANCES) for number in range(len(sizes))]
    logits = torch.cat([part + distance for part, distance in zip(parts, far, strict=True)], -1)
    indices = torch.randint(-1, sum(sizes), (5, 3), generator=generator)
    return sizes, logits + draw(st.sampled_from([0.0, 1e4])), indices


@FORGETS
@given(problems(), st.sampled_from([{}, {"entropy": 0.3}, {"z_loss": 0.1}]), st.sampled_from(["reference", "native"]))
def test_losses(problem: tuple[list[int], Tensor, Tensor], options: dict[str, float], impl: str) -> None:
    sizes, logits, indices = problem
    weights = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).expand(5, 3)
    whole = logits.clone().requires_grad_()
    expected = F.sparse_cross_entropy(whole, indices, weights, reduction="none", impl="reference", **options)
    expected.sum().backward()

    def work(rank: int, group: Any) -> tuple[Tensor, Tensor]:
        own = logits.split(sizes, -1)[rank].clone().requires_grad_()
        how = {"reduction": "none", "impl": impl, "group": group, **options}
        loss = F.sparse_cross_entropy(own, indices, weights, **how)
        loss.sum().backward()
        assert own.grad is not None
        return loss.detach(), own.grad

    losses, grads = zip(*in_threads(len(sizes), work), strict=True)
    for loss in losses:
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat(grads, -1), whole.grad, rtol=1e-11, atol=1e-12)


@FORGETS
@given(problems(), st.sampled_from(["reference", "native"]))
def test_statistics(problem: tuple[list[int], Tensor, Tensor], impl: str) -> None:
    sizes, logits, indices = problem
    expected = F.token_statistics(logits, indices, impl="reference")

    def work(rank: int, group: Any) -> Any:
        return F.token_statistics(logits.split(sizes, -1)[rank].contiguous(), indices, impl=impl, group=group)

    for found in in_threads(len(sizes), work):
        for name, value, wanted in zip(expected._fields, found, expected, strict=True):
            torch.testing.assert_close(
                value, wanted, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("name", ["loss", "hidden states", "statistics", "teacher", "spread teacher"])
@pytest.mark.parametrize("changed", [0, 1])
def test_other_targets_on_another_rank_are_no_slice_of_the_classes(name: str, changed: int) -> None:
    """As where a batch is split, not the classes: every rank says so, and none waits for the others."""
    hidden, weight = torch.randn(6, 4), torch.randn(8, 4)
    labels = [torch.arange(6), torch.arange(6)]
    labels[changed] = torch.tensor([0, 1, 2, 3, 4, 6])

    def work(rank: int, group: Any) -> str:
        rows = weight.chunk(2)[rank]
        try:
            if name == "loss":
                F.cross_entropy(hidden @ rows.t(), labels[rank], label_smoothing=0.1, group=group)
            elif name == "hidden states":
                F.linear_cross_entropy(hidden, rows, labels[rank], group=group)
            elif "teacher" in name:
                teacher = Teacher(labels[rank].unsqueeze(-1), torch.zeros(6, 1) - 0.5, torch.zeros(6) - 1.0)
                more = {"divergence": "jensen_shannon", "missing": "uniform" if "spread" in name else "bucket"}
                distillation.loss(hidden @ rows.t(), teacher, group=group, **more)
            else:
                F.token_statistics(hidden @ rows.t(), labels[rank].unsqueeze(-1), group=group)
        except ValueError as error:
            return str(error)
        return "nothing"

    said = in_threads(2, work)
    assert all(each.startswith("group: got other targets on other processes, expected the same rows") for each in said)
