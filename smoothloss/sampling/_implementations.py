"""Which implementation of a sampler draws."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

from smoothloss.sampling.samples import Sentences


class Implementations:
    """The implementations of a sampler: modules with ``unavailable(sentences)`` and ``draw``, imported when asked for.

    Args:
        modules: The module of each name.
        preference: For each type of device the names in the order in which ``"auto"`` tries them. On other devices the
            reference draws.
    """

    def __init__(self, modules: dict[str, str], preference: dict[str, tuple[str, ...]]) -> None:
        self._modules, self._preference = modules, preference

    def check(self, impl: object) -> None:
        """Raise ValueError where this is the name of none of them."""
        names = ("auto", *self._modules)
        if impl not in names:
            raise ValueError(f"impl: got {impl!r}, expected one of {', '.join(map(repr, names))}")

    def module(self, impl: str, sentences: Sentences) -> ModuleType:
        """Return the module that draws.

        Raises:
            RuntimeError: `impl` is the name of one that cannot, with the reason.
        """
        if impl != "auto":
            reason = self._unavailable(impl, sentences)
            if reason is not None:
                raise RuntimeError(f"impl={impl!r} cannot run here: {reason}")
            return _import(self._modules[impl])
        candidates = self._preference.get(sentences.target.device.type, ("reference",))
        name = next(name for name in candidates if self._unavailable(name, sentences) is None)
        return _import(self._modules[name])

    def _unavailable(self, name: str, sentences: Sentences) -> str | None:
        try:
            reason: str | None = _import(self._modules[name]).unavailable(sentences)
        except ImportError as error:
            return f"{self._modules[name]} cannot be imported: {error}"
        return reason


@functools.cache
def _import(module: str) -> ModuleType:
    return importlib.import_module(module)
