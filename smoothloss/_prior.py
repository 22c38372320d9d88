"""The prior of the classes: what the mass that lies on all of them is spread by, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from smoothloss._validation import check_constant, check_device, check_local, check_shape, check_tensor
from smoothloss.backends.common import accumulator_dtype
from smoothloss.ops.checks import is_debugging
from smoothloss.ops.transforms import is_eager

# How far a sum may be from one: what rounding the entries, and the sum that they were divided by, leaves.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 0.06, torch.float16: 0.06}
# The version of each tensor whose values have been looked at.
_looked_at: Any = WeakIdKeyDictionary()


def check_prior(prior: object) -> Tensor:
    """Return a prior, which may be a NumPy array, as a tensor when it can be one, whatever the number of classes.

    Raises:
        TypeError: it is no floating tensor.
        ValueError: it has another number of dimensions, or requires grad.
    """
    if isinstance(prior, np.ndarray):
        prior = torch.tensor(prior)
    checked = check_tensor(prior, "prior", floating=True)
    check_local(checked, "prior")
    check_constant(checked, "prior")
    if checked.dim() != 1:
        raise ValueError(f"prior: got shape {tuple(checked.shape)}, expected (V,)")
    return checked


def fitted_prior(prior: Tensor, like: Tensor, num_classes: int) -> Tensor:
    """Return a prior for logits or hidden states `like`, in the dtype that they are computed in, with a sum of one.

    Values that nobody may ask for (fake, meta, traced, transformed, on a device without `debug`) pass.

    Raises:
        ValueError: its shape or device does not fit, or it is no distribution.
    """
    check_shape(prior, "prior", (num_classes,), "(V,)")
    check_device(prior, "prior", like, "input")
    if is_eager(prior) and (prior.device.type == "cpu" or is_debugging()):
        check_prior_values(prior)
    prior = prior.to(accumulator_dtype(like.dtype))
    return prior / prior.sum()  # what its own rounding left would be mass gained or lost


def check_prior_values(prior: Tensor) -> None:
    """Raise ValueError unless a prior holds probabilities; one that has not changed since is not looked at again."""
    version = None if prior.is_inference() else prior._version
    if version is not None and _looked_at.get(prior) == version:
        return
    values = prior.detach().to("cpu", torch.float64)
    low, total = values.amin().item(), values.sum().item()
    if not low >= 0:
        raise ValueError(f"prior: got the smallest value {low:.6g}, expected probabilities: nothing below 0, no NaN")
    if not abs(total - 1) <= _TOLERANCE.get(prior.dtype, 0.06):
        raise ValueError(f"prior: got values that sum to {total:.6g}, expected 1")
    _looked_at[prior] = version
