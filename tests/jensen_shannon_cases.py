"""The kernels of the Jensen-Shannon divergence against its definition in float64, whatever runs them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smoothloss.backends.common import RowOptions, RowTarget, accumulator_dtype
from smoothloss.distillation._jensen_shannon import Spread, definition

OPTIONS = {
    "plain": RowOptions(),
    "scale": RowOptions(logit_scale=0.7),
    "softcap": RowOptions(logit_scale=1.7, softcap=6.0),
}
# (classes, slots): nothing listed, everything listed, one class, around blocks and vectors, more slots than a tile of
# any kernel keeps.
SHAPES = [(1, 0), (1, 1), (2, 1), (17, 3), (64, 64), (2047, 5), (2049, 64), (4100, 200), (9000, 8700)]


def make_case(
    rows: int, classes: int, slots: int, dtype: torch.dtype, seed: int = 0, spread: float = 3.0, rest: float = 0.05
) -> tuple[Tensor, Spread]:
    """Return logits, and a teacher with empty slots in between, without teacher in row 0, without rest in the last."""
    generator = torch.Generator().manual_seed(seed)
    logits = (spread * torch.randn(rows, classes, generator=generator, dtype=torch.float64)).to(dtype)
    order = torch.rand(rows, classes, generator=generator).argsort(-1)[:, :slots]
    indices = order.masked_fill(torch.rand(order.shape, generator=generator) < 0.2, -1)
    if rows:
        indices[0] = -1
        logits[0] = torch.nan
    scores = 2 * torch.randn(indices.shape, generator=generator, dtype=torch.float64)
    q = scores.masked_fill(indices < 0, -torch.inf).softmax(-1).nan_to_num(0.0) * (1 - rest)
    log_share = torch.full((rows,), rest / classes, dtype=torch.float64).log()
    if rows > 1:
        log_share[-1] = -torch.inf
    log_a = torch.logaddexp(q.log(), log_share.unsqueeze(-1))
    return logits, Spread(indices, log_a, log_share)


def run(
    kernels: Any, logits: Tensor, teacher: Spread, beta: float, options: RowOptions, grad: Tensor, inplace: bool
) -> tuple[Tensor, Tensor]:
    """Return the losses and the gradient that kernels give."""
    target: RowTarget = teacher.rows(accumulator_dtype(logits.dtype), slice(0, len(logits)))
    losses, saved = kernels.jensen_shannon(logits, target, beta, options)
    out = logits if inplace else torch.full_like(logits, torch.nan)
    kernels.jensen_shannon_backward(grad, logits, target, saved, beta, options, out)
    return losses, out


def check(
    kernels: Any, classes: int, slots: int, dtype: torch.dtype, name: str = "plain", *, beta: float = 0.5,
    inplace: bool = False, **how: Any,
) -> None:  # fmt: skip
    """Hold loss and gradient of a few rows against the definition."""
    logits, teacher = make_case(4, classes, slots, dtype, **how)
    wide = logits.double().clone().requires_grad_()
    grad = torch.tensor([1.0, -0.7, 0.0, 2.5], dtype=accumulator_dtype(dtype))
    expected = definition(wide, teacher, beta, OPTIONS[name])
    (gradient,) = torch.autograd.grad(expected, wide, grad.double())
    losses, out = run(kernels, logits, teacher, beta, OPTIONS[name], grad, inplace)
    eps = torch.finfo(accumulator_dtype(dtype)).eps
    # A logit is known to a rounding, and so is what p is off by.
    tolerance = 8 * eps * (1 + float(wide.detach().nan_to_num().abs().amax()))
    assert losses.dtype == accumulator_dtype(dtype)
    torch.testing.assert_close(losses.double(), expected.detach(), rtol=0, atol=tolerance)
    assert torch.equal(out[0], torch.zeros_like(out[0])), "no teacher"
    assert torch.equal(out[2], torch.zeros_like(out[2])), "nothing came back"
    is_half = dtype in (torch.float16, torch.bfloat16)
    rounding = torch.finfo(dtype).eps if is_half else 0.0
    smallest = torch.finfo(dtype).smallest_normal * rounding if is_half else 0.0
    gradient = gradient.nan_to_num()
    error, scale = (out.double() - gradient).abs().amax(-1), gradient.abs().amax(-1)
    assert (error <= scale * (rounding + tolerance) + 2 * eps * grad.abs() + smallest).all(), (error, scale)


def check_shift(kernels: Any, dtype: torch.dtype) -> None:
    """One number more in all logits of a row, which rounds none of them, changes nothing at all."""
    logits, teacher = make_case(4, 300, 20, dtype)
    logits = (8 * logits).round() / 8
    grad = torch.ones(4, dtype=accumulator_dtype(dtype))
    before = run(kernels, logits, teacher, 0.3, OPTIONS["plain"], grad, inplace=False)
    after = run(kernels, logits + 2.0**15, teacher, 0.3, OPTIONS["plain"], grad, inplace=False)
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def check_tail(kernels: Any, dtype: torch.dtype) -> None:
    """A tail of 1e-9, of teacher and student, has its gradient: relative to it, not to the row."""
    classes, slots = 5000, 4
    logits = torch.zeros(1, classes, dtype=torch.float64)
    logits[0, :slots] = torch.tensor([30.0, 29.0, 28.0, 31.0])
    logits[0, slots:] = torch.randn(classes - slots, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    logits = logits.to(dtype)
    log_q = torch.tensor([[0.5, 0.2, 0.2, 0.1 - 1e-9]], dtype=torch.float64).log()
    log_share = torch.full((1,), 1e-9 / classes, dtype=torch.float64).log()
    log_a = torch.logaddexp(log_q, log_share.unsqueeze(-1))
    teacher = Spread(torch.arange(slots).unsqueeze(0), log_a, log_share)
    wide = logits.double().clone().requires_grad_()
    (expected,) = torch.autograd.grad(definition(wide, teacher, 0.5, OPTIONS["plain"]).sum(), wide)
    grad = torch.ones(1, dtype=accumulator_dtype(dtype))
    _, out = run(kernels, logits, teacher, 0.5, OPTIONS["plain"], grad, inplace=False)
    tail, expected = out[0, slots:].double(), expected[0, slots:]
    # A logit lies up to 34 below the largest: e to the rounded difference errs by half as many roundings.
    assert (tail - expected).norm() <= 17 * torch.finfo(dtype).eps * expected.norm()
