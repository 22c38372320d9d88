"""The compiled modules ``_C`` (CPU tensors) and ``_C_cuda`` (CUDA tensors), and calls of what is in them."""

from __future__ import annotations

import functools
import importlib
import os
from pathlib import Path
from types import ModuleType

import torch  # before _C, so that both share one OpenMP runtime
from torch import Tensor


@functools.cache
def load(name: str) -> tuple[ModuleType | None, str]:
    """Return a compiled module, or None and why it could not be loaded."""
    try:
        return importlib.import_module(f"smoothloss.{name}"), ""
    except ModuleNotFoundError:
        if name == "_C_cuda":
            return None, "smoothloss._C_cuda was not built: there was no working nvcc when smoothloss was installed"
        what_to_do = "if that is a checkout, run Python elsewhere, or install it with pip install -e"
        return None, f"smoothloss.{name} is not in {Path(__file__).parent}: {what_to_do}"
    except ImportError as error:
        return None, f"smoothloss.{name} cannot be loaded: {error}"


def require(name: str) -> ModuleType:
    """Return a compiled module.

    Raises:
        RuntimeError: with the reason why it could not be loaded.
    """
    module, reason = load(name)
    if module is None:
        raise RuntimeError(reason)
    return module


def why_not(device: torch.device) -> str | None:
    """Return why there are no kernels for a device's tensors, or None when there are."""
    if device.type not in ("cpu", "cuda"):
        return f"there are native kernels for cpu and cuda, not for {device.type}"
    if device.type == "cuda" and torch.version.hip is not None:
        return "the CUDA kernels do not run on ROCm"
    module, reason = load("_C" if device.type == "cpu" else "_C_cuda")
    return reason if module is None else None


def call(name: str, like: Tensor, *arguments: object) -> None:
    """Run a kernel on the device of `like`: with torch's number of threads, or on torch's current stream."""
    if like.device.type == "cpu":
        isa = os.environ.get("SMOOTHLOSS_ISA", "")
        getattr(require("_C"), name)(*arguments, torch.get_num_threads(), isa)
        return
    function, device = getattr(require("_C_cuda"), name), like.get_device()
    stream = torch.cuda.current_stream(device).cuda_stream
    if device == torch.cuda.current_device():  # nearly always: a context costs as much as the call
        function(*arguments, device, stream)
        return
    with torch.cuda.device(device):  # for it is this one that the kernels leave current
        function(*arguments, device, stream)
