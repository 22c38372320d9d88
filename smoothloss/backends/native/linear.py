"""What the linear op takes from C++ besides the row kernels: memory in huge pages, products that widen."""

from __future__ import annotations

import functools

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


@functools.cache
def has_widening_matmul(device_type: str, dtype: torch.dtype) -> bool:
    """Return whether `widening_matmul` runs: bfloat16, on a CPU with AVX512_BF16."""
    module, _ = compiled.load("_C")
    return device_type == "cpu" and dtype == torch.bfloat16 and module is not None and module.has_bfloat16_matmul()


def widening_matmul(a: Tensor, b: Tensor, out: Tensor) -> None:
    """Compute ``out = a @ b.T``, a ``(M, K)`` and b ``(N, K)`` bfloat16, out ``(M, N)`` float32, never rounded between.

    Raises:
        ValueError: on a tensor of the wrong shape, dtype or layout, or where it does not run.
    """
    for name, tensor, shape, dtype in (
        ("a", a, (out.shape[0], a.shape[1]), torch.bfloat16),
        ("b", b, (out.shape[1], a.shape[1]), torch.bfloat16),
        ("out", out, (a.shape[0], b.shape[0]), torch.float32),
    ):
        if tensor.shape != shape or tensor.dtype != dtype or (tensor.stride(1) != 1 and tensor.shape[1] > 1):
            raise ValueError(
                f"{name}: got {tensor.dtype} of shape {tuple(tensor.shape)} and strides {tensor.stride()}, "
                f"expected {dtype} of shape {shape} with stride 1 in the last dimension"
            )
    module, reason = compiled.load("_C")
    if module is None:
        raise ValueError(reason)
    module.bfloat16_matmul(
        (a.data_ptr(), *a.shape, a.stride(0)),
        (b.data_ptr(), *b.shape, b.stride(0)),
        (out.data_ptr(), out.stride(0)),
        torch.get_num_threads(),
    )
