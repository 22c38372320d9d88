"""What the linear op takes from C++ besides the row kernels: memory in huge pages, products that widen."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from smoothloss import _compiled as compiled

_HUGE_PAGE = 1 << 21  # bytes
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return ``like.new_empty(shape, dtype=dtype)``, on the CPU in huge pages where the system grants them.

    A large buffer is mapped page by page while it is first written, which takes longer than writing it.
    """
    result = like.new_empty(shape, dtype=dtype)
    size = result.numel() * result.itemsize
    if torch.compiler.is_compiling() or size < _HUGE_PAGE or type(result) is not Tensor:
        return result
    module, _ = compiled.load("_C")
    if module is not None and result.device.type == "cpu" and not _is_wrapped(result):
        module.prefer_huge_pages(result.data_ptr(), size)
    return result


def has_widening_matmul(device_type: str, dtype: torch.dtype) -> bool:
    """Return whether `widening_matmul` and `banded_matmul` run: bfloat16, on a CPU with AVX512_BF16 or AMX."""
    return device_type == "cpu" and dtype == torch.bfloat16 and bool(matmul_isas())


def matmul_isas() -> tuple[str, ...]:
    """Return the instruction sets that multiply bfloat16 here, the fastest first: ``"amx"``, ``"avx512bf16"``.

    ``SMOOTHLOSS_ISA`` leaves out the faster ones, and all where it names one that does not multiply bfloat16.
    """
    found, forced = _matmul_isas_found(), os.environ.get("SMOOTHLOSS_ISA")
    if not forced:
        return found
    return found[found.index(forced) :] if forced in found else ()


@functools.cache
def _matmul_isas_found() -> tuple[str, ...]:
    module, _ = compiled.load("_C")
    return () if module is None else tuple(module.bfloat16_matmul_isas())


def widening_matmul(a: Tensor, b: Tensor, out: Tensor, bias: Tensor | None = None, *, isa: str = "") -> None:
    """Compute ``out = a @ b.T + bias``, never rounded between.

    Args:
        a: ``(M, K)`` bfloat16.
        b: ``(N, K)`` bfloat16.
        out: ``(M, N)`` float32.
        bias: ``(N,)`` float32, or None.
        isa: one of `matmul_isas`; the fastest where it is empty.

    Raises:
        ValueError: on a tensor of the wrong shape, dtype or layout, or where it does not run.
    """
    _check("a", a, (out.shape[0], a.shape[1]), (torch.bfloat16,))
    _check("b", b, (out.shape[1], a.shape[1]), (torch.bfloat16,))
    _check("out", out, (a.shape[0], b.shape[0]), (torch.float32,))
    if bias is not None:
        _check("bias", bias, (b.shape[0],), (torch.float32,))
    added = 0 if bias is None else bias.data_ptr()
    _module().bfloat16_matmul(
        _matrix(a), _matrix(b), added, (out.data_ptr(), out.stride(0)), torch.get_num_threads(), _chosen(isa)
    )


def banded_matmul(
    a: Tensor, b: Tensor, out: Tensor, *, order: Tensor | None = None, ends: Sequence[int] | None = None, isa: str = ""
) -> None:
    """Compute ``out[i] = a[:, s:e] @ b[order[s:e]]`` for the bands ``s:e`` between one of `ends` and the next.

    Args:
        a: ``(M, K)`` bfloat16.
        b: ``(K, N)`` bfloat16; with an order it may have any number of rows.
        out: ``(bands, M, N)``, or ``(M, N)`` without `ends`, contiguous; float32, or bfloat16, which is rounded once.
        order: ``(K,)`` int64 rows of b, which are not checked; None: as they come.
        ends: where each band ends, ascending, the last at K; None: one band.
        isa: one of `matmul_isas`; the fastest where it is empty.

    Raises:
        ValueError: on a tensor of the wrong shape, dtype or layout, or where it does not run.
    """
    _check("a", a, (a.shape[0], a.shape[1]), (torch.bfloat16,))
    _check("b", b, (a.shape[1] if order is None else b.shape[0], b.shape[1]), (torch.bfloat16,))
    bands = () if ends is None else (len(ends),)
    _check("out", out, (*bands, a.shape[0], b.shape[1]), (torch.float32, torch.bfloat16))
    if not out.is_contiguous():
        raise ValueError(f"out: got strides {out.stride()}, expected a contiguous tensor")
    if order is not None:
        _check("order", order, (a.shape[1],), (torch.int64,))
    _module().bfloat16_banded_matmul(
        _matrix(a),
        _matrix(b),
        (out.data_ptr(), out.dtype == torch.bfloat16),
        0 if order is None else order.data_ptr(),
        [a.shape[1]] if ends is None else list(ends),
        torch.get_num_threads(),
        _chosen(isa),
    )


def _chosen(isa: str) -> str:
    if isa:
        return isa
    isas = matmul_isas()
    if not isas:
        why = "this machine, this build or SMOOTHLOSS_ISA has neither AMX nor AVX512_BF16"
        raise ValueError(f"no products of bfloat16 with a wider result: {why}")
    return isas[0]


def _module() -> Any:
    module, reason = compiled.load("_C")
    if module is None:
        raise ValueError(reason)
    return module


def _matrix(tensor: Tensor) -> tuple[int, int, int, int]:
    return tensor.data_ptr(), *tensor.shape, tensor.stride(0)


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    if tensor.shape != shape or tensor.dtype not in dtypes or (tensor.stride(-1) != 1 and tensor.shape[-1] > 1):
        raise ValueError(
            f"{name}: got {tensor.dtype} of shape {tuple(tensor.shape)} and strides {tensor.stride()}, "
            f"expected {' or '.join(map(str, dtypes))} of shape {shape} with stride 1 in the last dimension"
        )
