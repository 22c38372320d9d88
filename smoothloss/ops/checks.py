"""Checks on values, which need the data and so run inside the operators: always on the CPU, elsewhere on demand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

_debugging = False


@contextlib.contextmanager
def debug(enabled: bool = True) -> Iterator[None]:
    """Check the values of indices on CUDA too while the context is open (each check costs a host sync).

    Without it an index out of range on CUDA is an empty slot: nothing outside the tensors is ever read or written.
    """
    global _debugging
    before, _debugging = _debugging, enabled
    try:
        yield
    finally:
        _debugging = before


def check_index_values(
    indices: Tensor, size: int, name: str = "indices", what: str = "classes", ignore: int | None = None
) -> None:
    """Raise on the first index that is not below `size` (nor negative, unless `ignore` names the one exception).

    Raises:
        IndexError: with the position and the value of the first offender.
    """
    if indices.numel() == 0 or not (indices.device.type == "cpu" or _debugging):
        return
    lowest, highest = indices.aminmax() if ignore is not None else (None, indices.amax())
    if highest < size and (lowest is None or lowest >= 0):
        return
    wrong = indices >= size
    if ignore is not None:
        wrong = (wrong | (indices < 0)) & (indices != ignore)
    if not wrong.any():
        return
    position = tuple(wrong.nonzero()[0].tolist())
    place = f"{name}[{', '.join(map(str, position))}]" if position else name
    raise IndexError(f"{place}: got {indices[position].item()}, expected an index below {size} ({size} {what})")


def as_int32(indices: Tensor, size: int, checked: bool = False) -> Tensor:
    """Return `indices` as contiguous int32 with everything out of range an empty slot, checked unless they were."""
    if not checked:
        check_index_values(indices, size)
    if indices.dtype == torch.int64:
        indices = indices.clamp(min=-1, max=size).to(torch.int32)
    return indices.to(torch.int32).contiguous()
