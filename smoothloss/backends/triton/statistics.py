"""The token statistics in Triton: one pass over a row forward, one more backward; a program a row.

Listed classes and rest are sums of their own terms, each relative to its own maximum (`rest`), and the whole is put
together from them, in float64 like all scalars of a row: nothing is subtracted, and neither a small rest beside a large
class nor a small class beside a large rest is lost.
"""
# mypy: ignore-errors

import triton
import triton.language as tl

from smoothloss.backends.triton.device import load_entries, load_logits, lowest, scalar, transformed
from smoothloss.backends.triton.gradient import keep_selected, shared_weight, store
from smoothloss.backends.triton.rest import listed_and_rest, many_listed_and_rest

_RUN_TIME = ["units", "logits_stride", "out_stride", "num_entries", "scale", "softcap", "scale_low", "softcap_low"]


@triton.jit
def _whole(listed_peak, listed, rest_peak, rest):
    """Return the maximum of a row, and what listed classes and rest have of ``sum e^(z - max)``, in float64."""
    listed_center, rest_center = listed_peak.to(tl.float64), rest_peak.to(tl.float64)
    center = tl.maximum(listed_center, rest_center)
    return center, listed * tl.exp(listed_center - center), rest * tl.exp(rest_center - center)


@triton.jit
def _log_share(rest_peak, rest, center, log_total, part, other):
    """Return ``log(part / (part + other))``, `part` being what the rest has of the whole; -inf where it is nothing."""
    ratio = other / part
    is_large = ratio < 1  # then log1p, lest its digits be lost beside 1
    sum_of_both = 1.0 + ratio
    log = tl.log(tl.where(is_large, sum_of_both, rest.to(tl.float64)))
    large = -tl.where(sum_of_both == 1, ratio, log * (ratio / (sum_of_both - 1.0)))
    small = (rest_peak.to(tl.float64) - center) + (log - log_total)
    return tl.where(rest == 0, -float("inf"), tl.where(is_large, large, small))


@triton.jit
def _load_part(
    logits, column, num_classes, scale, softcap, ACCUMULATOR: tl.constexpr, HAS_SOFTCAP: tl.constexpr
):  # fmt: skip
    """Return logits as they came in, and as they are after scale and softcap; -inf beyond the row."""
    inside = column < num_classes
    x = tl.load(logits + column, mask=inside, other=-float("inf")).to(ACCUMULATOR)
    return x, tl.where(inside, transformed(x, scale, softcap, HAS_SOFTCAP), -float("inf"))


@triton.jit
def _term(z, top):
    """Return ``e^(z - top)``, and ``z - top`` in bounds that keep ``0 log 0`` a zero: e^-1000 is 0 in any dtype."""
    return tl.exp(z - top), tl.maximum(z - top, -1000.0)


@triton.jit
def _larger(one, other):
    return tl.maximum(one, other, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _row_sums(
    logits,  # (V,)
    num_classes,
    scale,
    softcap,
    ACCUMULATOR: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """Return what each lane knows of its classes.

    That is maximum, ``sum e^(z - max)``, ``sum e^(z - max) (z - max)``; the largest of the logits as they came in, a
    NaN if there is one; and from which class on it was found, within four blocks.

    Four blocks at a time: what they change in a lane is worked out once, and all their loads are under way together.
    """
    lane = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), 0.0, ACCUMULATOR) + lowest(ACCUMULATOR)
    norm = tl.zeros((BLOCK,), ACCUMULATOR)
    moment = tl.zeros((BLOCK,), ACCUMULATOR)
    best = tl.full((BLOCK,), -float("inf"), ACCUMULATOR)
    place = lane
    for start in range(0, num_classes, 4 * BLOCK):
        column = start + lane
        x0, z0 = _load_part(logits, column, num_classes, scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
        x1, z1 = _load_part(logits, column + BLOCK, num_classes, scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
        x2, z2 = _load_part(logits, column + 2 * BLOCK, num_classes, scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
        x3, z3 = _load_part(logits, column + 3 * BLOCK, num_classes, scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
        largest = _larger(_larger(x0, x1), _larger(x2, x3))
        better = (~(largest <= best)) & (best == best)
        best = tl.where(better, largest, best)
        place = tl.where(better, column, place)
        before = top
        top = tl.maximum(top, tl.maximum(tl.maximum(z0, z1), tl.maximum(z2, z3)))
        shrink, step = _term(before, top)
        e0, step0 = _term(z0, top)
        e1, step1 = _term(z1, top)
        e2, step2 = _term(z2, top)
        e3, step3 = _term(z3, top)
        moment = shrink * (moment + step * norm) + ((e0 * step0 + e1 * step1) + (e2 * step2 + e3 * step3))
        norm = shrink * norm + ((e0 + e1) + (e2 + e3))
    return top, norm, moment, best, place


@triton.jit
def _argmax(logits, num_classes, best, place, ACCUMULATOR: tl.constexpr, BLOCK: tl.constexpr):
    """Return the first class of the largest logit, where a NaN is larger than all."""
    is_nan = best != best
    has_nan = tl.max(is_nan.to(tl.int32), 0) > 0
    largest = tl.max(tl.where(is_nan, -float("inf"), best), 0)
    chosen = tl.where(has_nan, is_nan, best == largest)
    first = tl.full((BLOCK,), 0, tl.int32) + num_classes
    for back in range(4):
        column = place + (3 - back) * BLOCK
        mask = chosen & (column < num_classes)
        x = tl.load(logits + column, mask=mask, other=0.0).to(ACCUMULATOR)
        found = mask & tl.where(has_nan, x != x, x == largest)
        first = tl.where(found, column, first)
    return tl.min(first, 0)


@triton.jit(do_not_specialize=_RUN_TIME)
def _token_statistics_forward_kernel(
    logits,  # (N, V)
    indices,  # (N, S)
    log_prob_out,  # (N, S)
    log_rest_out,  # (N,)
    entropy_out,  # (N,)
    logsumexp_out,  # (N,)
    argmax_out,  # (N,)
    words,  # (N, W), scratch where HAS_MANY_ENTRIES
    saved_out,  # (N, 5): maximum and sum of the listed classes; entropy; maximum and sum of the rest
    units,
    logits_stride,
    num_entries,
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
    num_classes = units * UNIT
    logits += row * logits_stride * UNIT
    indices += row * num_entries
    log_prob_out += row * num_entries

    top, norm, moment, best, place = _row_sums(
        logits, num_classes, scale, softcap, ACCUMULATOR, BLOCK, HAS_SOFTCAP
    )  # fmt: skip
    tl.store(argmax_out + row, _argmax(logits, num_classes, best, place, ACCUMULATOR, BLOCK).to(tl.int64))
    shrink, step = _term(top, tl.max(top, 0))
    moment = tl.sum(shrink * (moment + step * norm), 0)
    if HAS_MANY_ENTRIES:
        words += row * (tl.cdiv(num_classes, 32 * BLOCK) * BLOCK)
        listed_peak, listed, rest_peak, rest = many_listed_and_rest(
            logits, words, indices, num_entries, num_classes, scale, softcap, ACCUMULATOR, BLOCK, BLOCK_S, HAS_SOFTCAP
        )
    else:
        TILE: tl.constexpr = 32 if BLOCK_S > 32 else BLOCK_S
        listed_peak, listed, rest_peak, rest = listed_and_rest(
            logits, indices, num_entries, num_classes, top, norm, scale, softcap, ACCUMULATOR, BLOCK, TILE, HAS_SOFTCAP
        )
    center, listed_part, rest_part = _whole(listed_peak, listed, rest_peak, rest)
    total = listed_part + rest_part
    log_total = tl.log(total)
    entropy = (log_total - moment / total).to(ACCUMULATOR)
    log_rest = _log_share(rest_peak, rest, center, log_total, rest_part, listed_part)
    tl.store(log_rest_out + row, log_rest.to(ACCUMULATOR))
    tl.store(entropy_out + row, entropy)
    tl.store(logsumexp_out + row, (center + log_total).to(ACCUMULATOR))
    saved_out += row * 5
    tl.store(saved_out, listed_peak)
    tl.store(saved_out + 1, listed)
    tl.store(saved_out + 3, rest_peak)
    tl.store(saved_out + 4, rest)
    tl.store(saved_out + 2, entropy)
    for start in range(0, num_entries, BLOCK_S):
        slot = start + tl.arange(0, BLOCK_S)
        index = tl.load(indices + slot, mask=slot < num_entries, other=-1)
        filled = (index >= 0) & (index < num_classes)
        z = load_logits(logits + index, filled, scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
        log_prob = ((z.to(tl.float64) - center) - log_total).to(ACCUMULATOR)
        tl.store(log_prob_out + slot, tl.where(filled, log_prob, 0.0), mask=slot < num_entries)


@triton.jit
def _grads_of_row(
    grad_log_prob,  # (S,)
    grad_log_rest,  # (), and so are the next
    grad_entropy,
    grad_logsumexp,
    indices,  # (S,)
    num_entries,
    num_classes,
    ACCUMULATOR: tl.constexpr,
    BLOCK_S: tl.constexpr,
    HAS_LOG_PROB: tl.constexpr,
    HAS_REST: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_LOGSUMEXP: tl.constexpr,
):
    """Return ``g_lse - sum_s g_s``, the gradients of log_rest and entropy, and whether any gradient is not zero."""
    coefficient = tl.full((), 0.0, tl.float64)
    of_rest, of_entropy = coefficient, coefficient
    live = coefficient != 0
    if HAS_LOG_PROB:
        total = tl.zeros((BLOCK_S,), tl.float64)
        some = tl.zeros((BLOCK_S,), tl.int32)
        for start in range(0, num_entries, BLOCK_S):
            _index, weight, _filled = load_entries(
                indices, grad_log_prob, start, num_entries, num_classes, -1, ACCUMULATOR, BLOCK_S, True
            )
            total += weight
            some |= (weight != 0).to(tl.int32)
        coefficient -= tl.sum(total, 0)
        live |= tl.max(some, 0) > 0
    if HAS_REST:
        of_rest = tl.load(grad_log_rest).to(tl.float64)
        live |= of_rest != 0
    if HAS_ENTROPY:
        of_entropy = tl.load(grad_entropy).to(tl.float64)
        live |= of_entropy != 0
    if HAS_LOGSUMEXP:
        of_logsumexp = tl.load(grad_logsumexp).to(tl.float64)
        coefficient += of_logsumexp
        live |= of_logsumexp != 0
    return coefficient, of_rest, of_entropy, live


@triton.jit
def _chained(gradient, z, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    """Return the gradient of a logit from that of ``z = softcap tanh(scale logit / softcap)``."""
    if HAS_SOFTCAP:
        ratio = z / softcap
        gradient *= 1.0 - ratio * ratio
    return scale * gradient


@triton.jit(do_not_specialize=_RUN_TIME)
def _token_statistics_backward_kernel(
    grad_log_prob,  # (N, S), read where HAS_LOG_PROB
    grad_log_rest,  # (N,), read where HAS_REST
    grad_entropy,  # (N,), read where HAS_ENTROPY
    grad_logsumexp,  # (N,), read where HAS_LOGSUMEXP
    logits,  # (N, V)
    indices,  # (N, S)
    saved,  # (N, 5), as the forward stored it
    selected,  # (N, S), scratch where HAS_MANY_ENTRIES
    out,  # (N, V)
    units,
    logits_stride,
    out_stride,
    num_entries,
    scale,
    softcap,
    scale_low,
    softcap_low,
    UNIT: tl.constexpr,
    ACCUMULATOR: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
    HAS_LOG_PROB: tl.constexpr,
    HAS_REST: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_LOGSUMEXP: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_MANY_ENTRIES: tl.constexpr,
):
    HAS_LISTED: tl.constexpr = HAS_LOG_PROB or HAS_REST
    row = tl.program_id(0).to(tl.int64)
    scale = scalar(scale, scale_low, ACCUMULATOR)
    softcap = scalar(softcap, softcap_low, ACCUMULATOR)
    num_classes = units * UNIT
    logits += row * logits_stride * UNIT
    out += row * out_stride * UNIT
    indices += row * num_entries
    grad_log_prob += row * num_entries
    selected += row * num_entries
    saved += row * 5

    coefficient, of_rest, of_entropy, live = _grads_of_row(
        grad_log_prob, grad_log_rest + row, grad_entropy + row, grad_logsumexp + row, indices, num_entries,
        num_classes, ACCUMULATOR, BLOCK_S, HAS_LOG_PROB, HAS_REST, HAS_ENTROPY, HAS_LOGSUMEXP,
    )  # fmt: skip
    readable = tl.where(live, num_classes, 0)  # a row whose gradients are zero is not read at all: it may hold NaN
    listed_peak = tl.where(live, tl.load(saved), 0.0)
    listed = tl.where(live, tl.load(saved + 1), 1.0)
    rest_peak = tl.where(live, tl.load(saved + 3), 0.0)
    rest = tl.where(live, tl.load(saved + 4), 1.0)
    entropy = tl.where(live, tl.load(saved + 2), 0.0).to(tl.float64)
    center, listed_part, rest_part = _whole(listed_peak, listed, rest_peak, rest)
    total = listed_part + rest_part
    log_total = tl.log(total)
    of_rest = tl.where(rest == 0, 0.0, of_rest)  # the logarithm of no class is a constant
    coefficient -= of_rest
    # Of a class in the bulk, e^(z - bulk_peak) (slope (z - bulk_peak + shift) + level).
    if HAS_LISTED:
        # That is the rest, relative to itself: its p may be too small a number, its p / rest is not.
        bulk_peak = tl.where(rest == 0, 0.0, rest_peak)
        factor = tl.where(rest == 0, 0.0, rest_part / (rest * total))
        level = factor * coefficient + tl.where(rest == 0, 0.0, of_rest / rest)
    else:  # no class is written again
        bulk_peak = center.to(ACCUMULATOR)
        factor = 1.0 / total
        level = factor * coefficient
    slope = -of_entropy * factor
    shift = tl.where(slope == 0, 0.0, bulk_peak - center - log_total + entropy).to(ACCUMULATOR)
    level, slope = level.to(ACCUMULATOR), slope.to(ACCUMULATOR)
    if HAS_LISTED:
        if HAS_MANY_ENTRIES:
            own = rest_peak
            keep_selected(
                logits, selected, indices, selected, num_entries, num_classes, -1, readable, scale, softcap,
                ACCUMULATOR, BLOCK_S, HAS_SOFTCAP, False,
            )  # fmt: skip
        else:
            index, _weight, filled = load_entries(
                indices, selected, 0, num_entries, num_classes, -1, ACCUMULATOR, BLOCK_S, False
            )
            own = load_logits(logits + index, filled & (index < readable), scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
        tl.debug_barrier()  # in place, no thread may write before all have loaded what they will need

    lane = tl.arange(0, BLOCK)
    for start in range(0, num_classes, BLOCK):
        column = start + lane
        z = load_logits(logits + column, column < readable, scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
        gradient = level
        if HAS_ENTROPY:
            power, distance = _term(z, bulk_peak)
            gradient += slope * (distance + shift)
        else:
            power = tl.exp(z - bulk_peak)
        store(out + column, _chained(power * gradient, z, scale, softcap, HAS_SOFTCAP), column < num_classes)

    if HAS_LISTED:
        tl.debug_barrier()  # the classes of the slots were just written, by other threads than write them now
        for start in range(0, num_entries, BLOCK_S):
            index, _weight, filled = load_entries(
                indices, selected, start, num_entries, num_classes, -1, ACCUMULATOR, BLOCK_S, False
            )
            z = own
            if HAS_MANY_ENTRIES:
                z = tl.load(selected + start + tl.arange(0, BLOCK_S), mask=filled, other=0.0)
            distance = z - center
            p = tl.exp(distance.to(ACCUMULATOR)) / total
            gradient = coefficient
            if HAS_ENTROPY:
                gradient -= of_entropy * tl.where(p > 0, distance - log_total + entropy, 0.0)
            gradient *= p
            if HAS_LOG_PROB:
                gradient += shared_weight(
                    index, indices, grad_log_prob, num_entries, num_classes, -1, ACCUMULATOR, BLOCK_S,
                    HAS_MANY_ENTRIES, True,
                )  # fmt: skip
            store(out + index, _chained(gradient, z, scale, softcap, HAS_SOFTCAP), filled)
