"""Which of torch's ways a call is on: plain eager code, or under a compiler, a tracer or a transform of `torch.func`.

Eager code calls its implementation directly. Everything else goes through the torch operators, which carry fakes, an
autograd formula and a rule for vmap.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smoothloss import _graphs as graphs

_PLAIN = (Tensor, torch.nn.Parameter)
_TransformType = torch._C._functorch.TransformType

DOUBLE_BACKWARD = "double backward: smoothloss kernels are differentiable once; use impl='reference'"


def is_eager(*tensors: Tensor | None) -> bool:
    """Return whether the tensors hold numbers that a kernel may read now."""
    if torch.compiler.is_compiling() or is_transformed() or torch._C._len_torch_dispatch_stack():
        return False
    if torch._C._get_tracing_state() is not None:  # torch.jit.trace would take what a kernel writes for a constant
        return False
    for tensor in tensors:  # noqa: SIM110 (a generator costs more than the tensors)
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_meta):
            return False
    return True


def is_transformed() -> bool:
    """Return whether a transform of `torch.func` is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_batched(grad: Tensor) -> bool:
    """Return whether an incoming gradient stands for several: under vmap, or ``torch.autograd.grad``'s older kind.

    Raises:
        RuntimeError: it does, and what comes of it is to be differentiated in turn (``create_graph=True``). The graph
            would be that of what stands for several, which torch drops: a penalty would silently have no gradient.
    """
    if not (is_transformed() or torch._C._functorch.is_legacy_batchedtensor(grad)):
        return False
    if torch.is_grad_enabled():
        raise RuntimeError(DOUBLE_BACKWARD)
    return True


def needs_the_reference() -> bool:
    """Return whether a transform is at work that only plain torch code follows well: vmap, forward mode, or several."""
    if torch.compiler.is_compiling():
        return bool(_is_transformed_while_compiling())
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    if not is_transformed():
        return False
    levels = torch._C._functorch.get_interpreter_stack() or []
    return len(levels) > 1 or any(level.key() != _TransformType.Grad for level in levels)


@graphs.constant
def _is_transformed_while_compiling() -> bool:
    return is_transformed()


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
        raise RuntimeError(DOUBLE_BACKWARD)


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
