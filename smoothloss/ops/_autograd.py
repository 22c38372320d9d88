"""What the kernels' autograd functions share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Return ``function.apply(*arguments)``, which torch leaves untyped."""
    return function.apply(*arguments)


class _DifferentiableOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, *sources: Tensor) -> Tensor:
        del ctx, sources
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        del ctx, grad
        raise RuntimeError("double backward: smoothloss kernels are differentiable once; use impl='reference'")


def differentiable_once(gradients: list[Tensor | None], *sources: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return gradients that raise when they are differentiated in turn (``create_graph=True``).

    torch's ``once_differentiable`` looks at the incoming gradient alone: with a constant one, the usual case, the
    gradients would pass for constants, and a gradient penalty would silently be wrong.

    Args:
        gradients: what a backward is about to return, computed without grad mode.
        sources: everything that they depend on.
    """
    if not torch.is_grad_enabled():
        return tuple(gradients)
    present = [source for source in sources if source is not None]
    return tuple(None if value is None else apply(_DifferentiableOnce, value, *present) for value in gradients)
