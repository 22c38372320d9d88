"""From a checked target to a loss: the rows of the positions, the implementation, the shape of the result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smoothloss import backends
from smoothloss._prior import fitted_prior
from smoothloss._validation import check_device, check_shape, check_tensor, check_weight
from smoothloss.backends import Implementation
from smoothloss.backends.common import (
    OutOfRange,
    RowOptions,
    accumulator_dtype,
    has_autocast,
    replaced,
)
from smoothloss.ops import vocabulary_parallel
from smoothloss.ops.checks import is_debugging
from smoothloss.ops.compensated import unavailable_on_cuda
from smoothloss.ops.cross_entropy import cross_entropy
from smoothloss.ops.linear_cross_entropy import Linear, linear_cross_entropy
from smoothloss.ops.slices import is_distributed, slice_of_linear, slice_of_logits
from smoothloss.ops.target import FlatTarget, scaled
from smoothloss.ops.transforms import needs_the_reference
from smoothloss.ops.vocabulary_split import Split, split_over
from smoothloss.options import Options
from smoothloss.similarity import SimilarityTable
from smoothloss.targets.constructors import labels, token
from smoothloss.targets.target import Target, negative_entropy

KL_BESIDE_WEIGHT = "kl: got True together with weight, expected one of them"


def check_logits(input: Tensor) -> None:
    """Check logits ``(..., V)``."""
    check_tensor(input, "input", floating=True)
    if input.dim() < 1 or input.shape[-1] < 1:
        if input.dim() and is_distributed():  # a slice of the classes may be empty; all of them together may not
            return
        raise ValueError(f"input: got shape {tuple(input.shape)}, expected (..., V) with V >= 1")


def check_linear(input: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> tuple[Tensor, Linear]:
    """Check hidden states and classifier, and cast them as autocast would cast `F.linear`'s."""
    check_tensor(input, "input", floating=True)
    check_tensor(weight, "linear_weight", floating=True)
    group, scatters = options.group, False
    if is_distributed():
        input, weight, bias, group, scatters = slice_of_linear(input, weight, bias, group)
    check_device(weight, "linear_weight", input, "input")
    fits = weight.dim() == 2 and input.dim() > 0 and weight.shape[1] == input.shape[-1]
    if not fits or (weight.shape[0] < 1 and group is None):
        raise ValueError(
            f"linear_weight: got shape {tuple(weight.shape)}, expected (V, D) with D the last dimension of input,"
            f" {tuple(input.shape)}"
        )
    if bias is not None:
        check_tensor(bias, "linear_bias", floating=True)
        check_shape(bias, "linear_bias", (weight.shape[0],), "(V,)")
        check_device(bias, "linear_bias", input, "input")
    device_type = input.device.type
    if has_autocast(device_type) and torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        input, weight = _autocast(input, dtype), _autocast(weight, dtype)
        bias = None if bias is None else _autocast(bias, dtype)
    if weight.dtype != input.dtype:
        raise TypeError(f"linear_weight: got {weight.dtype}, expected {input.dtype}, the dtype of input")
    tail = _checked_tail(input, options, group)
    return input, Linear(weight, bias, options.chunk_bytes, options.memory, group, scatters, tail)


def _checked_tail(input: Tensor, options: Options, group: Any) -> float | None:
    """Return the tolerance of a compensated tail, None for the exact one."""
    if options.tail == "exact":
        return None
    for got, expected, is_possible in (
        (f"an input on {input.device}", "one on the CPU or CUDA", input.device.type in ("cpu", "cuda")),
        (f"an input of {input.dtype}", "torch.bfloat16", input.dtype == torch.bfloat16),
        ("classes that are split over processes", "all of them here", group is None),
    ):
        if not is_possible:
            raise ValueError(f"tail: got 'compensated' for {got}, expected {expected}")
    if input.is_cuda and (reason := unavailable_on_cuda()):
        raise ValueError(f"tail: got 'compensated' for an input on {input.device}, expected one on the CPU: {reason}")
    return options.tail_tolerance


def check_lazy(input: Tensor, samples: Tensor) -> None:
    """Check that samples can be scored on the states of the ground truth."""
    if input.dim() != 3:
        raise ValueError(f"input: got shape {tuple(input.shape)}, expected (B, T, V), or (B, T, D) for a linear loss")
    if isinstance(samples, Tensor) and samples.dim() == 3 and samples.shape[-1] != input.shape[-2]:
        raise ValueError(
            f"samples: got shape {tuple(samples.shape)}, expected {(samples.shape[0], *input.shape[:2])}: a lazy loss"
            " scores them on the ground truth's states, position by position; an EditSampler's need an exact loss"
        )


def check_exact(input: Tensor, samples: Tensor) -> None:
    """Check that there is a forward for the ground truth and for each sample."""
    if input.dim() != 4:
        raise ValueError(f"input: got shape {tuple(input.shape)}, expected (L + 1, B, T, V), or D for a linear loss")
    if isinstance(samples, Tensor) and samples.dim() == 3 and samples.shape[0] + 1 != input.shape[0]:
        raise ValueError(
            f"input: got shape {tuple(input.shape)}, expected {(samples.shape[0] + 1, *input.shape[1:])}"
            " (L + 1 forwards for L samples)"
        )


def token_target(
    target: Tensor | Target, table: SimilarityTable | None, alpha: float, ignore_index: int, impl: Implementation
) -> Target:
    """Return the target that `cross_entropy` was given, or the one of its class numbers."""
    if not isinstance(target, Target):
        if table is None and alpha == 0.0:
            return labels(target, ignore_index=ignore_index)
        return token(target, table, alpha, ignore_index=ignore_index, impl=impl)
    if table is not None or alpha != 0.0:
        raise ValueError("table, alpha: got them beside a Target, expected class numbers; see targets.token")
    return target


def _autocast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)


def evaluate(input: Tensor, target: Target, options: Options, linear: Linear | None = None) -> Tensor:
    """Return the loss of `input` (logits, or hidden states with `linear`) against `target`, reduced."""
    return _evaluate(*classes_of(input, options, linear), target, options, linear)


def _evaluate(
    input: Tensor, split: Split | None, num_classes: int, target: Target, options: Options, linear: Linear | None
) -> Tensor:
    """Return the loss of this process's part of the classes, which are `num_classes` in all."""
    _check_fits(input, target, num_classes)
    if options.prior is not None:
        options = replaced(Options, options, prior=fitted_prior(options.prior, input, num_classes))
        target = _with_prior(target, options)
    reduction, impl = options.reduction, implementation(input, options.impl)
    if impl == "reference" or split is not None or is_debugging():
        target.check_values(num_classes)
    rows = input if input.dim() == 2 else rows_of(input)
    counted = target.counted if reduction == "mean" else None
    kind = reduction if counted is None else "sum"
    if split is None:
        loss = _loss(rows, target, options, kind, impl, linear, num_classes)
    else:
        loss = vocabulary_parallel.loss(rows, linear, target.flat, options.row, kind, impl, split)
    if options.kl:
        loss = loss + _reduced_constant(target, options, kind, num_classes).to(loss.dtype)
    if counted is not None:
        return _mean(loss, counted.sum())
    return loss.reshape(target.shape) if reduction == "none" and input.dim() != 2 else loss


def classes_of(input: Tensor, options: Options, linear: Linear | None) -> tuple[Tensor, Split | None, int]:
    """Return this process's part of `input`, how the classes are split over processes, and how many there are."""
    if linear is not None:
        group, num_classes = linear.group, linear.weight.shape[0]
    elif is_distributed():
        input, group = slice_of_logits(input, options.group)
        num_classes = input.shape[-1]
        if group is None and not num_classes:
            raise ValueError(f"input: got shape {tuple(input.shape)}, expected (..., V) with V >= 1")
    else:
        group, num_classes = None, input.shape[-1]
    if group is None:
        return input, None, num_classes
    split = split_over(group, num_classes, input.device)
    if linear is not None and linear.scatters:
        split = replaced(Split, split, scatters=True)
    return input, split, split.total


def _with_prior(target: Target, options: Options) -> Target:
    """Return the target whose uniform mass, that of smoothed labels included, is spread by the prior."""
    if target.flat.uniform is None and not options.row.label_smoothing:
        return target
    flat = replaced(FlatTarget, target.flat, prior=options.prior)
    return Target(target.shape, flat, target._given, target.num_classes, target._counted)


def evaluate_weighted(
    input: Tensor, target: Target, class_weight: Tensor, options: Options, linear: Linear | None = None
) -> Tensor:
    """Return the loss with every class of the target weighted; "mean" divides by the weights, as torch does."""
    input, split, num_classes = classes_of(input, options, linear)
    _check_fits(input, target, num_classes)
    check_weight(class_weight)
    check_shape(class_weight, "weight", (num_classes,), "(V,)")
    check_device(class_weight, "weight", input, "input")
    if options.kl:
        raise ValueError(KL_BESIDE_WEIGHT)
    if options.prior is not None:
        options = replaced(Options, options, prior=fitted_prior(options.prior, input, num_classes))
    weighted, total = _weighted(target, class_weight, options.row.label_smoothing, options.prior)
    plain = replaced(Options, options, row=replaced(RowOptions, options.row, label_smoothing=0.0), prior=None)
    if options.reduction != "mean":
        return _evaluate(input, split, num_classes, weighted, plain, linear)
    summed = replaced(Options, plain, reduction="sum")
    return _mean(_evaluate(input, split, num_classes, weighted, summed, linear), total.sum())


def implementation(input: Tensor, impl: str) -> str:
    """Return the implementation that runs on logits or hidden states."""
    if impl == "auto" and needs_the_reference():
        return "reference"
    return backends.choose(impl, input.device.type, input.dtype)


def _loss(
    rows: Tensor, target: Target, options: Options, reduction: str, impl: str, linear: Linear | None, num_classes: int
) -> Tensor:
    flat, row = target.flat, options.row
    if torch.compiler.is_compiling() and row.label_smoothing != 0.0 and impl != "reference":
        flat, row = (
            _with_smoothing(flat, num_classes, row.label_smoothing, accumulator_dtype(rows.dtype)),
            replaced(RowOptions, row, label_smoothing=0.0),
        )
    try:
        if linear is None:
            return cross_entropy(rows, flat, row, reduction, options.inplace, impl)
        return linear_cross_entropy(rows, linear, flat, row, reduction, impl)
    except OutOfRange:
        target.check_values(num_classes)  # names the offender as the user gave it
        raise


def _with_smoothing(flat: FlatTarget, num_classes: int, eps: float, dtype: torch.dtype) -> FlatTarget:
    """Put label smoothing into the target.

    A number that is an operator's argument is a constant of compiled code, and another one compiles it again; as a
    factor it is not.
    """
    mass = flat.mass(num_classes, dtype)
    keep, spread = torch.ones_like(mass) * (1 - eps), mass * eps
    if flat.uniform is not None:
        spread = spread + flat.uniform * keep
    weights = keep.unsqueeze(-1) if flat.weights is None else flat.weights * keep.unsqueeze(-1)
    source = scaled(flat.source, keep.unsqueeze(-1))
    return replaced(FlatTarget, flat, weights=weights, uniform=spread, source=source)


def _weighted(target: Target, class_weight: Tensor, eps: float, prior: Tensor | None) -> tuple[Target, Tensor]:
    """Return the target with class weights and label smoothing in it, and the weighted mass of each position."""
    flat = target._entries()
    if flat.source is not None or flat.weights is None:
        raise ValueError("weight: got class weights for a table with an exact tail, expected another tail")
    num_classes, dtype = class_weight.shape[0], torch.promote_types(flat.weights.dtype, class_weight.dtype)
    if dtype not in (torch.float32, torch.float64):
        dtype = torch.float32
    class_weight, uniform = class_weight.to(dtype), flat.uniform
    filled = (flat.indices >= 0) & (flat.indices < num_classes)
    own = flat.weights.to(dtype) * class_weight[flat.indices.where(filled, 0).long()]
    own = own.where(filled, 0.0)
    spread_weight = class_weight / num_classes if prior is None else class_weight * prior.to(dtype)
    mean_weight, total = spread_weight.sum(), own.sum(-1)
    spread = eps * flat.mass(num_classes, dtype)
    if uniform is not None:
        spread, total = spread + (1 - eps) * uniform, total + uniform * mean_weight
    share = by = None
    if eps != 0.0 or uniform is not None:  # spread over the classes as their weights are
        share, by = spread * mean_weight, spread_weight / mean_weight.clamp(min=torch.finfo(dtype).tiny)
    weighted = FlatTarget(flat.indices, (1 - eps) * own, share, prior=by)
    return Target(target.shape, weighted, target._given, target.num_classes, target._counted), total


def _reduced_constant(target: Target, options: Options, reduction: str, num_classes: int) -> Tensor:
    """Return what turns cross-entropy into KL, reduced alike."""
    constant = negative_entropy(target._entries(), num_classes, options.row.label_smoothing, options.prior)
    if reduction == "none":
        return constant
    if reduction == "sum":
        return constant.sum()
    return constant.sum() / (target.mass() != 0).sum()


def _mean(loss: Tensor, divisor: Tensor) -> Tensor:
    """Return ``loss / divisor``. Nothing to average gives nan, as torch does; its gradient is zero and not 0 / 0."""
    is_empty = divisor == 0
    return (loss / divisor.masked_fill(is_empty, 1)).masked_fill(is_empty, torch.nan)


def _check_fits(input: Tensor, target: Target, num_classes: int) -> None:
    if tuple(target.shape) != tuple(input.shape[:-1]):
        raise _misfit(input, target)
    if target.device != input.device:
        name = target._given[0].name if target._given else "target"
        raise ValueError(f"{name}: got a tensor on {target.device}, expected {input.device}, where input is")
    if target.num_classes is not None and target.num_classes != num_classes:
        raise ValueError(f"table: got a table of {target.num_classes} tokens, expected {num_classes}, the V of input")


def _misfit(input: Tensor, target: Target) -> ValueError:
    got, expected = tuple(target.shape), tuple(input.shape[:-1])
    name = target._given[0].name if target._given else "target"
    if name == "indices":
        slots = target.indices.shape[-1]
        wanted = ", ".join(map(str, (*expected, "S")))
        return ValueError(f"indices: got shape {(*got, slots)}, expected ({wanted}) beside input")
    return ValueError(f"{name}: got shape {got}, expected {expected} (beside input {tuple(input.shape)})")


def rows_of(tensor: Tensor) -> Tensor:
    """Flatten all dimensions but the last."""
    if tensor.dim() == 1:
        return tensor.unsqueeze(0)
    return tensor if tensor.dim() == 2 else tensor.flatten(0, -2)
