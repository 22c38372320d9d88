"""The numbers that change a row's loss, shared by every implementation."""

from __future__ import annotations

from typing import NamedTuple


class RowOptions(NamedTuple):
    """What the loss of one row depends on besides its logits and its target.

    Attributes:
        label_smoothing: share eps of the target's mass that is spread evenly over all ``V`` classes.
        entropy: gamma, the weight of the entropy bonus ``- gamma H(p)``.
        z_loss: weight of ``lse ** 2``.
        logit_scale: the logits are multiplied by it first (the inverse of a temperature).
        softcap: ``z <- softcap * tanh(z / softcap)`` after the scaling; 0 means none.
    """

    label_smoothing: float = 0.0
    entropy: float = 0.0
    z_loss: float = 0.0
    logit_scale: float = 1.0
    softcap: float = 0.0
