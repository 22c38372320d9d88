"""What the tests of the kernels share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
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


@pytest.fixture(autouse=True, scope="session")
def fast_bits_in_the_interpreter() -> None:
    """Let NumPy do what Triton's interpreter does number by number in Python: to put bits together."""
    if not os.environ.get("TRITON_INTERPRET"):
        return
    from triton.runtime.interpreter import ReduceOps

    from smoothloss.backends.triton import statistics

    slow = ReduceOps.apply_impl

    def apply_impl(self: Any, operands: Any) -> Any:
        if self.combine_fn is not statistics._either:
            return slow(self, operands)
        return self.to_tensor(np.bitwise_or.reduce(operands[0].handle.data, axis=self.axis), operands[0].dtype)

    ReduceOps.apply_impl = apply_impl


@pytest.fixture(autouse=True, scope="session")
def rounded_functions_in_the_interpreter() -> None:
    """Let Triton's interpreter compute exponentials and logarithms in float64, and round them to the operand's dtype.

    It computes them with NumPy, whose float32 ones err by up to 1.6 units on processors without AVX-512, three times as
    much as PyTorch's: an error of the interpreter alone, which would count against the kernels' budget.
    """
    if not os.environ.get("TRITON_INTERPRET"):
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def rounded(function: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
        def apply(_: Any, operand: Any) -> Any:
            exact = np.asarray(function(operand.data.astype(np.float64)))
            return TensorHandle(exact.astype(operand.data.dtype), operand.dtype.scalar)

        return apply

    for name in ("exp", "exp2", "log", "log2"):
        setattr(InterpreterBuilder, f"create_{name}", rounded(getattr(np, name)))
