"""Checks of the values of indices, which need the numbers: on the CPU the kernels make them, elsewhere on demand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from smoothloss.ops.register import define
from smoothloss.ops.transforms import is_eager

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


def is_debugging() -> bool:
    """Return whether a `debug` context is open."""
    return _debugging


def check_index_values(
    indices: Tensor, size: int, name: str = "indices", what: str = "classes", ignore: int | None = None
) -> None:
    """Raise on the first index that is not below `size` (nor negative, unless `ignore` names the one exception).

    Indices whose values nobody may ask for (fake, meta, traced, transformed, on a device without `debug`) pass.

    Raises:
        IndexError: with the position and the value of the first offender.
    """
    if not is_eager(indices) or indices.numel() == 0 or not (indices.device.type == "cpu" or _debugging):
        return
    wrong = indices >= size
    if ignore is not None:
        wrong = (wrong | (indices < 0)) & (indices != ignore)
    if not wrong.any():
        return
    position = tuple(wrong.nonzero()[0].tolist())
    place = f"{name}[{', '.join(map(str, position))}]" if position else name
    raise IndexError(f"{place}: got {indices[position].item()}, expected an index below {size} ({size} {what})")


def _checked(indices: Tensor, size: int, ignore_index: int | None) -> Tensor:
    name = "indices" if ignore_index is None else "target"
    check_index_values(indices, size, name, ignore=ignore_index)
    return indices.clone()


def _checked_fake(indices: Tensor, size: int, ignore_index: int | None) -> Tensor:
    del size, ignore_index
    return torch.empty_like(indices)


# What compiled plain torch code looks through before it uses them.
checked_op = define("checked_indices(Tensor indices, int size, int? ignore_index) -> Tensor", _checked, _checked_fake)
