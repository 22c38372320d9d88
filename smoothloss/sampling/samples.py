"""What every sampler takes and returns."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Samples(NamedTuple):
    """L sequences for each of B ground truths.

    Attributes:
        tokens: ``(L, B, T)`` in the ground truth's dtype.
        distance: ``(L, B)`` int64, how many edits the sampler made.
        log_prob: ``(L, B)`` float32, ``log q(sample | ground truth)``.
        lengths: ``(L, B)`` int64, the lengths of the samples, counted as those of the ground truths are.
    """

    tokens: Tensor
    distance: Tensor
    log_prob: Tensor
    lengths: Tensor


def check_tau(tau: float) -> float:
    """Return the temperature, or raise ValueError where it is not a finite number > 0."""
    if not 0 < tau < math.inf:
        raise ValueError(f"tau: got {tau}, expected a finite number > 0")
    return float(tau)


def uniform(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Return random numbers in [0, 1) with all the bits that float64 has for them."""
    return torch.rand(shape, dtype=torch.float64, device=device, generator=generator)


def check_call(target: Tensor, lengths: Tensor | None, num_samples: int, references: Tensor | None) -> None:
    """Check what a sampler is called with; see `HammingSampler.__call__` for what is raised."""
    if target.dim() != 2:
        raise ValueError(f"target: got shape {tuple(target.shape)}, expected (B, T)")
    batch = target.shape[0]
    for name, tensor in (("target", target), ("lengths", lengths), ("references", references)):
        if tensor is None:
            continue
        if tensor.dtype not in (torch.int64, torch.int32, torch.int16):
            raise TypeError(f"{name}: got dtype {tensor.dtype}, expected int64, int32 or int16")
        if tensor.device != target.device:
            raise ValueError(f"{name}: got device {tensor.device}, expected the target's, {target.device}")
    if lengths is not None and lengths.shape != (batch,):
        raise ValueError(f"lengths: got shape {tuple(lengths.shape)}, expected ({batch},)")
    if references is not None and (references.dim() != 2 or references.shape[0] != batch):
        raise ValueError(f"references: got shape {tuple(references.shape)}, expected ({batch}, R)")
    if isinstance(num_samples, bool) or not isinstance(num_samples, int):
        raise TypeError(f"num_samples: got {num_samples!r} ({type(num_samples).__name__}), expected an integer")
    if num_samples < 1:
        raise ValueError(f"num_samples: got {num_samples}, expected at least 1")


def sentence_lengths(target: Tensor, lengths: Tensor | None) -> Tensor:
    """Return the ``(B,)`` int64 lengths within ``[0, T]``; T for None."""
    batch, length = target.shape
    if lengths is None:
        return target.new_full((batch,), length, dtype=torch.int64)
    return lengths.to(torch.int64).clamp(0, length)
