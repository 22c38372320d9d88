"""The token statistics in Triton: one pass over a row forward, one more backward; a program a row.

Classes that no slot names are the rest. The forward pays nothing for it class by class. Each lane of a block adds up
its own classes, one of every `BLOCK`, as in any online softmax; of S slots at most S lanes hold a listed class. These
lanes alone are summed again without it, over a few classes each, which the caches still hold. All others give the rest
what they give the whole. So the rest is a sum of its own terms, relative to its own maximum: nothing is subtracted.

`slot` counts the indices of a row; a class lies in lane ``class % BLOCK`` of block ``class // BLOCK`` of the row.
"""
# mypy: ignore-errors

import triton
import triton.language as tl

from smoothloss.backends.triton.device import load_entries, load_logits, lowest, scalar, transformed
from smoothloss.backends.triton.gradient import keep_selected, shared_weight, store

# Blocks of a lane that are summed again at a time: bits of a word say which of its classes are listed.
_STEPS: tl.constexpr = tl.constexpr(32)
_LOG_2: tl.constexpr = tl.constexpr(0.6931471805599453)
_RUN_TIME = ["units", "logits_stride", "out_stride", "num_entries", "scale", "softcap", "scale_low", "softcap_low"]


@triton.jit
def _either(one, other):
    return one | other


@triton.jit
def _lanes(indices, start, num_entries, num_classes, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Return slots from `start` on, and lane and block of the class of each; lane -1 for an empty slot."""
    slot = start + tl.arange(0, TILE)
    index = tl.load(indices + slot, mask=slot < num_entries, other=-1)
    filled = (index >= 0) & (index < num_classes)
    return slot, tl.where(filled, index & (BLOCK - 1), -1), tl.where(filled, index // BLOCK, 0)


@triton.jit
def _marked_lanes(indices, num_entries, num_classes, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Return which lanes hold a listed class, ``(BLOCK,)``."""
    word = tl.arange(0, BLOCK // 32)
    words = tl.zeros((BLOCK // 32,), tl.int32)
    for start in range(0, num_entries, TILE):
        _slot, lane, _block = _lanes(indices, start, num_entries, num_classes, BLOCK, TILE)
        bits = tl.where(word[:, None] == (lane >> 5)[None, :], (1 << (lane & 31))[None, :], 0)
        words |= tl.reduce(bits, 1, _either)
    bit = tl.arange(0, 32)
    return tl.reshape((words[:, None] >> bit[None, :]) & 1, (BLOCK,)) != 0


@triton.jit
def _listed_blocks(slot, lane, first_block, indices, num_entries, num_classes, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """Return where from `first_block` on a slot's lane is listed, a bit a block; whether an earlier slot names it."""
    listed = tl.zeros((TILE,), tl.int32)
    repeated = tl.zeros((TILE,), tl.int32)
    for start in range(0, num_entries, TILE):
        other_slot, other_lane, other_block = _lanes(indices, start, num_entries, num_classes, BLOCK, TILE)
        same = lane[:, None] == other_lane[None, :]
        shift = other_block - first_block
        bit = tl.where((shift >= 0) & (shift < _STEPS), 1 << (shift & 31), 0)
        listed |= tl.reduce(tl.where(same, bit[None, :], 0), 1, _either)
        earlier = same & (other_slot[None, :] < slot[:, None])
        repeated = tl.maximum(repeated, tl.max(earlier.to(tl.int32), 1))
    return listed, repeated


@triton.jit
def _rest(
    logits,  # (V,)
    indices,  # (S,)
    num_entries,
    num_classes,
    top,  # (BLOCK,), of the lanes
    norm,  # (BLOCK,)
    scale,
    softcap,
    ACCUMULATOR: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """Return maximum and ``sum_v e^(z_v - max)`` of the classes that no slot names; a sum of 0 where there is none."""
    step = tl.arange(0, _STEPS)
    again_top = tl.full((TILE, _STEPS), lowest(ACCUMULATOR), ACCUMULATOR)
    again_norm = tl.zeros((TILE, _STEPS), ACCUMULATOR)
    for start in range(0, num_entries, TILE):
        slot, lane, _block = _lanes(indices, start, num_entries, num_classes, BLOCK, TILE)
        for first_block in range(0, tl.cdiv(num_classes, BLOCK), _STEPS):
            listed, repeated = _listed_blocks(slot, lane, first_block, indices, num_entries, num_classes, BLOCK, TILE)
            column = (first_block + step)[None, :] * BLOCK + lane[:, None]
            wanted = ((lane >= 0) & (repeated == 0))[:, None] & (column < num_classes)
            wanted = wanted & (((listed[:, None] >> step[None, :]) & 1) == 0)
            z = load_logits(logits + column, wanted, scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
            z = tl.where(wanted, z, -float("inf"))
            shrink = tl.exp(-tl.abs(z - again_top))
            again_norm = tl.where(z > again_top, shrink * again_norm + 1.0, again_norm + shrink)
            again_top = tl.maximum(again_top, z)
    marked = _marked_lanes(indices, num_entries, num_classes, BLOCK, TILE)
    top = tl.where(marked, lowest(ACCUMULATOR), top)
    peak = tl.maximum(tl.max(top, 0), tl.max(tl.max(again_top, 1), 0))
    total = tl.sum(tl.where(marked, 0.0, tl.exp(top - peak) * norm), 0)
    return peak, total + tl.sum(tl.sum(tl.exp(again_top - peak) * again_norm, 1), 0)


@triton.jit
def _exact_log(norm, ACCUMULATOR: tl.constexpr):
    """Return ``log(norm)`` of a sum that is 0, or 1 and more, in float64.

    Of a float32 only the mantissa needs a logarithm, whose error is below 1e-7; that of log(norm) itself is ten times
    as much, and the same for every result of the row.
    """
    if ACCUMULATOR == tl.float64:  # noqa: SIM300
        return tl.log(norm)
    else:
        bits = norm.to(tl.int32, bitcast=True)
        mantissa = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
        exact = ((bits >> 23) - 127).to(tl.float64) * _LOG_2 + tl.log(mantissa).to(tl.float64)
        return tl.where(norm >= 1.0, exact, tl.log(norm).to(tl.float64))


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
    saved_out,  # (N, 5): maximum, sum, entropy, the rest's maximum and sum
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
):
    TILE: tl.constexpr = 32 if BLOCK_S > 32 else BLOCK_S
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
    peak = tl.max(top, 0)
    shrink, step = _term(top, peak)
    total = tl.sum(shrink * norm, 0)
    moment = tl.sum(shrink * (moment + step * norm), 0) / total
    center, log_total = peak.to(tl.float64), _exact_log(total, ACCUMULATOR)
    entropy = (log_total - moment.to(tl.float64)).to(ACCUMULATOR)
    rest_peak, rest_total = _rest(
        logits, indices, num_entries, num_classes, top, norm, scale, softcap, ACCUMULATOR, BLOCK, TILE, HAS_SOFTCAP
    )
    log_rest = (rest_peak.to(tl.float64) - center) + (_exact_log(rest_total, ACCUMULATOR) - log_total)
    log_rest = tl.where(rest_total == 0, -float("inf"), log_rest)
    tl.store(log_rest_out + row, log_rest.to(ACCUMULATOR))
    tl.store(entropy_out + row, entropy)
    tl.store(logsumexp_out + row, (center + log_total).to(ACCUMULATOR))
    saved_out += row * 5
    tl.store(saved_out, peak)
    tl.store(saved_out + 1, total)
    tl.store(saved_out + 2, entropy)
    tl.store(saved_out + 3, rest_peak)
    tl.store(saved_out + 4, rest_total)
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
    coefficient = tl.full((), 0.0, ACCUMULATOR)
    of_rest, of_entropy = coefficient, coefficient
    live = coefficient != 0
    if HAS_LOG_PROB:
        total = tl.zeros((BLOCK_S,), ACCUMULATOR)
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
        of_rest = tl.load(grad_log_rest)
        live |= of_rest != 0
    if HAS_ENTROPY:
        of_entropy = tl.load(grad_entropy)
        live |= of_entropy != 0
    if HAS_LOGSUMEXP:
        of_logsumexp = tl.load(grad_logsumexp)
        coefficient += of_logsumexp
        live |= of_logsumexp != 0
    return coefficient, of_rest, of_entropy, live


@triton.jit
def _times_slope(
    gradient, p, z, log_p, entropy, of_entropy, scale, softcap, HAS_ENTROPY: tl.constexpr, HAS_SOFTCAP: tl.constexpr
):
    """Return ``scale dz/d(scale logit) (gradient - of_entropy p (log p + H))``."""
    if HAS_ENTROPY:
        gradient -= of_entropy * tl.where(p > 0, p * (log_p + entropy), 0.0)
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
    saved,  # (N, 5)
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
    peak = tl.where(live, tl.load(saved), 0.0)
    norm = tl.where(live, tl.load(saved + 1), 1.0)
    entropy = tl.where(live, tl.load(saved + 2), 0.0)
    inverse = 1.0 / norm
    log_norm = tl.log(norm)
    # Of the rest's classes one exponential gives both p and p / rest, the larger one, which does not underflow.
    other_peak, other_norm, share = peak, norm, tl.full((), 1.0, ACCUMULATOR)
    if HAS_REST:
        rest_norm = tl.load(saved + 4)
        some = live & (rest_norm != 0)
        of_rest = tl.where(some, of_rest, 0.0)
        coefficient -= of_rest
        other_peak = tl.where(some, tl.load(saved + 3), peak)
        other_norm = tl.where(some, rest_norm, norm)
        share = tl.where(some, tl.exp(other_peak - peak) * (rest_norm / norm), 1.0)
    other_inverse = 1.0 / other_norm
    if HAS_LISTED:
        if HAS_MANY_ENTRIES:
            own = peak
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
        of_others = tl.exp(z - other_peak) * other_inverse
        p = of_others * share
        gradient = coefficient * p + of_rest * of_others
        gradient = _times_slope(
            gradient, p, z, z - peak - log_norm, entropy, of_entropy, scale, softcap, HAS_ENTROPY, HAS_SOFTCAP
        )
        store(out + column, gradient, column < num_classes)

    if HAS_LISTED:
        tl.debug_barrier()  # the classes of the slots were just written, by other threads than write them now
        for start in range(0, num_entries, BLOCK_S):
            index, _weight, filled = load_entries(
                indices, selected, start, num_entries, num_classes, -1, ACCUMULATOR, BLOCK_S, False
            )
            z = own
            if HAS_MANY_ENTRIES:
                z = tl.load(selected + start + tl.arange(0, BLOCK_S), mask=filled, other=0.0)
            p = tl.exp(z - peak) * inverse
            gradient = coefficient * p
            if HAS_LOG_PROB:
                gradient += shared_weight(
                    index, indices, grad_log_prob, num_entries, num_classes, -1, ACCUMULATOR, BLOCK_S,
                    HAS_MANY_ENTRIES, True,
                )  # fmt: skip
            gradient = _times_slope(
                gradient, p, z, z - peak - log_norm, entropy, of_entropy, scale, softcap, HAS_ENTROPY, HAS_SOFTCAP
            )
            store(out + index, gradient, filled)
