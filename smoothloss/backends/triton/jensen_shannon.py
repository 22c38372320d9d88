"""The Jensen-Shannon divergence in Triton, from a teacher whose rest is spread evenly; a program a row.

With ``m = beta a + (1 - beta) p``, and r what every class has that no slot names, the larger one of p and r is taken
out of m: what is left is between its weight and 1, and its logarithm has no digits to lose. The sums over the classes
are in float64: they go over the listed ones too, which are taken off again to the last bit but one, and added in
float64 as what they are.
"""
# mypy: ignore-errors

import triton
import triton.language as tl

from smoothloss.backends.triton.device import load_entries, load_logits, lowest, scalar
from smoothloss.backends.triton.gradient import keep_selected, store

_RUN_TIME = [
    "units", "logits_stride", "out_stride", "num_entries", "beta", "beta_low", "scale", "softcap", "scale_low",
    "softcap_low",
]  # fmt: skip
# Below it a class's share of the teacher's rest makes no difference in any dtype, and 1 / share is still finite.
_LOWEST_LOG_SHARE: tl.constexpr = tl.constexpr(-80.0)
# Of the weights of both sides, whose logarithm is finite in every dtype.
_LEAST_WEIGHT: tl.constexpr = tl.constexpr(1e-37)
# Beyond it ``log p - log a`` makes no difference.
_LARGEST_DISTANCE: tl.constexpr = tl.constexpr(700.0)


@triton.jit
def _softmax(
    logits, num_classes, readable, scale, softcap, ACCUMULATOR: tl.constexpr, BLOCK: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Return the largest logit, and ``sum e^(z - largest)``."""
    lane = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), 0.0, ACCUMULATOR) + lowest(ACCUMULATOR)
    norm = tl.zeros((BLOCK,), ACCUMULATOR)
    for start in range(0, readable, BLOCK):
        column = start + lane
        inside = column < num_classes
        z = load_logits(logits + column, inside, scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
        z = tl.where(inside, z, -float("inf"))
        step = z - top
        shrink = tl.exp(-tl.abs(step))  # one exponential serves both cases: the maximum rises, or it stays
        norm = tl.where(step > 0, shrink * norm + 1.0, norm + shrink)
        top = tl.maximum(top, z)
    peak = tl.max(top, 0)
    return peak, tl.sum(tl.exp(top - peak) * norm, 0)


@triton.jit
def _listed(z, log_a, center, log_sum, beta):
    """Return p, ``log p - log m`` and ``log a - log m`` of listed classes, in float64."""
    log_p = (z.to(tl.float64) - center) - log_sum
    distance = tl.minimum(tl.maximum(log_p - log_a, -_LARGEST_DISTANCE), _LARGEST_DISTANCE)
    log_m = tl.log(beta + (1.0 - beta) * tl.exp(distance))
    return tl.exp(log_p), distance - log_m, -log_m


@triton.jit
def _unlisted(z, peak, beta, rest, ratio_scale, offset):
    """Return ``e^(z - peak)``, ``log p - log m`` and ``log m - log r``, see `unlisted_class` in csrc/common."""
    d = tl.maximum(z - peak, -1000.0) + offset  # which is a zero in any dtype, and no inf to multiply it by
    power = tl.exp(z - peak)
    ratio = power * ratio_scale
    is_larger = ratio > 1.0
    smaller = tl.where(is_larger, 1.0 / tl.where(is_larger, ratio, 1.0), ratio)
    share = tl.log(tl.where(is_larger, rest, beta) + tl.where(is_larger, beta, rest) * smaller)
    return power, tl.where(is_larger, -share, d - share), tl.where(is_larger, d + share, share)


@triton.jit
def _num_filled(indices, num_entries, num_classes, BLOCK_S: tl.constexpr):
    filled = tl.zeros((BLOCK_S,), tl.int32)
    for start in range(0, num_entries, BLOCK_S):
        slot = start + tl.arange(0, BLOCK_S)
        index = tl.load(indices + slot, mask=slot < num_entries, other=-1)
        filled += ((index >= 0) & (index < num_classes)).to(tl.int32)
    return tl.sum(filled, 0)


@triton.jit(do_not_specialize=_RUN_TIME)
def _jensen_shannon_forward_kernel(
    logits,  # (N, V)
    indices,  # (N, S)
    log_a,  # (N, S)
    log_share,  # (N,)
    losses,  # (N,)
    saved,  # (N, 3): largest logit, sum e^(z - largest), KL(p || m)
    units,
    logits_stride,
    num_entries,
    beta,
    beta_low,
    scale,
    softcap,
    scale_low,
    softcap_low,
    UNIT: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    scale = scalar(scale, scale_low, ACCUMULATOR)
    softcap = scalar(softcap, softcap_low, ACCUMULATOR)
    beta = scalar(beta, beta_low, tl.float64)
    num_classes = units * UNIT
    logits += row * logits_stride * UNIT
    indices += row * num_entries
    log_a += row * num_entries
    num_listed = _num_filled(indices, num_entries, num_classes, BLOCK_S)
    present = num_listed > 0
    readable = tl.where(present, num_classes, 0)  # a row without a teacher is not read at all: it may hold NaN

    peak, norm = _softmax(logits, num_classes, readable, scale, softcap, ACCUMULATOR, BLOCK, HAS_SOFTCAP)
    center, total = peak.to(tl.float64), tl.where(present, norm, 1.0).to(tl.float64)
    log_sum = tl.log(total)
    share = tl.maximum(tl.load(log_share + row).to(tl.float64), _LOWEST_LOG_SHARE)
    ratio_scale = (tl.exp(-share) / total).to(ACCUMULATOR)
    offset = (-log_sum - share).to(ACCUMULATOR)
    narrow_beta = tl.maximum(beta, _LEAST_WEIGHT).to(ACCUMULATOR)
    narrow_rest = tl.maximum(1.0 - beta, _LEAST_WEIGHT).to(ACCUMULATOR)

    lane = tl.arange(0, BLOCK)
    student = tl.zeros((BLOCK,), tl.float64)
    distance = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, readable, BLOCK):
        column = start + lane
        inside = column < num_classes
        z = load_logits(logits + column, inside, scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
        power, from_student, log_m = _unlisted(z, peak, narrow_beta, narrow_rest, ratio_scale, offset)
        student += tl.where(inside, power * from_student, 0.0).to(tl.float64)
        distance += tl.where(inside, log_m, 0.0).to(tl.float64)
    student_row, distance_row = tl.sum(student, 0), tl.sum(distance, 0)
    own_student = tl.zeros((BLOCK_S,), tl.float64)
    own_teacher = tl.zeros((BLOCK_S,), tl.float64)
    less_student = tl.zeros((BLOCK_S,), tl.float64)
    less_distance = tl.zeros((BLOCK_S,), tl.float64)
    for start in range(0, num_entries, BLOCK_S):
        index, log_weight, filled = load_entries(
            indices, log_a, start, num_entries, num_classes, -1, ACCUMULATOR, BLOCK_S, True
        )
        z = load_logits(logits + index, filled, scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
        power, from_student, log_m = _unlisted(z, peak, narrow_beta, narrow_rest, ratio_scale, offset)
        less_student += tl.where(filled, power * from_student, 0.0).to(tl.float64)
        less_distance += tl.where(filled, log_m, 0.0).to(tl.float64)
        log_weight = log_weight.to(tl.float64)
        p, from_student, from_teacher = _listed(z, log_weight, center, log_sum, beta)
        own_student += tl.where(filled, p * from_student, 0.0)
        own_teacher += tl.where(filled, tl.exp(log_weight) * from_teacher, 0.0)
    student_row = (student_row - tl.sum(less_student, 0)) / total + tl.sum(own_student, 0)
    distance_row -= tl.sum(less_distance, 0)
    teacher_row = tl.sum(own_teacher, 0) - tl.exp(share) * distance_row
    loss = beta * teacher_row + (1.0 - beta) * student_row
    tl.store(losses + row, tl.where(present, loss, 0.0).to(ACCUMULATOR))
    tl.store(saved + 3 * row, peak)
    tl.store(saved + 3 * row + 1, norm)
    tl.store(saved + 3 * row + 2, student_row.to(ACCUMULATOR))


@triton.jit(do_not_specialize=_RUN_TIME)
def _jensen_shannon_backward_kernel(
    grad,  # (N,)
    logits,  # (N, V)
    indices,  # (N, S)
    log_a,  # (N, S)
    log_share,  # (N,)
    saved,  # (N, 3), as the forward stored it
    selected,  # (N, S), scratch where HAS_MANY_ENTRIES
    out,  # (N, V)
    units,
    logits_stride,
    out_stride,
    num_entries,
    beta,
    beta_low,
    scale,
    softcap,
    scale_low,
    softcap_low,
    UNIT: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_MANY_ENTRIES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    scale = scalar(scale, scale_low, ACCUMULATOR)
    softcap = scalar(softcap, softcap_low, ACCUMULATOR)
    beta = scalar(beta, beta_low, tl.float64)
    num_classes = units * UNIT
    logits += row * logits_stride * UNIT
    out += row * out_stride * UNIT
    indices += row * num_entries
    log_a += row * num_entries
    selected += row * num_entries
    incoming = tl.load(grad + row).to(tl.float64)
    live = (_num_filled(indices, num_entries, num_classes, BLOCK_S) > 0) & (incoming != 0)
    readable = tl.where(live, num_classes, 0)
    peak = tl.where(live, tl.load(saved + 3 * row), 0.0)
    center = peak.to(tl.float64)
    total = tl.where(live, tl.load(saved + 3 * row + 1), 1.0).to(tl.float64)
    student = tl.where(live, tl.load(saved + 3 * row + 2), 0.0).to(tl.float64)
    log_sum = tl.log(total)
    share = tl.maximum(tl.load(log_share + row).to(tl.float64), _LOWEST_LOG_SHARE)
    ratio_scale = (tl.exp(-share) / total).to(ACCUMULATOR)
    offset = (-log_sum - share).to(ACCUMULATOR)
    narrow_beta = tl.maximum(beta, _LEAST_WEIGHT).to(ACCUMULATOR)
    narrow_rest = tl.maximum(1.0 - beta, _LEAST_WEIGHT).to(ACCUMULATOR)
    narrow_student = student.to(ACCUMULATOR)
    factor = tl.where(live, incoming, 0.0) * (1.0 - beta)
    level = (factor / total).to(ACCUMULATOR)

    if HAS_MANY_ENTRIES:
        own = peak
        keep_selected(
            logits, selected, indices, selected, num_entries, num_classes, -1, readable, scale, softcap,
            ACCUMULATOR, BLOCK_S, HAS_SOFTCAP, False,
        )  # fmt: skip
    else:
        index, _weight, filled = load_entries(
            indices, log_a, 0, num_entries, num_classes, -1, ACCUMULATOR, BLOCK_S, True
        )
        own = load_logits(logits + index, filled & (index < readable), scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
    tl.debug_barrier()  # in place, no thread may write before all have loaded what they will need

    lane = tl.arange(0, BLOCK)
    for start in range(0, num_classes, BLOCK):
        column = start + lane
        z = load_logits(logits + column, column < readable, scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
        power, from_student, _log_m = _unlisted(z, peak, narrow_beta, narrow_rest, ratio_scale, offset)
        gradient = level * power * (from_student - narrow_student)
        if HAS_SOFTCAP:
            ratio = z / softcap
            gradient *= 1.0 - ratio * ratio
        store(out + column, scale * gradient, column < num_classes)

    tl.debug_barrier()  # the classes of the slots were just written, by other threads than write them now
    for start in range(0, num_entries, BLOCK_S):
        index, log_weight, filled = load_entries(
            indices, log_a, start, num_entries, num_classes, -1, ACCUMULATOR, BLOCK_S, True
        )
        z = own
        if HAS_MANY_ENTRIES:
            z = tl.load(selected + start + tl.arange(0, BLOCK_S), mask=filled, other=0.0)
        p, from_student, _from_teacher = _listed(z, log_weight.to(tl.float64), center, log_sum, beta)
        gradient = factor * p * (from_student - student)
        if HAS_SOFTCAP:
            ratio = (z / softcap).to(tl.float64)
            gradient *= 1.0 - ratio * ratio
        store(out + index, tl.where(live, scale * gradient, 0.0).to(ACCUMULATOR), filled)
