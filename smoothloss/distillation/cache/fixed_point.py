"""Log-probabilities in 16 bits: fixed point over [-32, 0], and one code for the log of nothing.

Neighbouring codes are 32 / 65534 apart, so a probability errs by at most exp(16 / 65534) - 1 = 2.45e-4 of itself. One
below e^-32 (1.3e-14) becomes that.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LOWEST = -32.0
_NOTHING = 65535  # the code of -inf
_STEP = LOWEST / (_NOTHING - 1)


def encode(log_probs: npt.NDArray[np.floating]) -> npt.NDArray[np.uint16]:
    """Return the codes of log-probabilities. What lies above 0 by rounding becomes 0."""
    codes = np.rint(np.clip(log_probs.astype(np.float64), LOWEST, 0.0) / _STEP)
    return np.where(np.isneginf(log_probs), _NOTHING, codes).astype(np.uint16)


def decode(codes: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Return the log-probabilities of codes."""
    log_probs = np.multiply(codes, np.float32(_STEP), dtype=np.float32)
    if codes.size and codes.max() == _NOTHING:
        log_probs[codes == _NOTHING] = -np.inf
    return log_probs
