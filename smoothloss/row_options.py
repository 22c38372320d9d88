"""The options of a row: named once, checked once, documented once, for whoever calls and for every implementation.

A new one is a field of `RowOptions`, its like in `RowKeywords`, and its check in `check_row_options`. The signatures of
the losses, the torch operators and the bindings follow.
"""

from __future__ import annotations

from typing import NamedTuple, TypedDict

from smoothloss._validation import check_number

LARGEST = 3.4028234e38  # what float32 holds, in which most logits are computed: beyond it all of them would be NaN


class RowOptions(NamedTuple):
    """What the loss of one row depends on besides its logits and its target: `RowKeywords`, checked.

    All are numbers, in the order in which the operators and the kernels take them; 0 stands for None.
    """

    label_smoothing: float = 0.0
    entropy: float = 0.0
    z_loss: float = 0.0
    logit_scale: float = 1.0
    softcap: float = 0.0


class RowKeywords(TypedDict, total=False):
    """What every loss takes for each row by itself.

    Attributes:
        label_smoothing: eps, the share of each target's mass that is spread evenly over all V classes (torch's
            meaning).
        entropy: gamma; subtracts ``gamma * H(p)``, the entropy over all V classes (Pereyra et al. 2017).
        z_loss: adds ``z_loss * logsumexp(z) ** 2``.
        logit_scale: multiplies the logits before anything else (the inverse of a temperature).
        softcap: ``z = softcap * tanh(logit_scale * input / softcap)``; None for no softcap.
    """

    label_smoothing: float
    entropy: float
    z_loss: float
    logit_scale: float
    softcap: float | None


def check_row_options(
    *,
    label_smoothing: float = 0.0,
    entropy: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
) -> RowOptions:
    """Return the options of a row.

    Raises:
        TypeError, ValueError: naming the option, what was got and what was expected.
    """
    return RowOptions(
        check_number(label_smoothing, "label_smoothing", 0.0, 1.0),
        check_number(entropy, "entropy"),
        check_number(z_loss, "z_loss"),
        check_number(logit_scale, "logit_scale", 0.0, LARGEST, open_low=True),
        0.0 if softcap is None else check_number(softcap, "softcap", 0.0, LARGEST, open_low=True),
    )
