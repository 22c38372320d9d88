"""CUDA graphs in the imagination: what torch and the kernels are asked for is noted, and asked for again.

As in a graph, memory stays where it is, shapes and Python's decisions are those of the recording, and random numbers
come from the generators as they stand at a replay. Whatever would read a value on the host is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from smoothloss import _compiled as compiled

READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "unique", "masked_select", "equal")


class _Operators(TorchDispatchMode):
    """Notes each operator with its arguments and results."""

    def __init__(self, notes: list[Callable[[], object]]) -> None:
        super().__init__()
        self.notes, self.is_inside = notes, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[-1]
        assert name not in READS, f"{name} reads a value on the host"
        # As they are now: some operators change a tensor's shape in place, which is no work.
        given = tree_map(_same_memory, (args, kwargs))
        self.is_inside = True  # what an operator asks for, it asks for again itself
        try:
            results = func(*args, **kwargs)
        finally:
            self.is_inside = False
        if not func.is_view and torch.Tag.inplace_view not in func.tags:
            made = tree_leaves(tree_map(_same_memory, results))
            self.notes.append(lambda: _again(func, *given, made))
        return results


def _same_memory(value: Any) -> Any:
    return torch.ops.aten.alias(value) if isinstance(value, torch.Tensor) else value


def _again(func: Any, args: Any, kwargs: Any, made: list[Any]) -> None:
    """Ask again, with the result where it was: of a view, or in place, it is there already."""
    with torch._C._AutoDispatchBelowAutograd():
        for old, new in zip(made, tree_leaves(func(*args, **kwargs)), strict=True):
            if isinstance(old, torch.Tensor) and old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                old.copy_(new)


class Recorder:
    """Records what :meth:`running` would do, and does it that once: a recording's first replay is nothing.

    Attributes:
        recorded: How many recordings were made.
        replays: How many replays.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.recorded = self.replays = 0
        self._operators: _Operators | None = None
        module = compiled.require("_C")
        for name, function in vars(module).items():
            if callable(function) and not isinstance(function, type):
                monkeypatch.setattr(module, name, self._noted(function))

    def running(self) -> AbstractContextManager[None]:
        """Nothing special."""
        return nullcontext()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Note what the work asks for."""
        self.recorded += 1
        with self._noting() as notes:
            work()
        pending = [True]

        def replay() -> None:
            self.replays += 1
            if pending:
                pending.clear()
                return
            for again in notes:
                again()

        return replay

    @contextmanager
    def _noting(self) -> Iterator[list[Callable[[], object]]]:
        self._operators = _Operators([])
        with self._operators:
            yield self._operators.notes
        self._operators = None

    def _noted(self, kernel: Callable[..., object]) -> Callable[..., object]:
        def asked(*args: Any, **kwargs: Any) -> object:
            if self._operators is not None and not self._operators.is_inside:
                self._operators.notes.append(lambda: kernel(*args, **kwargs))
            return kernel(*args, **kwargs)

        return asked
