"""Which implementation of a sampler draws, or weighs what was drawn."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch


class Implementations:
    """The implementations of one thing: modules, imported when asked for, whose ``unavailable`` says why not.

    Args:
        modules: The module of each name.
        preference: For each type of device the names in the order in which ``"auto"`` tries them. On other devices it
            is the reference.
    """

    def __init__(self, modules: dict[str, str], preference: dict[str, tuple[str, ...]]) -> None:
        self._modules, self._preference = modules, preference

    def check(self, impl: object) -> None:
        """Raise ValueError where this is the name of none of them."""
        names = ("auto", *self._modules)
        if impl not in names:
            raise ValueError(f"impl: got {impl!r}, expected one of {', '.join(map(repr, names))}")

    def module(self, impl: str, device: torch.device, given: object) -> ModuleType:
        """Return the module that does it.

        Args:
            impl: A name, or ``"auto"``.
            device: Where.
            given: What ``unavailable`` looks at: the sentences of a draw, or the samples that are weighed.

        Raises:
            RuntimeError: `impl` is the name of one that cannot, with the reason.
        """
        if impl != "auto":
            reason = self._unavailable(impl, given)
            if reason is not None:
                raise RuntimeError(f"impl={impl!r} cannot run here: {reason}")
            return _import(self._modules[impl])
        candidates = self._preference.get(device.type, ("reference",))
        name = next(name for name in candidates if self._unavailable(name, given) is None)
        return _import(self._modules[name])

    def _unavailable(self, name: str, given: object) -> str | None:
        try:
            reason: str | None = _import(self._modules[name]).unavailable(given)
        except ImportError as error:
            return f"{self._modules[name]} cannot be imported: {error}"
        return reason


@functools.cache
def _import(module: str) -> ModuleType:
    return importlib.import_module(module)
