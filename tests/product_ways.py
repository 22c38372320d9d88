"""The ways in which machines multiply 16-bit operands of the linear losses, each of which runs on every machine here.

"wide" is that of CPUs without such products, "narrow" that of CPUs whose products are rounded, "widened" that of torch
on CUDA, whose products are float32. What ``_C`` multiplies itself (AVX512_BF16, AMX) needs such a processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest
import torch
from torch import Tensor

from smoothloss.backends.native import linear as native_linear
from smoothloss.ops import compensated_columns, linear_layer

WAYS = ("wide", "narrow", "widened")


@contextmanager
def multiplying(way: str) -> Iterator[None]:
    """Multiply that way while the context is open."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_layer, "has_fast_gemm", lambda *_: way != "wide")
        patch.setattr(native_linear, "has_widening_matmul", lambda *_: False)
        if way == "widened":
            for module in (linear_layer, compensated_columns):
                patch.setattr(module, "can_widen", lambda device_type: True)
            patch.setattr(torch, "mm", _widening(torch.mm))
            patch.setattr(torch, "addmm", _widening(torch.addmm))
        yield


def _widening(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(product)
    def run(*matrices: Tensor, out_dtype: torch.dtype | None = None, **keywords: Any) -> Tensor:
        return product(*(matrix if out_dtype is None else matrix.to(out_dtype) for matrix in matrices), **keywords)

    return run
