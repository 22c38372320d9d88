"""The row kernels in Triton: one program per row of the logits, or where that is better one for several rows.

Triton passes Python floats as float32. What that cuts off comes in a second argument, `*_low`, so that float64 kernels
see the options to about 48 bits. `units` and the strides count `UNIT` elements.
"""
# mypy: ignore-errors

import triton
import triton.language as tl

from smoothloss.backends.triton.device import (
    row_loss,
    scalar,
    spread,
    statistics,
    store_statistics,
    target_mass,
)
from smoothloss.backends.triton.gradient import backward_row

# Slots of dense rows whose weights are added up at a time.
_BLOCK_J: tl.constexpr = tl.constexpr(32)
# Whatever is listed here changes from call to call and must not lead to another compilation. The options are in the
# order of RowOptions, as in the arguments of the kernels.
_OPTIONS = ["smoothing", "gamma", "z_loss", "scale", "softcap"]
_STRIDES = ["units", "logits_stride", "out_stride", "grad_stride"]
_SIZES = ["num_rows", "num_entries", "num_values", "num_mixed", "ignored"]
_RUN_TIME = [*_STRIDES, *_SIZES, *_OPTIONS, *(f"{name}_low" for name in _OPTIONS)]


def option_flags(options):
    """Return what the kernels are compiled for of the options."""
    return {"HAS_ENTROPY": options.entropy != 0, "HAS_SOFTCAP": options.softcap != 0}


@triton.jit(do_not_specialize=_RUN_TIME)
def _sparse_cross_entropy_forward_kernel(
    logits,  # (N, V)
    indices,  # (N, S)
    weights,  # (N, S), read where HAS_WEIGHTS
    uniform,  # (N,), read where HAS_UNIFORM
    dense_values,  # (U, V), this and the next two read where HAS_DENSE
    dense_rows,  # (N, J)
    dense_weights,  # (N, J)
    prior,  # (V,), read where HAS_PRIOR
    selected,  # (N, S), scratch where HAS_MANY_ENTRIES
    loss_out,  # (N,)
    mass_out,  # (N,)
    statistics_out,  # (N, 3), written unless HAS_GRADIENT
    grad_out,  # (N, V), written where HAS_GRADIENT
    units,
    logits_stride,
    out_stride,
    num_rows,
    num_entries,
    num_values,
    num_mixed,
    ignored,
    smoothing,
    gamma,
    z_loss,
    scale,
    softcap,
    smoothing_low,
    gamma_low,
    z_loss_low,
    scale_low,
    softcap_low,
    UNIT: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HAS_UNIFORM: tl.constexpr,
    HAS_SHARES: tl.constexpr,
    HAS_DENSE: tl.constexpr,
    HAS_PRIOR: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_GRADIENT: tl.constexpr,
    HAS_MANY_ENTRIES: tl.constexpr,
    HAS_ROW_LOOP: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64)
    smoothing = scalar(smoothing, smoothing_low, ACCUMULATOR)
    gamma = scalar(gamma, gamma_low, ACCUMULATOR)
    z_loss = scalar(z_loss, z_loss_low, ACCUMULATOR)
    scale = scalar(scale, scale_low, ACCUMULATOR)
    softcap = scalar(softcap, softcap_low, ACCUMULATOR)
    num_classes = units * UNIT
    if HAS_ROW_LOOP:
        remaining, programs = num_rows - first, tl.num_programs(0)
    else:  # the compiler sees that there is no loop
        remaining, programs = 1, 1

    for skipped in range(0, remaining, programs):
        row = first + skipped
        row_logits = logits + row * logits_stride * UNIT
        row_indices, row_weights = indices + row * num_entries, weights + row * num_entries
        mix_rows, mix_weights = dense_rows + row * num_mixed, dense_weights + row * num_mixed
        mass = target_mass(
            row_indices, row_weights, num_entries, num_classes, ignored, ACCUMULATOR, BLOCK_S, HAS_WEIGHTS
        )
        if HAS_DENSE:
            mass += target_mass(mix_rows, mix_weights, num_mixed, num_values, -1, ACCUMULATOR, _BLOCK_J, True)
        mass, even = spread(mass, uniform, row, smoothing, HAS_UNIFORM)
        share = even
        if not HAS_PRIOR:
            share = even / num_classes.to(ACCUMULATOR)
        live = mass != 0
        readable = tl.where(live, num_classes, 0)  # a row without mass is not read at all: it may hold NaN
        peak, norm, entropy, gap, reach = statistics(
            row_logits, dense_values, mix_rows, mix_weights, prior, num_values, num_mixed, num_classes, readable,
            1.0 - smoothing, share, scale, softcap,
            ACCUMULATOR, BLOCK, HAS_SOFTCAP, HAS_SHARES, HAS_ENTROPY, HAS_DENSE, HAS_PRIOR,
        )  # fmt: skip
        peak = tl.where(live, peak, 0.0)
        norm = tl.where(live, norm, 1.0)
        entropy = tl.where(live, entropy, 0.0)
        log_norm = tl.log(norm)
        lse = peak + log_norm
        loss = row_loss(
            row_logits, row_indices, row_weights, num_entries, num_classes, peak, log_norm,
            entropy, ignored, readable, smoothing, gamma, z_loss, scale, softcap,
            ACCUMULATOR, BLOCK_S, HAS_SOFTCAP, HAS_ENTROPY, HAS_WEIGHTS,
        )  # fmt: skip
        if HAS_SHARES:
            loss += gap + reach * log_norm
        tl.store(loss_out + row, loss)
        tl.store(mass_out + row, mass)
        if HAS_GRADIENT:
            backward_row(
                row_logits, selected + row * num_entries, grad_out + row * out_stride * UNIT, row_indices, row_weights,
                dense_values, mix_rows, mix_weights, prior, num_values, num_mixed, num_entries, num_classes, ignored,
                readable,
                1.0 - smoothing, share, peak, 1.0 / norm, entropy,
                mass + 2.0 * z_loss * lse, tl.where(live, scale, 0.0), gamma, scale, softcap,
                ACCUMULATOR, BLOCK, BLOCK_S, HAS_SOFTCAP, HAS_ENTROPY, HAS_DENSE, HAS_PRIOR, HAS_MANY_ENTRIES,
                HAS_WEIGHTS,
            )  # fmt: skip
        else:
            if HAS_ENTROPY:
                store_statistics(statistics_out, row, peak, norm, entropy)
            else:
                store_statistics(statistics_out, row, peak, norm, 0.0)


@triton.jit(do_not_specialize=_RUN_TIME)
def _sparse_cross_entropy_backward_kernel(
    grad,  # (N,), or (1,) with grad_stride 0
    grad_scale,  # (1,), read where HAS_SCALE
    logits,  # (N, V)
    statistics_in,  # (N, 3)
    indices,  # (N, S)
    weights,  # (N, S), read where HAS_WEIGHTS
    uniform,  # (N,), read where HAS_UNIFORM
    dense_values,  # (U, V), this and the next two read where HAS_DENSE
    dense_rows,  # (N, J)
    dense_weights,  # (N, J)
    prior,  # (V,), read where HAS_PRIOR
    selected,  # (N, S), scratch where HAS_MANY_ENTRIES
    mass_in,  # (N,), read where HAS_MASS
    grad_out,  # (N, V)
    units,
    logits_stride,
    out_stride,
    grad_stride,
    num_entries,
    num_values,
    num_mixed,
    ignored,
    smoothing,
    gamma,
    z_loss,
    scale,
    softcap,
    smoothing_low,
    gamma_low,
    z_loss_low,
    scale_low,
    softcap_low,
    UNIT: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HAS_UNIFORM: tl.constexpr,
    HAS_DENSE: tl.constexpr,
    HAS_PRIOR: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_MASS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    HAS_MANY_ENTRIES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    smoothing = scalar(smoothing, smoothing_low, ACCUMULATOR)
    gamma = scalar(gamma, gamma_low, ACCUMULATOR)
    z_loss = scalar(z_loss, z_loss_low, ACCUMULATOR)
    scale = scalar(scale, scale_low, ACCUMULATOR)
    softcap = scalar(softcap, softcap_low, ACCUMULATOR)
    num_classes = units * UNIT
    indices += row * num_entries
    weights += row * num_entries
    dense_rows += row * num_mixed
    dense_weights += row * num_mixed

    mass = target_mass(indices, weights, num_entries, num_classes, ignored, ACCUMULATOR, BLOCK_S, HAS_WEIGHTS)
    if HAS_DENSE:
        mass += target_mass(dense_rows, dense_weights, num_mixed, num_values, -1, ACCUMULATOR, _BLOCK_J, True)
    mass, even = spread(mass, uniform, row, smoothing, HAS_UNIFORM)
    outer = tl.load(grad + row * grad_stride)
    if HAS_SCALE:
        outer *= tl.load(grad_scale)
    outer *= scale
    if HAS_MASS:  # a row without mass still has its entries
        mass = tl.load(mass_in + row)
    else:
        outer = tl.where(mass != 0, outer, 0.0)
    live = mass != 0
    readable = tl.where(live, num_classes, 0)
    peak = tl.where(live, tl.load(statistics_in + 3 * row), 0.0)
    norm = tl.where(live, tl.load(statistics_in + 3 * row + 1), 1.0)
    entropy = peak
    if HAS_ENTROPY:
        entropy = tl.where(live, tl.load(statistics_in + 3 * row + 2), 0.0)
    logits += row * logits_stride * UNIT
    share = even
    if not HAS_PRIOR:
        share = even / num_classes.to(ACCUMULATOR)
    backward_row(
        logits, selected + row * num_entries, grad_out + row * out_stride * UNIT, indices, weights,
        dense_values, dense_rows, dense_weights, prior, num_values, num_mixed, num_entries, num_classes, ignored,
        readable, 1.0 - smoothing, share, peak, 1.0 / norm, entropy,
        mass + 2.0 * z_loss * (peak + tl.log(norm)), outer, gamma, scale, softcap,
        ACCUMULATOR, BLOCK, BLOCK_S, HAS_SOFTCAP, HAS_ENTROPY, HAS_DENSE, HAS_PRIOR, HAS_MANY_ENTRIES,
                HAS_WEIGHTS,
    )  # fmt: skip
