"""The file of a similarity table: safetensors, with the settings in its metadata."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from smoothloss import _tensor_file

_FORMAT = "smoothloss.similarity_table.1"
_SETTINGS = ("tau", "beta", "tail_mode")
TAIL_MODES = ("uniform", "renormalize", "exact")
SMALLEST_EXACT_TAU = 1e-4
LARGEST_BETA = 1000.0
# V and K are the sizes of `indices`, d the width of `unit_vectors`.
_TENSORS: dict[str, tuple[torch.dtype, str]] = {
    "indices": (torch.int32, "VK"),
    "weights": (torch.float32, "VK"),
    "tail": (torch.float32, "V"),
    "kept_mass": (torch.float32, "V"),
    "unit_vectors": (torch.float32, "Vd"),
    "log_normalizer": (torch.float64, "V"),
    "has_neighbours": (torch.bool, "V"),
    "counts": (torch.float64, "V"),
}


def write(path: Path, tensors: dict[str, torch.Tensor], settings: dict[str, str]) -> None:
    """Writes the file; it appears complete or not at all."""
    _tensor_file.write(path, tensors, {**settings, "format": _FORMAT})


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and settings of a table's file, with everything checked that later code relies on.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such file, or a damaged one.
    """
    tensors, settings = _tensor_file.read(path, _FORMAT, "similarity table")
    try:
        _check_settings(settings)
        _check_tensors(tensors, needs_counts=float(settings["beta"]) > 0)
    except ValueError as error:
        raise ValueError(f"path: {path} is a damaged similarity table ({error})") from error
    return tensors, settings


def _check_settings(settings: dict[str, str]) -> None:
    if sorted(settings) != sorted(_SETTINGS):
        raise ValueError(f"settings {sorted(settings)}, expected {sorted(_SETTINGS)}")
    check_settings(float(settings["tau"]), float(settings["beta"]), settings["tail_mode"])


def check_settings(tau: float, beta: float, tail: str) -> None:
    """Raise ValueError on a setting out of its range."""
    if not 0 < tau < math.inf:
        raise ValueError(f"tau: got {tau}, expected a finite number > 0")
    if not 0 <= beta <= LARGEST_BETA:
        raise ValueError(f"beta: got {beta}, expected 0 to {LARGEST_BETA:g}; beyond, nothing is left of the cosine")
    if tail not in TAIL_MODES:
        raise ValueError(f"tail: got {tail!r}, expected one of {', '.join(map(repr, TAIL_MODES))}")
    if tail == "exact" and tau < SMALLEST_EXACT_TAU:
        raise ValueError(
            f"tau: got {tau}, expected at least {SMALLEST_EXACT_TAU:g} with tail='exact', whose rows the losses compute"
            " in float32"
        )


def _check_tensors(tensors: dict[str, torch.Tensor], needs_counts: bool) -> None:
    required = set(_TENSORS) - ({"counts"} if not needs_counts else set())
    if not required <= set(tensors) <= set(_TENSORS):
        raise ValueError(f"tensors {sorted(tensors)}, expected {sorted(_TENSORS)}")
    indices, unit_vectors = tensors["indices"], tensors["unit_vectors"]
    if indices.dim() != 2 or unit_vectors.dim() != 2:
        raise ValueError("indices and unit_vectors: expected two dimensions")
    sizes = {"V": indices.shape[0], "K": indices.shape[1], "d": unit_vectors.shape[1]}
    for name, tensor in tensors.items():
        dtype, dimensions = _TENSORS[name]
        shape = tuple(sizes[dimension] for dimension in dimensions)
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: got {tensor.dtype} {tuple(tensor.shape)}, expected {dtype} {shape}")
        # Infinite is the normaliser of a token without neighbours.
        if tensor.isnan().any() or (name != "log_normalizer" and tensor.isinf().any()):
            raise ValueError(f"{name}: got infinite or NaN values")
    if not ((indices >= -1) & (indices < sizes["V"])).all():
        raise ValueError(f"indices: got values outside [-1, {sizes['V']})")
