"""The words of Philox from C++, one launch instead of the definition's many operators."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothloss import _compiled as compiled
from smoothloss.ops.transforms import is_eager
from smoothloss.sampling.philox import Numbers, Purpose

_MODULES = {"cpu": "_C", "cuda": "_C_cuda"}


def make_numbers(seed: Tensor, purpose: Purpose, shape: tuple[int, int, int]) -> Numbers:
    """Return the random numbers of ``(L, B, X)`` positions, from a kernel where there is one for the device."""
    if not _has_kernel(seed):
        return Numbers(seed, purpose, shape)
    words = torch.empty((4, *shape), dtype=torch.int64, device=seed.device)
    compiled.call("philox_words", seed, (seed.data_ptr(), int(purpose), *shape, words.data_ptr()))
    return Numbers(seed, purpose, shape, words.unbind())


def _has_kernel(seed: Tensor) -> bool:
    if not is_eager(seed) or torch.version.hip is not None:
        return False
    module = _MODULES.get(seed.device.type)
    return module is not None and compiled.load(module)[0] is not None
