"""Which implementation runs: `auto` picks by device and dtype, an explicit choice runs or says why it cannot."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Literal, get_args

import torch

Implementation = Literal["auto", "reference", "native", "triton"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)

_MODULES = {
    "reference": "smoothloss.backends.reference",
    "native": "smoothloss.backends.native",
    "triton": "smoothloss.backends.triton",
}
# On an H100 the CUDA C++ kernels took 0.74 to 0.96 of the time of Triton's on given logits, 1.07 in the smallest case
# (benchmarks/results/logits_h100.json), and half of it on the linear op's float32 logits, which no cache holds: they
# read them once, Triton's twice (benchmarks/NOTES.md).
_PREFERENCE = {"cpu": ("native", "reference"), "cuda": ("native", "triton", "reference")}


@functools.cache
def implementation(name: str) -> ModuleType:
    """Return the module of the implementation `name`, imported on first use."""
    return importlib.import_module(_MODULES[name])


@functools.cache
def unavailable(name: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Return why the implementation `name` cannot run there, or None when it can."""
    try:
        module = implementation(name)
    except ImportError as error:
        return f"{_MODULES[name]} cannot be imported: {error}"
    reason: str | None = module.unavailable(device_type, dtype)
    return reason


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def choose(impl: str, device_type: str, dtype: torch.dtype) -> str:
    """Return the implementation to run: "reference", "native" or "triton".

    Raises:
        ValueError: `impl` is not a known name.
        RuntimeError: `impl` names an implementation that cannot run on this device and dtype, with the reason.
    """
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl: got {impl!r}, expected one of {', '.join(map(repr, IMPLEMENTATIONS))}")
    if impl != "auto":
        reason = unavailable(impl, device_type, dtype)
        if reason is not None:
            raise RuntimeError(f"impl={impl!r} cannot run here: {reason}")
        return impl
    candidates = _PREFERENCE.get(device_type, ("reference",))
    return next(name for name in candidates if unavailable(name, device_type, dtype) is None)
