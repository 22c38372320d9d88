"""Which slice of the classes this process holds: what a DTensor says of it, or a group."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

from smoothloss._validation import check_local


def is_distributed() -> bool:
    """Return whether there are process groups, without which there is no DTensor either."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def slice_of_logits(logits: Tensor, group: Any) -> tuple[Tensor, Any]:
    """Return this process's slice of logits, and the group over which the classes are split, or None."""
    if not _is_dtensor(logits):
        return logits, group
    return logits.to_local(), _group_of(logits, "input", logits.dim() - 1, group)  # type: ignore[attr-defined]


def slice_of_linear(
    inputs: Tensor, weight: Tensor, bias: Tensor | None, group: Any
) -> tuple[Tensor, Tensor, Tensor | None, Any, bool]:
    """Return hidden states, this process's slice of weight and bias, the group, or None, and whether it scatters.

    Hidden states that are split along another dimension than their last, over the processes that the classes are split
    over, are gathered, and their gradient goes back by a reduce-scatter: the op leaves it as each process's part.
    """
    is_split = _is_dtensor(inputs)
    if not _is_dtensor(weight):
        if is_split:
            _group_of(inputs, "input", None, None)
            inputs = inputs.to_local()  # type: ignore[attr-defined]
        if bias is not None:
            check_local(bias, "linear_bias")
        return inputs, weight, bias, group, False
    own = _group_of(weight, "linear_weight", 0, group)
    if bias is not None:
        if not _is_dtensor(bias) or bias.placements != weight.placements:  # type: ignore[attr-defined]
            got = f"placed {bias.placements}" if _is_dtensor(bias) else "that is a plain tensor"  # type: ignore[attr-defined]
            raise ValueError(f"linear_bias: got one {got}, expected a DTensor placed as linear_weight is")
        bias = bias.to_local()  # type: ignore[attr-defined]
    scatters = False
    if is_split:
        inputs, scatters = _gathered(inputs, weight)
    return inputs, weight.to_local(), bias, own, scatters  # type: ignore[attr-defined]


def _gathered(inputs: Any, weight: Any) -> tuple[Tensor, bool]:
    """Return hidden states as a whole, and whether their gradient is to be scattered where they were split."""
    from torch.distributed.tensor import Partial, Replicate

    is_split = inputs.device_mesh == weight.device_mesh and any(
        mine.is_shard() and mine.dim % inputs.dim() != inputs.dim() - 1 and classes.is_shard()
        for mine, classes in zip(inputs.placements, weight.placements, strict=True)
    )
    if not is_split:
        _group_of(inputs, "input", None, None)
        return inputs.to_local(), False
    if not all(
        mine.is_replicate() or (mine.is_shard() and classes.is_shard())
        for mine, classes in zip(inputs.placements, weight.placements, strict=True)
    ):
        raise ValueError(f"input: got a DTensor placed {inputs.placements}, expected one split as the classes are")
    whole = inputs.redistribute(placements=[Replicate()] * len(inputs.placements))
    back = [Partial() if classes.is_shard() else Replicate() for classes in weight.placements]
    return whole.to_local(grad_placements=back), True


def _is_dtensor(tensor: Tensor) -> bool:
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _group_of(tensor: Any, name: str, classes: int | None, group: Any) -> Any:
    """Return the group over which a DTensor is split along the dimension `classes`, None where it is replicated."""
    if group is not None:
        raise ValueError(f"group: got one beside {name} as a DTensor, which says it already, expected None")
    found = []
    for dimension, placement in enumerate(tensor.placements):
        if classes is not None and placement.is_shard() and placement.dim % tensor.dim() == classes:
            found.append(dimension)
        elif not placement.is_replicate():
            wanted = "replicated" if classes is None else f"replicated, or split along dimension {classes}, the classes"
            raise ValueError(f"{name}: got a DTensor placed {tensor.placements}, expected {wanted}")
    if len(found) > 1:
        raise ValueError(f"{name}: got a DTensor placed {tensor.placements}, expected one split of the classes")
    return tensor.device_mesh.get_group(found[0]) if found else None
