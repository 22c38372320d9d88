"""What all tests share: the data folder, the implementations that this process can run, poisoned memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from smoothloss.ops.dispatch import unavailable

_SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
if "SMOOTHLOSS_DATA" not in os.environ and _SHARED.is_dir():
    os.environ["SMOOTHLOSS_DATA"] = str(_SHARED)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the folder of real data sets, or skip where there is none."""
    folder = os.environ.get("SMOOTHLOSS_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no real data here: SMOOTHLOSS_DATA names no folder")
    return Path(folder)


@pytest.fixture(params=["reference", "native", "triton"])
def impl(request: pytest.FixtureRequest) -> str:
    """Return each implementation that runs on the CPU in this process (Triton does in its interpreter)."""
    reason = unavailable(request.param, "cpu", torch.float32)
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture
def poison() -> Iterator[None]:
    """Fill uninitialised memory with NaN, so that an element that nobody wrote is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)
