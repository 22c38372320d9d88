"""What a teacher says, made ready for a divergence: each class once, at a temperature, with the mass that is left."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from smoothloss.distillation.options import Missing
from smoothloss.distillation.teacher import Teacher
from smoothloss.targets.shares import shares


class Known(NamedTuple):
    """A teacher's distribution at each position, in the dtype that losses are computed in.

    Attributes:
        indices: ``(..., K)``, each class of a position once; -1 in empty slots.
        log_q: ``(..., K)``, -inf in empty slots.
        log_rest: ``(...)``, the log of what is left for all other classes; -inf where there is no other class.
        filled: ``(..., K)``, which slots are not empty; None: all of them, and then each position has a teacher.
        present: ``(...)``, which positions have a teacher.
    """

    indices: Tensor
    log_q: Tensor
    log_rest: Tensor
    filled: Tensor | None
    present: Tensor

    def only(self, positions: Tensor) -> Known:
        """Return the same without a teacher at all other positions."""
        filled = positions.unsqueeze(-1).expand_as(self.indices)
        filled = filled if self.filled is None else filled & self.filled
        return Known(
            self.indices.where(filled, -1),
            self.log_q.where(filled, -torch.inf),
            self.log_rest.masked_fill(~positions, -torch.inf),
            filled,
            self.present & positions,
        )

    def at_slots(self, values: Tensor, otherwise: float) -> Tensor:
        """Return values ``(..., K)`` of the filled slots, and something else in the empty ones."""
        return values if self.filled is None else values.where(self.filled, otherwise)

    def at_positions(self, values: Tensor, otherwise: float) -> Tensor:
        """Return values ``(...)`` of the positions that have a teacher, and something else in the others."""
        return values if self.filled is None else values.where(self.present, otherwise)

    def log_share(self, num_classes: int) -> Tensor:
        """Return the log of each class's share of what is left, where that is spread evenly, ``(..., 1)``."""
        return self.log_rest.unsqueeze(-1) - math.log(num_classes)


def known(teacher: Teacher, num_classes: int, temperature: float, missing: Missing, dtype: torch.dtype) -> Known:
    """Return what is known of a teacher over `num_classes` classes.

    What is left of a teacher without `log_rest` is ``1 - sum q``, and at least one rounding: no more is known of it.
    """
    indices, log_q, filled = teacher.indices, teacher.log_probs.detach().to(dtype), None
    if not teacher.is_full:
        filled = indices >= 0
        log_q = log_q.where(filled, -torch.inf)
    if not teacher.is_distinct:
        indices, log_q = merged(indices, log_q)
        filled = indices >= 0
    if teacher.log_rest is None:
        log_rest = (-torch.expm1(_log_sum(log_q))).clamp(min=torch.finfo(dtype).eps).log()
    else:
        log_rest = teacher.log_rest.detach().to(dtype)
    present, log_rest = _present(indices, filled, log_rest, num_classes)
    log_q, log_rest = _tempered(log_q, log_rest, filled, temperature, missing)
    return Known(indices, log_q, log_rest, filled, present)


def _present(indices: Tensor, filled: Tensor | None, log_rest: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return which positions have a teacher, and the rest: -inf where there is no teacher, or no other class."""
    slots = indices.shape[-1]
    if filled is None:
        everywhere = torch.ones_like(log_rest, dtype=torch.bool)
        return everywhere, log_rest if slots < num_classes else torch.full_like(log_rest, -torch.inf)
    count = filled.sum(-1)  # in a third of the time of any(-1)
    present = count > 0
    without = ~present if slots < num_classes else ~present | (count >= num_classes)
    return present, log_rest.masked_fill(without, -torch.inf)


def _tempered(
    log_q: Tensor, log_rest: Tensor, filled: Tensor | None, temperature: float, missing: Missing
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities at a temperature, normalised again over what is known."""
    if missing == "renormalize":
        return shares(log_q / temperature, filled), torch.full_like(log_rest, -torch.inf)
    if temperature == 1.0:
        return log_q, log_rest
    if missing != "bucket":  # the K classes share what they have, as `targets.top_k` has it
        return shares(log_q / temperature, filled) + _log_sum(log_q).unsqueeze(-1), log_rest
    both = torch.cat((log_q, log_rest.unsqueeze(-1)), -1) / temperature
    has_rest = (log_rest != -torch.inf).unsqueeze(-1)
    both = shares(
        both, torch.cat((torch.ones_like(log_q, dtype=torch.bool) if filled is None else filled, has_rest), -1)
    )
    return both[..., :-1], both[..., -1]


def merged(indices: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Give one slot of each class the probability of all its slots, and empty the others.

    In the order of the classes. Equal ones lie side by side there, and each takes over what lies 1, 2, 4, ... before
    it: the same bit for bit in every run, and nobody waits for a device.
    """
    indices, order = indices.clamp(min=-1).sort(-1)
    log_probs = log_probs.gather(-1, order)
    step = 1
    while step < indices.shape[-1]:
        is_same = indices[..., step:] == indices[..., :-step]
        before = log_probs[..., :-step].where(is_same, -torch.inf)
        log_probs = torch.cat((log_probs[..., :step], torch.logaddexp(log_probs[..., step:], before)), -1)
        step *= 2
    goes_on = torch.cat(
        (indices[..., 1:] == indices[..., :-1], torch.zeros_like(indices[..., :1], dtype=torch.bool)), -1
    )
    return indices.masked_fill(goes_on, -1), log_probs.masked_fill(goes_on, -torch.inf)


def _log_sum(log_q: Tensor) -> Tensor:
    """Return ``log sum q``, -inf over no classes."""
    return log_q.logsumexp(-1)
