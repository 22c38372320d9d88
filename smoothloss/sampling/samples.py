"""What every sampler takes and returns."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from smoothloss.sampling.pools import Pool


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


class Sentences(NamedTuple):
    """The ground truths of a batch.

    Attributes:
        target: ``(B, T)``.
        lengths: ``(B,)`` int64.
        within: ``(B, T)`` bool, the positions within a sentence.
        replaceable: ``(B, T)`` bool, those of them whose token the pool does not exclude.
        references: ``(B, R)``, negative in padding, or None.
    """

    target: Tensor
    lengths: Tensor
    within: Tensor
    replaceable: Tensor
    references: Tensor | None


class Sampler(ABC):
    """Draws sequences around ground truths.

    Attributes:
        tau: Temperature, > 0.
        pool: Where tokens come from.
    """

    tau: float
    pool: Pool

    def __call__(
        self,
        target: Tensor,
        lengths: Tensor | None,
        num_samples: int,
        generator: torch.Generator | None = None,
        references: Tensor | None = None,
    ) -> Samples:
        """Draws L samples for each of B sentences, on the tensors' device and without waiting for it.

        Args:
            target: ``(B, T)`` integer ground truths. What stands beyond a sentence's length, EOS and padding, stays.
            lengths: ``(B,)`` integer lengths, EOS not counted; None stands for T.
            num_samples: L, >= 1.
            generator: Random numbers of the target's device; the same seed gives the same samples.
            references: ``(B, R)`` integer token ids, padded by negative ids; only for :class:`ReferencePool`.

        Raises:
            TypeError: A tensor is not of integers, or ``num_samples`` no integer.
            ValueError: Shapes or devices do not fit, ``num_samples < 1``, or references are missing.
        """
        _check_call(target, lengths, num_samples, references)
        batch, width = target.shape
        if lengths is None:
            lengths = target.new_full((batch,), width, dtype=torch.int64)
        lengths = lengths.to(torch.int64).clamp(0, width)
        within = torch.arange(width, device=target.device) < lengths[:, None]
        replaceable = within & ~self.pool.is_excluded(target)
        sentences = Sentences(target, lengths, within, replaceable, references)
        return self._draw(sentences, num_samples, generator)

    @abstractmethod
    def _draw(self, sentences: Sentences, num_samples: int, generator: torch.Generator | None) -> Samples:
        """Draw L samples for each sentence."""


def check_tau(tau: float) -> float:
    """Return the temperature, or raise ValueError where it is not a finite number > 0."""
    if not 0 < tau < math.inf:
        raise ValueError(f"tau: got {tau}, expected a finite number > 0")
    return float(tau)


def uniform(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Return random numbers in [0, 1) with all the bits that float64 has for them."""
    return torch.rand(shape, dtype=torch.float64, device=device, generator=generator)


def _check_call(target: Tensor, lengths: Tensor | None, num_samples: int, references: Tensor | None) -> None:
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
