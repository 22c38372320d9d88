"""The primitive in C++: ``smoothloss._C`` for CPU tensors, ``smoothloss._C_cuda`` (CUDA C++) for CUDA tensors.

Only ``data_ptr()``s of checked tensors cross the border, so that one build serves every version of torch.
The environment variable ``SMOOTHLOSS_ISA`` forces an instruction set of the CPU kernels ("baseline", "avx2", "avx512",
"avx512bf16").
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from smoothloss import _compiled as compiled
from smoothloss.backends.common import (
    SAVED_JENSEN_SHANNON,
    SAVED_STATISTICS,
    Candidates,
    DenseRows,
    Forward,
    OutOfRange,
    RowOptions,
    RowTarget,
    StatisticsGradients,
    TableRows,
    TokenStatistics,
    accumulator_dtype,
)
from smoothloss.backends.native import linear as native_linear

_FLOAT_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_CODES = _FLOAT_CODES | {torch.int32: 4, torch.int64: 5}
_REDUCTIONS = {"none": 0, "sum": 1, "mean": 2}
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
    return _cuda_unavailable() or (None if dtype in _FLOAT_CODES else f"the CUDA kernels do not compute {dtype}")


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


def forward(logits: Tensor, target: RowTarget, options: RowOptions, reduction: str) -> Forward:
    """Return the losses of logits ``(N, V)``, see `Backend`; in one crossing, with two launches on CUDA."""
    rows, dtype = logits.shape[0], accumulator_dtype(logits.dtype)
    results = _Results(logits, rows, dtype, reduction, needs_mass=False)
    statistics = torch.empty((rows, 3), dtype=dtype, device=logits.device)
    wrong = _call(
        "sparse_cross_entropy_forward", logits, _logits(logits), _target(target), _dense(target.dense), options,
        *results.rows, statistics.data_ptr(), *results.reduced,
    )  # fmt: skip
    if wrong >= 0:
        raise out_of_range(target, logits.shape[1], wrong)
    return Forward(results.loss, statistics, results.mass, results.scale)


def backward(
    grad: Tensor, scale: Tensor | None, logits: Tensor, statistics: Tensor, target: RowTarget,
    options: RowOptions, out: Tensor, mass: Tensor | None = None,
) -> None:  # fmt: skip
    """Write the gradient of the logits to `out`, see `Kernels`.

    Raises:
        ValueError: on a tensor of the wrong size, dtype or layout.
    """
    _check_out(out, logits)
    _call(
        "sparse_cross_entropy_backward", logits, _logits(logits), _target(target),
        _dense(target.dense), options, _array(grad), 0 if scale is None else scale.data_ptr(), _array(statistics),
        _array(mass), (out.data_ptr(), _CODES[out.dtype], out.stride(0)),
    )  # fmt: skip


def forward_backward(
    logits: Tensor, target: RowTarget, options: RowOptions, out: Tensor, reduction: str
) -> tuple[Forward, bool]:
    """Return losses and masses, and write the gradient of each row's loss to `out`, see `Kernels`.

    Raises:
        ValueError: on a tensor of the wrong size, dtype or layout.
    """
    _check_out(out, logits)
    rows = logits.shape[0]
    results = _Results(logits, rows, accumulator_dtype(logits.dtype), reduction, needs_mass=True)
    answer = _call(
        "sparse_cross_entropy_forward_backward", logits, _logits(logits), _target(target), _dense(target.dense),
        options, *results.rows, (out.data_ptr(), _CODES[out.dtype], out.stride(0)), *results.reduced,
    )  # fmt: skip
    some_ignored = True
    if answer != -1:
        wrong, ignored = answer
        if wrong >= 0:
            raise out_of_range(target, logits.shape[1], wrong)
        some_ignored = ignored > 0
    return Forward(results.loss, None, results.mass, results.scale), some_ignored


class _Results:
    """Room for what a forward returns: loss and mass of each row, or the reduced loss and the factor of its gradient.

    Attributes:
        loss, mass, scale: as in `Forward`.
        rows: where the kernel writes the loss and the mass of each row; 0: nowhere that is kept.
        reduced: how they are reduced, and where to.
    """

    def __init__(self, logits: Tensor, rows: int, dtype: torch.dtype, reduction: str, needs_mass: bool) -> None:
        device, is_reduced = logits.device, reduction != "none"
        is_cpu = _is_cpu(logits)
        self.mass: Tensor | None = None
        self.scale: Tensor | None = None
        losses = 0
        if needs_mass or not is_reduced or not is_cpu:
            self.mass = torch.empty(rows, dtype=dtype, device=device)
        if not is_reduced:
            self.loss = torch.empty(rows, dtype=dtype, device=device)
            losses = self.loss.data_ptr()
            self.reduced: tuple[int, int, int] = (0, 0, 0)
        else:
            self.loss = torch.empty((), dtype=dtype, device=device)
            self.scale = torch.empty((), dtype=dtype, device=device)
            self.reduced = (_REDUCTIONS[reduction], self.loss.data_ptr(), self.scale.data_ptr())
            if not is_cpu:  # where only torch can make room
                self._losses = torch.empty(rows, dtype=dtype, device=device)
                losses = self._losses.data_ptr()
        self.rows = losses, 0 if self.mass is None else self.mass.data_ptr()


def token_statistics(logits: Tensor, indices: Tensor, options: RowOptions) -> tuple[TokenStatistics, Tensor]:
    """Return the statistics of logits ``(N, V)`` at indices ``(N, S)``, see `Backend`; one pass over each row."""
    rows, dtype, device = logits.shape[0], accumulator_dtype(logits.dtype), logits.device
    log_rest, entropy, logsumexp = (torch.empty(rows, dtype=dtype, device=device) for _ in range(3))
    log_prob = torch.empty(indices.shape, dtype=dtype, device=device)
    argmax = torch.empty(rows, dtype=torch.int64, device=device)
    results = TokenStatistics(log_prob, log_rest, entropy, logsumexp, argmax)
    saved = torch.empty((rows, SAVED_STATISTICS), dtype=dtype, device=device)
    target = RowTarget(indices)
    wrong = _call(
        "token_statistics_forward", logits, _logits(logits), _target(target), options.logit_scale, options.softcap,
        (*map(_array, results), _array(saved)),
    )  # fmt: skip
    if wrong >= 0:
        raise out_of_range(target, logits.shape[1], wrong)
    return results, saved


def token_statistics_backward(
    grads: StatisticsGradients, logits: Tensor, indices: Tensor, saved: Tensor, options: RowOptions, out: Tensor
) -> None:
    """Write the gradient of the logits to `out`, see `Kernels`; one pass over each row.

    Raises:
        ValueError: on a tensor of the wrong size, dtype or layout.
    """
    _check_out(out, logits)
    _call(
        "token_statistics_backward", logits, _logits(logits), _target(RowTarget(indices)), options.logit_scale,
        options.softcap, _array(saved), tuple(map(_array, grads)), (out.data_ptr(), _CODES[out.dtype], out.stride(0)),
    )  # fmt: skip


def jensen_shannon(logits: Tensor, teacher: RowTarget, beta: float, options: RowOptions) -> tuple[Tensor, Tensor]:
    """Return the divergence of each row of logits ``(N, V)``, see `Kernels`; the row is read once from memory."""
    rows, dtype, device = logits.shape[0], accumulator_dtype(logits.dtype), logits.device
    losses = torch.empty(rows, dtype=dtype, device=device)
    saved = torch.empty((rows, SAVED_JENSEN_SHANNON), dtype=dtype, device=device)
    wrong = _call(
        "jensen_shannon_forward", logits, _logits(logits), _target(teacher), options.logit_scale, options.softcap,
        beta, _array(losses), _array(saved),
    )  # fmt: skip
    if wrong >= 0:
        raise out_of_range(teacher, logits.shape[1], wrong)
    return losses, saved


def jensen_shannon_backward(
    grad: Tensor, logits: Tensor, teacher: RowTarget, saved: Tensor, beta: float, options: RowOptions, out: Tensor
) -> None:
    """Write the gradient of the logits to `out`, see `Kernels`; one pass over each row.

    Raises:
        ValueError: on a tensor of the wrong size, dtype or layout.
    """
    _check_out(out, logits)
    _call(
        "jensen_shannon_backward", logits, _logits(logits), _target(teacher), options.logit_scale, options.softcap,
        beta, _array(saved), _array(grad), (out.data_ptr(), _CODES[out.dtype], out.stride(0)),
    )  # fmt: skip


def smoothed_target(
    candidates: Candidates, table: TableRows | None, token_alpha: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the indices, weights and uniform mass that `reference.smoothed_target` defines, in one pass."""
    target, samples, target_weights, sample_weights, alpha, ignore_index = candidates
    device, (batch, length), count = target.device, target.shape, candidates.per_position()
    neighbours = 0 if table is None else table.indices.shape[1]
    shape = (batch * length, count * (neighbours + 1))
    indices = torch.empty(shape, dtype=torch.int32, device=device)
    weights = torch.empty(shape, dtype=torch.float32, device=device)
    uniform = None
    rows: tuple[Any, ...] = (_NONE, _NONE, _NONE, 0, 0)
    if table is not None:
        rows = (*map(_array, table), table.indices.shape[0], neighbours)
        if table.tail is not None:
            uniform = torch.empty(batch * length, dtype=torch.float32, device=device)
    is_right = _call(
        "smoothed_target",
        target,
        (
            _array(target), _array(samples), count, batch, length, _array(target_weights), _array(sample_weights),
            alpha, token_alpha, ignore_index,
        ),
        rows,
        indices.data_ptr(),
        weights.data_ptr(),
        0 if uniform is None else uniform.data_ptr(),
    )  # fmt: skip
    if is_right is False:
        raise OutOfRange("target: got a negative class number, expected class numbers or ignore_index")
    return indices, weights, uniform


def reduce(losses: Tensor, mass: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
    """Return "sum" or "mean" of losses ``(N,)`` and the factor that it gives the gradient, see `Backend`."""
    loss, scale = losses.new_empty(()), losses.new_empty(())
    arguments = (_array(losses), _array(mass), _REDUCTIONS[reduction], loss.data_ptr(), scale.data_ptr())
    if _is_cpu(losses):
        compiled.require("_C").reduce(*arguments)
    else:
        _call("reduce", losses, *arguments)
    return loss, scale


def scaled_copy(values: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``(values * factor).to(dtype)``, for contiguous `values` in the accumulator dtype."""
    out = native_linear.empty(values, values.shape, dtype)
    if _is_cpu(values):
        return torch.mul(values, factor, out=out)
    factor = factor.to(values.dtype)
    _call(
        "scaled_copy", values, values.data_ptr(), _CODES[values.dtype], values.numel(),
        factor.data_ptr(), out.data_ptr(), _CODES[dtype],
    )  # fmt: skip
    return out


def out_of_range(target: RowTarget, num_classes: int, place: int) -> OutOfRange:
    """Return the error that names the first index out of range."""
    row, slot = divmod(place, target.indices.shape[1] if target.indices.dim() == 2 else 1)
    value = target.indices.reshape(-1)[place].item()
    where = f"target[{row}]" if target.ignore_index is not None else f"indices[{row}, {slot}]"
    return OutOfRange(f"{where}: got {value}, expected an index below {num_classes} ({num_classes} classes)")


def _is_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _call(name: str, like: Tensor, *arguments: object) -> Any:
    """Run a kernel on the device of `like`: with torch's number of threads, or on torch's current stream."""
    if _is_cpu(like):
        return getattr(compiled.require("_C"), name)(*arguments, torch.get_num_threads())
    _launch(name, like, *arguments)
    return -1  # nobody waits for what a device could say of the indices


def _launch(name: str, like: Tensor, *arguments: object) -> None:
    function, device = getattr(compiled.require("_C_cuda"), name), like.get_device()
    stream = torch.cuda.current_stream(device).cuda_stream
    if device == torch.cuda.current_device():  # nearly always: a context costs as much as the call
        function(*arguments, device, stream)
        return
    with torch.cuda.device(device):  # for it is this one that the kernels leave current
        function(*arguments, device, stream)


_NONE = (0, 0, 0)


def _array(tensor: Tensor | None) -> tuple[int, int, int]:
    """Return a contiguous tensor as the bindings take it, which check its type and its size."""
    if tensor is None:
        return _NONE
    if not tensor.is_contiguous():
        raise ValueError(f"kernels: got the strides {tensor.stride()}, expected a contiguous tensor")
    return tensor.data_ptr(), _CODES[tensor.dtype], tensor.numel()


def _logits(logits: Tensor) -> tuple[int, int, int, int, int]:
    code = _FLOAT_CODES.get(logits.dtype)
    rows, classes = logits.shape
    if code is None or (classes > 1 and logits.stride(1) != 1):
        raise ValueError(
            f"logits: got {logits.dtype} of strides {logits.stride()}, expected floating (N, V) of stride 1 along V"
        )
    return logits.data_ptr(), code, rows, classes, logits.stride(0)


def _target(target: RowTarget) -> tuple[Any, ...]:
    indices, given_weights, given_uniform, _, ignore_index, given_prior = target
    slots = indices.shape[1] if indices.dim() == 2 else 1
    weights = _NONE if given_weights is None else _array(given_weights)
    uniform = _NONE if given_uniform is None else _array(given_uniform)
    prior = _NONE if given_prior is None else _array(given_prior)
    if ignore_index is None:
        return _array(indices), slots, weights, uniform, prior, False, -1
    return _array(indices), slots, weights, uniform, prior, True, ignore_index


def _dense(dense: DenseRows | None) -> tuple[Any, ...] | None:
    if dense is None:
        return None
    values, rows, weights = dense
    return _array(values), values.shape[0], _array(rows), rows.shape[1], _array(weights)


def _check_out(out: Tensor, logits: Tensor) -> None:
    """Raise ValueError for an `out` that the kernels could not write to."""
    rows, classes = logits.shape
    if out.shape != logits.shape or (classes > 1 and out.stride(1) != 1) or (rows > 1 and out.stride(0) < classes):
        raise ValueError(
            f"out: got the shape {tuple(out.shape)} and strides {out.stride()}, expected {tuple(logits.shape)} of"
            " stride 1 along V, rows that do not overlap"
        )
