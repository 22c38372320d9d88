"""The linear losses whichever way their 16-bit operands are multiplied, of any shape: also of no rows and one class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from product_ways import WAYS, multiplying
from torch import Tensor

import smoothloss.functional as F
from smoothloss import SimilarityTable, distillation, targets
from smoothloss.distillation import Teacher

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@st.composite
def losses(draw: st.DrawFn, rows: int, classes: int) -> tuple[Loss, bool]:
    """Draw a loss of hidden states, weight and bias, and whether there is anything that it averages."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    how: dict[str, Any] = {"chunk_bytes": draw(st.sampled_from([None, 1, 4 * classes * 7]))}
    labels = torch.randint(0, classes, (rows,), generator=generator)
    kind = draw(st.sampled_from(["labels", "entries", "table", "exact table", "statistics", "divergence"]))
    if kind == "statistics":
        slots = torch.stack((labels, labels.where(labels > classes // 2, -1)), -1)

        def statistics(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            found = F.linear_token_statistics(hidden, weight, slots, linear_bias=bias, **how)
            return found.log_prob.where(slots >= 0, 0.0).sum() + found.entropy.sum() + found.logsumexp.sum()

        return statistics, True
    if kind == "divergence":
        k = draw(st.integers(1, classes))
        teacher = Teacher.from_logits(torch.randn(rows, classes, generator=generator), k)
        options = {
            "divergence": draw(st.sampled_from(["forward_kl", "reverse_kl", "jensen_shannon"])),
            "missing": draw(st.sampled_from(["bucket", "uniform", "renormalize"])),
        }
        return lambda *layer: distillation.linear_loss(
            *layer[:2], teacher, linear_bias=layer[2], reduction="sum", **options, **how
        ), True
    how |= {
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])), "memory": draw(st.sampled_from(["fast", "low"])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.2])), "z_loss": draw(st.sampled_from([0.0, 0.01])),
        "entropy": draw(st.sampled_from([0.0, 0.1])), "softcap": draw(st.sampled_from([None, 4.0])),
    }  # fmt: skip
    labels[torch.rand(rows, generator=generator) < 0.2] = -100
    target: Any = labels
    if kind == "entries":
        shape = rows, draw(st.integers(1, 4))
        indices = torch.randint(-1, classes, shape, generator=generator)
        target = targets.entries(indices, torch.rand(shape, generator=generator), torch.rand(rows, generator=generator))
    elif kind != "labels":
        tail: Any = "exact" if kind == "exact table" else "uniform"
        vectors = torch.randn(classes, 3, generator=generator)
        how |= {"table": SimilarityTable.from_embeddings(vectors, k=min(3, classes), tau=0.5, tail=tail), "alpha": 0.4}
    has_rows = bool((labels != -100).any()) if kind != "entries" else rows > 0

    def cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear_cross_entropy(hidden, weight, target, linear_bias=bias, **how)

    return cross_entropy, has_rows or how["reduction"] != "mean"


def differentiated(loss: Loss, layer: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    leaves = [tensor.to(dtype).requires_grad_() for tensor in layer]
    value = loss(leaves[0], leaves[1], leaves[2] if len(leaves) > 2 else None)
    return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(WAYS), st.sampled_from([torch.bfloat16, torch.float16]))
def test_any_shape_any_way(data: st.DataObject, way: str, dtype: torch.dtype) -> None:
    rows = data.draw(st.sampled_from([0, 1, 2, 5, 40]))
    classes, width = data.draw(st.sampled_from([1, 2, 3, 40])), data.draw(st.sampled_from([1, 2, 9]))
    loss, has_mean = data.draw(losses(rows, classes))
    generator = torch.Generator().manual_seed(1)
    shapes = [(rows, width), (classes, width), *([(classes,)] if data.draw(st.booleans()) else [])]
    layer = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    with multiplying(way):
        found = differentiated(loss, layer, dtype)
    if not has_mean:
        assert found[0].isnan()
        return
    # What is rounded is as large as the largest of the gradients, also where sums of it cancel.
    value, *exact = differentiated(loss, layer, torch.float64)
    largest = max([float(each.abs().max()) for each in exact if each.numel()], default=0.0)
    noise = 4 * torch.finfo(dtype).eps * largest + 1e-5  # and float32 sums that cancel
    torch.testing.assert_close(found[0].double(), value, rtol=1e-4, atol=1e-4)
    for got, want in zip(found[1:], exact, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=0, atol=noise)
