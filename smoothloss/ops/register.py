"""Definition of the torch operators: schema, one implementation for every device, fake, gradient, rule for vmap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from smoothloss.ops.transforms import DOUBLE_BACKWARD, apply, is_transformed

LIBRARY = torch.library.Library("smoothloss", "DEF")
# What `FlatTarget.pack` returns.
TARGET_SCHEMA = (
    "Tensor indices, Tensor? weights, Tensor? uniform, Tensor? prior, Tensor[] source, float[] settings,"
    " int? ignore_index"
)
# All of `RowOptions`, in their order.
OPTIONS_SCHEMA = "float[] options"


class Operator:
    """A torch operator that can be called under transforms of `torch.func` too."""

    def __init__(self, overload: Any, transformable: type[torch.autograd.Function]) -> None:
        """Hold both ways of calling it."""
        self.overload, self._transformable = overload, transformable

    def __call__(self, *arguments: Any) -> Any:
        """Call it."""
        if torch.compiler.is_compiling() or not is_transformed():
            return self.overload(*arguments)
        return apply(self._transformable, *arguments)


def define(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Operator:
    """Define ``smoothloss::schema`` and return it.

    Args:
        schema: the operator's.
        implementation: for every device; it chooses the kernels itself.
        fake: what the results look like.
        backward: the gradient, with `setup_context`. Without one, differentiating the operator raises.
        setup_context: what the backward is to know.
    """
    name = schema[: schema.index("(")]
    LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    LIBRARY.impl(name, _without_grad(implementation), "CompositeExplicitAutograd")
    qualified = f"smoothloss::{name}"
    torch.library.register_fake(qualified, fake, lib=LIBRARY)
    backward, setup_context = backward or _refuse, setup_context or _nothing
    torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=LIBRARY)
    overload = getattr(torch.ops.smoothloss, name).default
    torch.library.register_vmap(qualified, _loop(overload), lib=LIBRARY)
    # The gradient that torch makes of the two functions has no way with transforms; a Function that has them apart has.
    members = {
        "generate_vmap_rule": True,
        "forward": staticmethod(overload.__call__),
        "setup_context": staticmethod(setup_context),
        "backward": staticmethod(_without_lists(backward)),
    }
    return Operator(overload, type(name, (torch.autograd.Function,), members))


def _nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    del ctx, inputs, output


def _without_grad(implementation: Callable[..., Any]) -> Callable[..., Any]:
    """Let the implementation write to tensors of its own, whatever the inputs require (an exported graph's do)."""

    def run(*arguments: Any) -> Any:
        with torch.no_grad():
            return implementation(*arguments)

    return run


def _without_lists(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Say None of a list as a Function must, where an operator says it of each tensor in it."""

    def run(ctx: Any, *grads: Any) -> Any:
        results = backward(ctx, *grads)
        return tuple(None if isinstance(result, list) else result for result in results)

    return run


def no_gradients(lengths: tuple[int, int], others: int) -> tuple[Any, ...]:
    """Return what a backward says of a target, with lists of these lengths, and of so many arguments after it."""
    sources, settings = lengths
    return None, None, None, None, [None] * sources, None if settings else [], None, *(None,) * others


def _refuse(ctx: Any, *grads: Any) -> Any:
    del ctx, grads
    raise RuntimeError(DOUBLE_BACKWARD)


def _loop(operator: Callable[..., Any]) -> Callable[..., Any]:
    """Return the rule that calls the operator once for each element of the mapped dimension."""

    def rule(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        leaves, spec = pytree.tree_flatten(arguments)
        dims = pytree._broadcast_to_and_flatten(in_dims, spec)
        assert dims is not None

        def element(number: int) -> Any:
            chosen = [leaf if dim is None else leaf.select(dim, number) for leaf, dim in zip(leaves, dims, strict=True)]
            return operator(*pytree.tree_unflatten(chosen, spec))

        results = [element(number) for number in range(info.batch_size)]
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])

    return rule
