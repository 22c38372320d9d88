"""What needs every single class of a row, where the classes are split over processes.

No kernel and no merged statistics can do it: each process goes over its own slice for the softmax, and again for the
terms. Forward, two numbers of each row are sent for the softmax and two for the terms; back, the gradient of the hidden
states.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from smoothloss.backends.common import accumulator_dtype
from smoothloss.ops.transforms import apply
from smoothloss.ops.vocabulary_split import Split, check_eager, check_same


class _Shared(torch.autograd.Function):
    """What all processes have the same of, and each of which uses it for its own classes."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, split: Split) -> Tensor:
        ctx.split = split
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wide = grad.to(accumulator_dtype(grad.dtype)).clone()
        ctx.split.add_up(wide)
        return wide.to(grad.dtype), None


def _all_reduced(part: Tensor, group: Any, operation: Any = None) -> Tensor:
    whole = part.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(whole, operation or dist.ReduceOp.SUM, group=group)
    return whole


def shared(value: Tensor, split: Split) -> Tensor:
    """Return the same, whose gradient is the sum over the processes."""
    result: Tensor = apply(_Shared, value, split)
    return result


def over_slices(
    by_chunks: Callable[..., Tensor], scores: Callable[..., Tensor], rows: Tensor, terms: Callable[..., Tensor],
    arguments: tuple[Tensor, ...], size: int, group: Any, teachers: Tensor,
) -> Tensor:  # fmt: skip
    """Return the sum over all slices of ``terms(log_p, *arguments)``, ``log_p`` of this process's classes.

    With ``g`` the derivative of the terms by ``log_p``, the gradient of the scores is ``g - p sum g``, the sum over all
    slices: it is known before the backward, so that what cancels there does so before it meets a matrix product.

    Args:
        by_chunks: evaluates a function a few rows at a time.
        scores: makes this process's logits ``(n, V_r)`` of rows and `present`.
        rows: logits or hidden states ``(N, ...)``.
        terms: ``(n, V_r), ... -> (n,)``.
        arguments: `present` ``(N,)`` and what else `terms` takes.
        size: rows of a chunk.
        group: the processes.
        teachers: ``(N,)``, what `fingerprint` made of each row's teacher.
    """
    check_eager(rows)
    present, *rest = arguments

    def softmax(rows: Tensor, present: Tensor) -> Tensor:
        z = scores(rows, present)
        largest = torch.nn.functional.pad(z, (0, 1), value=-torch.inf).amax(-1, keepdim=True)
        return torch.cat((largest, (z - largest).exp().sum(-1, keepdim=True)), -1)

    def terms_and_slopes(rows: Tensor, present: Tensor, log_sum: Tensor, *rest: Tensor) -> Tensor:
        values, slopes = _slopes(terms, _log_p(scores(rows, present), log_sum), rest)
        return torch.stack((values, slopes.sum(-1)), -1)

    def steered(rows: Tensor, present: Tensor, log_sum: Tensor, slope: Tensor, *rest: Tensor) -> Tensor:
        z = scores(rows, present)
        log_p = _log_p(z.detach(), log_sum)
        gradient = _slopes(terms, log_p, rest)[1] - log_p.exp() * slope.unsqueeze(-1)
        along = (gradient * z).where(gradient != 0, 0.0).sum(-1)
        return along - along.detach()

    with torch.no_grad():
        log_sum = _merged(by_chunks(softmax, rows, (present,), size), group, teachers)
        found = by_chunks(terms_and_slopes, rows, (present, log_sum, *rest), size)
        values, slope = _all_reduced(found, group).unbind(-1)
    if not torch.is_grad_enabled():
        return values
    return values + by_chunks(steered, rows, (present, log_sum, slope, *rest), size)


def _merged(parts: Tensor, group: Any, teachers: Tensor) -> Tensor:
    """Return the largest logit of all slices, and the log of the sum relative to it, from those of a slice."""
    largest, total = parts.unbind(-1)
    sent = torch.stack((largest.double(), teachers, -teachers))
    found, most, negated_least = _all_reduced(sent, group, dist.ReduceOp.MAX)
    check_same(most, -negated_least)
    centre = found.to(largest.dtype)
    total = (total * (largest - centre).exp()).where(total != 0, 0.0)
    return torch.stack((centre, _all_reduced(total, group).log()), -1)


def _log_p(z: Tensor, log_sum: Tensor) -> Tensor:
    return z - log_sum[:, :1] - log_sum[:, 1:]


def _slopes(terms: Callable[..., Tensor], log_p: Tensor, rest: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return the terms, and their derivative by ``log_p``."""
    with torch.enable_grad():
        leaf = log_p.detach().requires_grad_()
        values = terms(leaf, *rest)
        (slopes,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), slopes
