"""The primitive in C++: ``smoothloss._C`` for CPU tensors, ``smoothloss._C_cuda`` (CUDA C++) for CUDA tensors.

Only ``data_ptr()``s of checked tensors cross the border, so that one build serves every version of torch.
The environment variable ``SMOOTHLOSS_ISA`` forces an instruction set of the CPU kernels ("baseline", "avx2", "avx512",
"avx512bf16").
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from smoothloss import _compiled as compiled
from smoothloss.backends.common import DenseRows, RowOptions, SparseRows
from smoothloss.backends.native import linear as native_linear

_TYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_CPU_DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def unavailable(device_type: str, dtype: torch.dtype) -> str | None:
    """Return None when tensors of this device type and dtype can be processed, else the reason as a sentence."""
    if device_type == "cpu":
        module, reason = compiled.load("_C")
        if module is not None and dtype not in _CPU_DTYPES:
            reason = f"the C++ kernels compute float32, float64 and bfloat16 on the CPU, not {dtype}"
        return reason or None
    if device_type != "cuda":
        return f"there are native kernels for cpu and cuda, not for {device_type}"
    if torch.version.hip is not None:
        return "the CUDA kernels do not run on ROCm"
    return _cuda_unavailable() or (None if dtype in _TYPE_CODES else f"the CUDA kernels do not compute {dtype}")


@functools.cache
def _cuda_unavailable() -> str | None:
    module, reason = compiled.load("_C_cuda")
    if module is None:
        return reason
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    torch.cuda.init()
    status: str = module.status(torch.cuda.current_device())
    return f"smoothloss._C_cuda cannot run here: {status}" if status else None


def instruction_sets() -> list[str]:
    """Return the instruction sets of the CPU kernels that this machine can run, the best first; [] without ``_C``."""
    module, _ = compiled.load("_C")
    return [] if module is None else list(module.available_isas())


def sparse_cross_entropy_forward(
    logits: Tensor,  # (N, V)
    indices: Tensor,  # (N, S)
    weights: Tensor,  # (N, S)
    uniform: Tensor | None,  # (N,)
    options: RowOptions,
    dense: DenseRows | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ``(loss, lse, entropy, mass)``, each ``(N,)``; entropy is empty when ``options.entropy == 0``.

    The lse is float64 always.

    Raises:
        ValueError: on a tensor of the wrong shape, dtype, device or layout.
    """
    _check_problem(logits, indices, weights, uniform)
    rows = logits.shape[0]
    loss, mass = _results(logits, rows), _results(logits, rows)
    lse = _wide_results(logits, rows)
    entropy = _results(logits, rows if options.entropy else 0)
    compiled.call(
        "sparse_cross_entropy_forward",
        logits,
        _logits_tuple(logits),
        _targets_tuple(indices, weights, uniform),
        _dense_tuple(dense, logits),
        tuple(options),
        loss.data_ptr(),
        lse.data_ptr(),
        entropy.data_ptr(),
        mass.data_ptr(),
    )
    return loss, lse, entropy, mass


def sparse_cross_entropy_backward(
    grad: Tensor,  # (N,) or one element
    logits: Tensor,  # (N, V)
    lse: Tensor,  # (N,)
    entropy: Tensor,  # (N,) or (0,)
    indices: Tensor,  # (N, S)
    weights: Tensor,  # (N, S)
    uniform: Tensor | None,  # (N,)
    options: RowOptions,
    out: Tensor,  # (N, V)
    mass: Tensor | None = None,  # (N,)
    dense: DenseRows | None = None,
    scale: Tensor | None = None,  # one element
) -> None:
    """Write ``scale * grad_n * dloss_n / dlogits`` to `out`, which may be `logits` itself; rows without mass get 0.

    A given `mass` takes the place of the target's as the coefficient of p, and where it is 0 only the target's own
    entries and uniform mass are written; neither label smoothing nor `dense` go with it.

    Raises:
        ValueError: on a tensor of the wrong shape, dtype, device or layout.
    """
    _check_problem(logits, indices, weights, uniform)
    _check_out(out, logits)
    rows = logits.shape[0]
    if grad.numel() != 1:
        _check("grad", grad, (rows,), weights.dtype, logits)
    elif grad.dtype != weights.dtype or grad.device != logits.device:
        raise ValueError(f"grad: got {grad.dtype} on {grad.device}, expected {weights.dtype} on {logits.device}")
    _check("lse", lse, (rows,), torch.float64, logits)
    if options.entropy:
        _check("entropy", entropy, (rows,), weights.dtype, logits)
    if mass is not None:
        _check("mass", mass, (rows,), weights.dtype, logits)
    if scale is not None:
        _check("scale", scale, tuple(scale.shape), weights.dtype, logits)
    compiled.call(
        "sparse_cross_entropy_backward",
        logits,
        _logits_tuple(logits),
        _targets_tuple(indices, weights, uniform),
        _dense_tuple(dense, logits),
        tuple(options),
        grad.data_ptr(),
        grad.numel() == 1,
        0 if scale is None else scale.data_ptr(),
        lse.data_ptr(),
        entropy.data_ptr() if options.entropy else 0,
        0 if mass is None else mass.data_ptr(),
        _out_tuple(out),
    )


def sparse_cross_entropy_forward_backward(
    logits: Tensor,  # (N, V)
    indices: Tensor,  # (N, S)
    weights: Tensor,  # (N, S)
    uniform: Tensor | None,  # (N,)
    options: RowOptions,
    out: Tensor,  # (N, V)
    dense: DenseRows | None = None,
) -> tuple[Tensor, Tensor]:
    """Return ``(loss, mass)``, each ``(N,)``, and write ``dloss_n / dlogits`` to `out`, which may be `logits` itself.

    Raises:
        ValueError: on a tensor of the wrong shape, dtype, device or layout.
    """
    _check_problem(logits, indices, weights, uniform)
    _check_out(out, logits)
    loss, mass = _results(logits, logits.shape[0]), _results(logits, logits.shape[0])
    compiled.call(
        "sparse_cross_entropy_forward_backward",
        logits,
        _logits_tuple(logits),
        _targets_tuple(indices, weights, uniform),
        _dense_tuple(dense, logits),
        tuple(options),
        loss.data_ptr(),
        mass.data_ptr(),
        _out_tuple(out),
    )
    return loss, mass


def logsumexp_and_select_forward(
    logits: Tensor,  # (N, V)
    indices: Tensor,  # (N, S)
) -> tuple[Tensor, Tensor]:
    """Return ``logits.logsumexp(-1)`` (N,) and ``logits.gather(-1, indices)`` (N, S), 0 for empty slots.

    Raises:
        ValueError: on a tensor of the wrong shape, dtype, device or layout.
    """
    _check_problem(logits, indices, None, None)
    lse = _wide_results(logits, logits.shape[0])
    selected = torch.empty(indices.shape, dtype=_accumulator_dtype(logits), device=logits.device)
    compiled.call(
        "logsumexp_and_select_forward",
        logits,
        _logits_tuple(logits),
        _targets_tuple(indices, None, None),
        lse.data_ptr(),
        selected.data_ptr(),
    )
    return lse, selected


def smoothed_target(
    candidates: Tensor,  # (J, B, T)
    weights: Tensor | None,  # (J, B)
    table: SparseRows | None,
    token_alpha: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the indices, weights and uniform mass that `ops.reference.smoothed_target` defines, in one pass."""
    candidates = candidates.contiguous()
    weights = None if weights is None else weights.float().contiguous()
    count, batch, length = candidates.shape
    tokens, neighbours = (0, 0) if table is None else table.indices.shape
    shape = (batch * length, count * (neighbours + 1))
    out_indices = torch.empty(shape, dtype=torch.int32, device=candidates.device)
    out_weights = torch.empty(shape, dtype=torch.float32, device=candidates.device)
    has_tail = table is not None and table.tail is not None
    uniform = torch.empty(batch * length, dtype=torch.float32, device=candidates.device) if has_tail else None
    compiled.call(
        "smoothed_target",
        candidates,
        (
            candidates.data_ptr(),
            candidates.dtype == torch.int64,
            *candidates.shape,
            0 if weights is None else weights.data_ptr(),
            token_alpha,
            ignore_index,
        ),
        _table_tuple(table, tokens, neighbours),
        out_indices.data_ptr(),
        out_weights.data_ptr(),
        0 if uniform is None else uniform.data_ptr(),
    )
    return out_indices, out_weights, uniform


def mean(losses: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``losses.sum() / count`` and ``1 / max(count, 1)``, count the number of masses that are not 0."""
    loss, scale = losses.new_empty(()), losses.new_empty(())
    compiled.call(
        "mean", losses, losses.data_ptr(), mass.data_ptr(), _TYPE_CODES[losses.dtype], losses.numel(),
        loss.data_ptr(), scale.data_ptr(),
    )  # fmt: skip
    return loss, scale


def scaled_copy(values: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``(values * factor).to(dtype)``, for contiguous `values` in the accumulator dtype."""
    out = native_linear.empty(values, values.shape, dtype)
    if values.device.type == "cpu":
        return torch.mul(values, factor, out=out)
    factor = factor.to(values.dtype)
    compiled.call(
        "scaled_copy", values, values.data_ptr(), _TYPE_CODES[values.dtype], values.numel(),
        factor.data_ptr(), out.data_ptr(), _TYPE_CODES[dtype],
    )  # fmt: skip
    return out


def _accumulator_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _results(logits: Tensor, count: int) -> Tensor:
    return torch.empty(count, dtype=_accumulator_dtype(logits), device=logits.device)


def _wide_results(logits: Tensor, count: int) -> Tensor:
    """Return room for lse: float64 always, since its rounding would be a relative error of every p in the row."""
    return torch.empty(count, dtype=torch.float64, device=logits.device)


def _logits_tuple(logits: Tensor) -> tuple[int, int, int, int, int]:
    return logits.data_ptr(), _TYPE_CODES[logits.dtype], logits.shape[0], logits.shape[1], logits.stride(0)


def _targets_tuple(indices: Tensor, weights: Tensor | None, uniform: Tensor | None) -> tuple[int, int, int, int]:
    return (
        indices.data_ptr(),
        0 if weights is None else weights.data_ptr(),
        0 if uniform is None else uniform.data_ptr(),
        indices.shape[1],
    )


def _dense_tuple(dense: DenseRows | None, logits: Tensor) -> tuple[int, int, int, int, int]:
    if dense is None:
        return 0, 0, 0, 0, 0
    rows, classes = logits.shape
    if dense.rows.dim() != 2 or dense.values.dim() != 2:
        raise ValueError(
            f"dense: got shapes {tuple(dense.rows.shape)}, {tuple(dense.values.shape)}, expected (N, J), (U, V)"
        )
    dtype, slots = _accumulator_dtype(logits), dense.rows.shape[1]
    _check("dense.values", dense.values, (dense.values.shape[0], classes), dtype, logits)
    _check("dense.rows", dense.rows, (rows, slots), torch.int32, logits)
    _check("dense.weights", dense.weights, (rows, slots), dtype, logits)
    pointers = (dense.values.data_ptr(), dense.rows.data_ptr(), dense.weights.data_ptr())
    return *pointers, dense.values.shape[0], slots


def _table_tuple(table: SparseRows | None, tokens: int, neighbours: int) -> tuple[int, int, int, int, int]:
    if table is None:
        return 0, 0, 0, 0, 0
    for name, tensor in table._asdict().items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"table.{name}: got the strides {tensor.stride()}, expected a contiguous tensor")
    tail = 0 if table.tail is None else table.tail.data_ptr()
    return table.indices.data_ptr(), table.weights.data_ptr(), tail, tokens, neighbours


def _out_tuple(out: Tensor) -> tuple[int, int, int]:
    return out.data_ptr(), _TYPE_CODES[out.dtype], out.stride(0)


def _check_problem(logits: Tensor, indices: Tensor, weights: Tensor | None, uniform: Tensor | None) -> None:
    _check_matrix("logits", logits)
    if logits.shape[1] == 0:
        raise ValueError(f"logits: got the shape {tuple(logits.shape)}, expected at least one class")
    reason = unavailable(logits.device.type, logits.dtype)
    if reason is not None:
        raise ValueError(f"logits: {reason}")
    rows = logits.shape[0]
    if indices.dim() != 2 or indices.shape[0] != rows:
        raise ValueError(f"indices: got the shape {tuple(indices.shape)}, expected ({rows}, S)")
    _check("indices", indices, tuple(indices.shape), torch.int32, logits)
    if weights is not None:
        _check("weights", weights, tuple(indices.shape), _accumulator_dtype(logits), logits)
    if uniform is not None:
        _check("uniform", uniform, (rows,), _accumulator_dtype(logits), logits)


def _check_matrix(name: str, tensor: Tensor) -> None:
    if tensor.dim() != 2 or tensor.dtype not in _TYPE_CODES or (tensor.stride(1) != 1 and tensor.shape[1] > 1):
        raise ValueError(
            f"{name}: got {tensor.dtype} of shape {tuple(tensor.shape)} and strides {tensor.stride()}, "
            "expected a floating (N, V) with stride 1 in the last dimension"
        )


def _check_out(out: Tensor, logits: Tensor) -> None:
    _check_matrix("out", out)
    if out.shape != logits.shape or out.device != logits.device:
        raise ValueError(
            f"out: got the shape {tuple(out.shape)} on {out.device}, expected {tuple(logits.shape)} on {logits.device}"
        )
    if out.stride(0) < out.shape[1] and out.shape[0] > 1:
        raise ValueError(f"out: got the row stride {out.stride(0)}, its {out.shape[1]} classes overlap")
    if out.device.type == "cpu" and out.dtype not in _CPU_DTYPES:
        raise ValueError(f"out: got {out.dtype}, expected float32, float64 or bfloat16 on the CPU")


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, logits: Tensor) -> None:
    if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device != logits.device:
        raise ValueError(
            f"{name}: got {tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}, "
            f"expected {dtype} of shape {shape} on {logits.device}"
        )
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: got the strides {tensor.stride()}, expected a contiguous tensor")
