"""What the tests that need a GPU share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from smoothloss.ops.dispatch import unavailable


@pytest.fixture(params=["triton", "native"])
def gpu_impl(request: pytest.FixtureRequest) -> str:
    """Return each implementation with kernels for this GPU."""
    reason = unavailable(request.param, "cuda", torch.bfloat16)
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture
def no_host_sync() -> Iterator[Callable[[], None]]:
    """Return the function from whose call on a host sync raises, until the end of the test."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")
