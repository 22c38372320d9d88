"""What a similarity table is built from, checked and brought to the shape that it is computed in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

# Term counts other than 0. Their ratios are float32, with a count of 1e-30 in the place of 0.
_COUNTS = (1e-20, 1e30)


def unit_vectors(vectors: torch.Tensor, exclude: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``(V, d)`` float32 vectors of length 1, or zeros, and which tokens ``(V,)`` have one."""
    has_nan = vectors.isnan().any(dim=-1)
    vectors = vectors.masked_fill(has_nan[:, None], 0.0)
    if vectors.isinf().any():
        offender = int(vectors.isinf().any(dim=-1).nonzero()[0])
        raise ValueError(f"vectors: got an infinite value in row {offender}, expected finite values")
    # Scaled by the largest entry first, so that no square overflows or underflows.
    largest = vectors.abs().amax(dim=-1, keepdim=True)
    has_vector = largest[:, 0] > 0
    if exclude:
        has_vector[torch.tensor(exclude, device=vectors.device)] = False
    scaled = vectors.double() / largest.double().masked_fill(largest == 0, 1.0)
    unit = scaled / scaled.norm(dim=-1, keepdim=True).clamp(min=1.0)
    return unit.masked_fill(~has_vector[:, None], 0.0).float(), has_vector


def checked_vectors(vectors: torch.Tensor | np.ndarray[Any, Any], device: torch.device | str | None) -> torch.Tensor:
    """Return the vectors as a float32 or float64 tensor ``(V, d)``, or raise TypeError or ValueError."""
    if not isinstance(vectors, (torch.Tensor, np.ndarray)):
        raise TypeError(f"vectors: got {type(vectors).__name__}, expected a torch.Tensor or numpy array")
    if not (vectors.dtype.is_floating_point if isinstance(vectors, torch.Tensor) else vectors.dtype.kind == "f"):
        raise TypeError(f"vectors: got dtype {vectors.dtype}, expected a floating point type")
    if isinstance(vectors, np.ndarray):
        # Any layout and byte order; float16 as float32, longer ones than float64 as float64.
        vectors = torch.from_numpy(np.array(vectors, np.float32 if vectors.dtype.itemsize <= 4 else np.float64))
    vectors = vectors.detach().to(device if device is not None else vectors.device)
    if vectors.dim() != 2 or 0 in vectors.shape:
        raise ValueError(f"vectors: got shape {tuple(vectors.shape)}, expected (V, d) with V >= 1 and d >= 1")
    return vectors if vectors.dtype == torch.float64 else vectors.float()


def checked_counts(
    counts: torch.Tensor | np.ndarray[Any, Any] | Sequence[float], num_tokens: int, device: torch.device
) -> torch.Tensor:
    """Return the counts as a float64 tensor ``(V,)``, or raise TypeError or ValueError."""
    values = counts if isinstance(counts, torch.Tensor) else _array_of_counts(counts)
    if values.dtype.is_complex or values.dtype == torch.bool:
        raise TypeError(f"counts: got dtype {values.dtype}, expected numbers")
    checked = values.detach().to(device, torch.float64)
    if checked.shape != (num_tokens,):
        raise ValueError(f"counts: got shape {tuple(checked.shape)}, expected ({num_tokens},), one for each vector")
    smallest, largest = _COUNTS
    wrong = ~((checked == 0) | ((checked >= smallest) & (checked <= largest)))
    if wrong.any():
        place = int(wrong.nonzero()[0])
        raise ValueError(
            f"counts: got {float(checked[place])} for token {place}, expected 0, or {smallest:g} to {largest:g}"
        )
    return checked


def _array_of_counts(counts: np.ndarray[Any, Any] | Sequence[float]) -> torch.Tensor:
    try:
        values = np.asarray(counts)
    except (TypeError, ValueError):  # rows of different lengths
        values = np.asarray(None)
    if values.dtype.kind not in "iuf" and values.size:
        raise TypeError(f"counts: got {type(counts).__name__} of {values.dtype}, expected a sequence of numbers")
    return torch.from_numpy(values.astype(np.float64))
