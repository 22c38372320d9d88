"""What the tests of the kernels share."""

from __future__ import annotations

import pytest
import torch

from smoothloss.backends import unavailable


@pytest.fixture(params=["triton", "native"])
def gpu_impl(request: pytest.FixtureRequest) -> str:
    """Return each implementation with kernels for this GPU."""
    reason = unavailable(request.param, "cuda", torch.bfloat16)
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)
