"""Devices by the names that recipes and commands give them."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from smoothloss_trainer.errors import RecipeError


def choose_device(name: str, *, here: bool = True) -> torch.device:
    """The device of this name; ``auto`` is a CUDA device when there is one, else the CPU.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        here: Refuse a device that this machine lacks.

    Raises:
        RecipeError: when it is none of these, or missing.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:[1-9]?[0-9])?", name):
        raise RecipeError(f"device must be auto, cpu, cuda, cuda:<number> or mps, got {name!r}")
    device = torch.device(name)
    if not here:
        return device
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise RecipeError(f"device is {name!r}, but torch sees {torch.cuda.device_count()} CUDA devices here")
    if device.type == "mps" and not torch.backends.mps.is_available():
        built = torch.backends.mps.is_built()
        why = "this machine has none" if built else "this torch was built without it (it is for Apple's GPUs)"
        raise RecipeError(f"device is 'mps', but {why}")
    return device


def sum_dtype(device: torch.device) -> torch.dtype:
    """What sums are kept in on a device: float64, where it has that."""
    return torch.float32 if device.type == "mps" else torch.float64


def on_host(tensor: Tensor) -> bool:
    """Whether its values can be read without waiting for a device, so that padding can be found and left out."""
    return tensor.device.type == "cpu"
