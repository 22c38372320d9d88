"""Device functions of the row kernels in Triton: reading a row and its target, and pass 1.

`statistics` is a lane-wise online softmax. Every lane keeps its own maximum and normaliser, and the lanes are combined
once at the end of the row. The logsumexp stays in two parts, ``peak + log(norm)``: one rounded number would lose the
logarithm where all logits of a row share a large offset.

`readable` is the number of classes of the row that may be read: all, or none in a row without mass, whose logits may
be NaN. A mixture of dense rows (`HAS_DENSE`) and the mass that lies evenly on all classes are one thing to the kernels,
the part of the target that every class has a share of (`HAS_SHARES`): `mixture`. Without dense rows that share is a
scalar; a prior, which spreads mass unevenly, goes with them (`HAS_PRIOR`, and `HAS_DENSE` too). Without weights
(`HAS_WEIGHTS`) there is one entry a row, a label, which weighs 1; `ignored` marks an empty one.
"""
# mypy: ignore-errors

import triton
import triton.language as tl

# The running maximum starts at the lowest finite value, so that z - top never is inf - inf.
_LOWEST: tl.constexpr = tl.constexpr(-3.4028234663852886e38)
_LOWEST_DOUBLE: tl.constexpr = tl.constexpr(-1.7976931348623157e308)


@triton.jit
def scalar(high, low, ACCUMULATOR: tl.constexpr):
    """Return ``high + low`` in the accumulator dtype."""
    return tl.full((), 0.0, ACCUMULATOR) + high + low


@triton.jit
def _capped(z, softcap):
    """Return ``softcap tanh(z / softcap)``; libdevice's tanh does not exist in the interpreter."""
    x = z / softcap
    # Near 0, tanh x = x - x^3 (45045 + 2772 x^2 + 27 x^4) / (135135 + 62370 x^2 + 3150 x^4 + 28 x^6), its continued
    # fraction cut off: what it takes from z is small, and so is what a GPU's approximate division adds to the error.
    square = x * x
    numerator = square * (45045.0 + square * (2772.0 + square * 27.0))
    near = z - z * (numerator / (135135.0 + square * (62370.0 + square * (3150.0 + square * 28.0))))
    # Elsewhere 1 - 2 / (e^2x + 1), which cancels near 0.
    size = softcap * (1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0))
    far = tl.where(x < 0, -size, size)
    return tl.where(tl.abs(x) < 0.625, near, far)


@triton.jit
def lowest(ACCUMULATOR: tl.constexpr):
    """Return what a running maximum starts at."""
    if ACCUMULATOR == tl.float64:  # noqa: SIM300
        return tl.full((), _LOWEST_DOUBLE, ACCUMULATOR)
    else:
        return tl.full((), _LOWEST, ACCUMULATOR)


@triton.jit
def transformed(logits, scale, softcap, HAS_SOFTCAP: tl.constexpr):
    """Return ``z = softcap * tanh(scale * logits / softcap)``, or without a softcap ``scale * logits``."""
    z = logits * scale
    if HAS_SOFTCAP:
        z = _capped(z, softcap)
    return z


@triton.jit
def load_logits(pointer, mask, scale, softcap, ACCUMULATOR: tl.constexpr, HAS_SOFTCAP: tl.constexpr):
    """Return ``z = softcap * tanh(scale * logits / softcap)``, 0 where masked."""
    return transformed(tl.load(pointer, mask=mask, other=0.0).to(ACCUMULATOR), scale, softcap, HAS_SOFTCAP)


@triton.jit
def load_entries(
    indices, weights, start, num_entries, num_classes, ignored,
    ACCUMULATOR: tl.constexpr, BLOCK_S: tl.constexpr, HAS_WEIGHTS: tl.constexpr,
):  # fmt: skip
    """Return index and weight of the slots from `start` on, and which of them are filled."""
    slot = start + tl.arange(0, BLOCK_S)
    index = tl.load(indices + slot, mask=slot < num_entries, other=-1)
    filled = (index >= 0) & (index < num_classes)
    if HAS_WEIGHTS:
        weight = tl.load(weights + slot, mask=filled, other=0.0)
    else:
        filled = filled & (index != ignored)
        weight = tl.where(filled, 1.0, 0.0).to(ACCUMULATOR)
    return index, weight, filled


@triton.jit
def target_mass(
    indices, weights, num_entries, num_classes, ignored,
    ACCUMULATOR: tl.constexpr, BLOCK_S: tl.constexpr, HAS_WEIGHTS: tl.constexpr,
):  # fmt: skip
    """Return ``sum_s w_s`` over the filled slots."""
    mass = tl.zeros((BLOCK_S,), ACCUMULATOR)
    for start in range(0, num_entries, BLOCK_S):
        _index, weight, _filled = load_entries(
            indices, weights, start, num_entries, num_classes, ignored, ACCUMULATOR, BLOCK_S, HAS_WEIGHTS
        )
        mass += weight
    return tl.sum(mass, 0)


@triton.jit
def spread(mass, uniform, row, smoothing, HAS_UNIFORM: tl.constexpr):
    """Return the row's whole mass, and how much of it lies evenly on all classes once labels are smoothed."""
    if HAS_UNIFORM:
        even = tl.load(uniform + row)
        mass += even
        even = (1.0 - smoothing) * even + smoothing * mass
    else:
        even = smoothing * mass
    return mass, even


@triton.jit
def mixture(
    dense_values,  # (U, V)
    dense_rows,  # (J,)
    dense_weights,  # (J,)
    prior,  # (V,), read where HAS_PRIOR
    num_values,
    num_mixed,
    num_classes,
    column,  # (WIDTH,)
    inside,  # (WIDTH,)
    kept,
    even,
    ACCUMULATOR: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_PRIOR: tl.constexpr,
):
    """Return ``kept sum_j weights[j] values[rows[j], column] + even``, ``(WIDTH,)``; `even` times the prior, if any."""
    total = tl.zeros((WIDTH,), ACCUMULATOR)
    for slot in range(0, num_mixed):
        row = tl.load(dense_rows + slot)
        weight = tl.load(dense_weights + slot, mask=(row >= 0) & (row < num_values), other=0.0)
        weight = tl.broadcast_to(weight, (WIDTH,))
        values = dense_values + row.to(tl.int64) * num_classes
        total += weight * tl.load(values + column, mask=inside & (weight != 0), other=0.0)
    if HAS_PRIOR:
        even = even * tl.load(prior + column, mask=inside, other=0.0)
    return kept * total + even


@triton.jit
def statistics(
    logits,  # (V,)
    dense_values,  # (U, V)
    dense_rows,  # (J,)
    dense_weights,  # (J,)
    prior,  # (V,), read where HAS_PRIOR
    num_values,
    num_mixed,
    num_classes,
    readable,
    kept,
    even,
    scale,
    softcap,
    ACCUMULATOR: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SHARES: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_DENSE: tl.constexpr,
    HAS_PRIOR: tl.constexpr,
):
    """Return maximum, ``norm = sum_v e^(z_v - max)``, and what is asked for of the row: entropy, gap, reach.

    With q what every class has a share of, ``gap = sum_v q_v (max - z_v)`` and ``reach = sum_v q_v``.
    """
    lane = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), 0.0, ACCUMULATOR) + lowest(ACCUMULATOR)
    norm = tl.zeros((BLOCK,), ACCUMULATOR)  # sum of e^(z - top)
    moment = tl.zeros((BLOCK,), ACCUMULATOR)  # sum of e^(z - top) (z - top)
    gap = tl.zeros((BLOCK,), ACCUMULATOR)  # sum of q (top - z)
    reach = tl.zeros((BLOCK,), ACCUMULATOR)  # sum of q
    for start in range(0, readable, BLOCK):
        column = start + lane
        inside = column < readable
        z = load_logits(logits + column, inside, scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
        z = tl.where(inside, z, -float("inf"))
        step = z - top
        shrink = tl.exp(-tl.abs(step))  # one exponential serves both cases: the maximum rises, or it stays
        rises = step > 0
        if HAS_ENTROPY:
            step = tl.where(shrink > 0, step, 0.0)  # 0 * inf
            moment = tl.where(rises, shrink * (moment - step * norm), moment + shrink * step)
        norm = tl.where(rises, shrink * norm + 1.0, norm + shrink)
        if HAS_SHARES:
            gap += tl.where(rises & (reach != 0), reach * (z - top), 0.0)
            top = tl.maximum(top, z)
            q = even
            if HAS_DENSE:
                q = mixture(
                    dense_values, dense_rows, dense_weights, prior, num_values, num_mixed, num_classes, column, inside,
                    kept, even, ACCUMULATOR, BLOCK, HAS_PRIOR,
                )  # fmt: skip
            q = tl.where(inside, q, 0.0)
            gap += tl.where(q != 0, q * (top - z), 0.0)
            reach += q
        else:
            top = tl.maximum(top, z)
    peak = tl.max(top, 0)
    shrink = tl.exp(top - peak)
    norm_row = tl.sum(shrink * norm, 0)
    entropy = norm_row
    if HAS_ENTROPY:
        step = tl.where(norm > 0, top - peak, 0.0)
        entropy = tl.log(norm_row) - tl.sum(shrink * (moment + step * norm), 0) / norm_row
    if HAS_SHARES:
        gap += tl.where(reach != 0, reach * (peak - top), 0.0)
    return peak, norm_row, entropy, tl.sum(gap, 0), tl.sum(reach, 0)


@triton.jit
def store_statistics(statistics_out, row, peak, norm, entropy):
    """Store what the backward wants of a row, three numbers."""
    tl.store(statistics_out + 3 * row, peak)
    tl.store(statistics_out + 3 * row + 1, norm)
    tl.store(statistics_out + 3 * row + 2, entropy)


@triton.jit
def row_loss(
    logits,  # (V,)
    indices,  # (S,)
    weights,  # (S,)
    num_entries,
    num_classes,
    peak,
    log_norm,
    entropy,
    ignored,
    readable,
    smoothing,
    gamma,
    z_loss,
    scale,
    softcap,
    ACCUMULATOR: tl.constexpr,
    BLOCK_S: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
):
    """Return the loss of the row but for what every class has a share of."""
    terms = tl.zeros((BLOCK_S,), ACCUMULATOR)
    for start in range(0, num_entries, BLOCK_S):
        index, weight, filled = load_entries(
            indices, weights, start, num_entries, num_classes, ignored, ACCUMULATOR, BLOCK_S, HAS_WEIGHTS
        )
        z = load_logits(logits + index, filled & (index < readable), scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
        # An entry without weight has no influence, not even where its logit is -inf.
        terms += tl.where(weight != 0, weight * (peak - z + log_norm), 0.0)
    lse = peak + log_norm
    loss = (1.0 - smoothing) * tl.sum(terms, 0) + z_loss * lse * lse
    if HAS_ENTROPY:
        loss -= gamma * entropy
    return tl.where(readable > 0, loss, 0.0)
