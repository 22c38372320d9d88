"""What every sampler takes and returns."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from smoothloss._validation import check_integer, check_number
from smoothloss.ops import checks
from smoothloss.ops.transforms import is_eager
from smoothloss.sampling.philox import LARGEST_COUNT, draw_seed
from smoothloss.sampling.pools import Pool

_INTEGERS = (torch.int64, torch.int32, torch.int16)
# Thresholds and log-probabilities are float64, which these devices do not have: their draws are made on the CPU.
_WITHOUT_FLOAT64 = ("mps",)


class Samples(NamedTuple):
    """L sequences for each of B ground truths.

    Attributes:
        tokens: ``(L, B, T)`` in the ground truths' dtype, or a wider one where a token of the pool needs it.
        distance: ``(L, B)`` int64, how many edits the sampler made.
        log_prob: ``(L, B)`` float32, ``log q(sample | ground truth)``.
        lengths: ``(L, B)`` int64, the lengths of the samples, counted as those of the ground truths are.
    """

    tokens: Tensor
    distance: Tensor
    log_prob: Tensor
    lengths: Tensor


class Sentences:
    """The ground truths of a batch, contiguous.

    Attributes:
        target: ``(B, T)``.
        given_lengths: ``(B,)`` int64, or None for T.
        references: ``(B, R)``, negative in padding, or None.
        pool: Which says what may be replaced.
    """

    def __init__(self, target: Tensor, lengths: Tensor | None, references: Tensor | None, pool: Pool) -> None:
        self.target, self.pool = target.contiguous(), pool
        if lengths is not None and lengths.dtype != torch.int64:
            lengths = lengths.to(torch.int64)
        self.given_lengths = None if lengths is None else lengths.contiguous()
        self.references = None if references is None else references.contiguous()

    @functools.cached_property
    def lengths(self) -> Tensor:
        """``(B,)`` int64."""
        batch, width = self.target.shape
        if self.given_lengths is None:
            return torch.full((batch,), width, dtype=torch.int64, device=self.target.device)
        return self.given_lengths

    @functools.cached_property
    def within(self) -> Tensor:
        """``(B, T)`` bool, the positions within a sentence."""
        return torch.arange(self.target.shape[1], device=self.target.device) < self.lengths[:, None]

    @functools.cached_property
    def replaceable(self) -> Tensor:
        """``(B, T)`` bool, those of them whose token the pool does not exclude."""
        return self.within & ~self.pool.is_excluded(self.target)

    def has_values(self) -> bool:
        """Whether there is memory behind the tensors that a kernel could read: no fake tensors, nor others' own."""
        return is_eager(self.target)

    def check_lengths(self) -> None:
        """Raise ValueError on a length out of range: on the CPU, elsewhere within ``smoothloss.debug()``."""
        lengths, width = self.given_lengths, self.target.shape[1]
        if lengths is None or not self.has_values() or not (lengths.is_cpu or checks.is_debugging()):
            return
        wrong = (lengths < 0) | (lengths > width)
        if wrong.any():
            place = int(wrong.nonzero()[0])
            raise ValueError(f"lengths[{place}]: got {int(lengths[place])}, expected 0 to {width}, the width of target")

    def to(self, device: torch.device | str) -> Sentences:
        """The same sentences on another device."""
        lengths, references = self.given_lengths, self.references
        return Sentences(
            self.target.to(device),
            None if lengths is None else lengths.to(device),
            None if references is None else references.to(device),
            self.pool,
        )


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

        The draw takes one seed from the generator. From a seed come the same samples on every device, and a sentence's
        do not depend on how long its batch is padded: see :mod:`smoothloss.sampling.philox`.

        Args:
            target: ``(B, T)`` integer ground truths. What stands beyond a sentence's length, EOS and padding, stays.
            lengths: ``(B,)`` integer lengths from 0 to T, EOS not counted; None stands for T.
            num_samples: L, >= 1.
            generator: Where the seed comes from, by default torch's of the target's device. One of another device
                serves too, at the cost of a copy.
            references: ``(B, R)`` integer token ids, padded by negative ids; only for :class:`ReferencePool`.

        Raises:
            TypeError: An argument is no tensor of integers, no integer or no generator.
            ValueError: Shapes or devices do not fit, ``num_samples < 1``, references are missing, or a length is out of
                range (checked on the CPU, and within ``smoothloss.debug()``; elsewhere it is clamped).
        """
        num_samples = _check_call(target, lengths, num_samples, generator, references)
        sentences = Sentences(target, lengths, references, self.pool)
        if target.device.type in _WITHOUT_FLOAT64:
            seed = draw_seed(torch.device("cpu"), generator)
            drawn = self._draw(sentences.to("cpu"), num_samples, seed)
            return Samples(*(tensor.to(target.device) for tensor in drawn))
        return self._draw(sentences, num_samples, draw_seed(target.device, generator))

    @abstractmethod
    def _draw(self, sentences: Sentences, num_samples: int, seed: Tensor) -> Samples:
        """Draw L samples for each sentence."""


def check_tau(tau: float) -> float:
    """Return the temperature, or raise where it is not a finite number > 0."""
    return check_number(tau, "tau", 0.0, open_low=True)


def _check_call(
    target: Tensor, lengths: Tensor | None, num_samples: int, generator: torch.Generator | None,
    references: Tensor | None,
) -> int:  # fmt: skip
    """Check the arguments and return the number of samples as an int."""
    for name, tensor in (("target", target), ("lengths", lengths), ("references", references)):
        if tensor is None and name != "target":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: got {type(tensor).__name__}, expected a torch.Tensor of integers")
        if tensor.dtype not in _INTEGERS:
            raise TypeError(f"{name}: got dtype {tensor.dtype}, expected int64, int32 or int16")
        if tensor.device != target.device:
            raise ValueError(f"{name}: got device {tensor.device}, expected the target's, {target.device}")
    if target.dim() != 2:
        raise ValueError(f"target: got shape {tuple(target.shape)}, expected (B, T)")
    batch = target.shape[0]
    if lengths is not None and lengths.shape != (batch,):
        raise ValueError(f"lengths: got shape {tuple(lengths.shape)}, expected ({batch},)")
    if references is not None and (references.dim() != 2 or references.shape[0] != batch):
        raise ValueError(f"references: got shape {tuple(references.shape)}, expected ({batch}, R)")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator: got {type(generator).__name__}, expected a torch.Generator or None")
    return check_integer(num_samples, "num_samples", 1, LARGEST_COUNT)
