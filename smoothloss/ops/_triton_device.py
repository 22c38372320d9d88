"""Device functions of the row kernels in Triton: what one program does to one row.

* `statistics`, pass 1: a lane-wise online softmax. Every lane keeps its own maximum and normaliser, and the lanes are
  combined once at the end of the row. The logsumexp stays in two parts, ``peak + log(norm)``, and is stored in float64:
  in float32 it has the rounding error of a number of the size of the logits, and that would be a relative error of
  every probability.
* `backward_row`, pass 2 and what follows: the gradient of every class without the sparse entries; then, after a
  barrier, the classes that an entry names get their value again, entries included. All repeats of an index compute the
  same number, so it does not matter which of them is stored last: no atomics, and bitwise repeatable.

In place, pass 2 destroys the logits. Whoever needs one later must have loaded it before the barrier that precedes
pass 2. Where the entries are too many for that (`HAS_MANY_ENTRIES`), they read the copy of theirs in `selected`, which
the launcher made.

`readable` is the number of classes of the row that may be read: all, or none in a row without mass, whose logits may
be NaN.
"""
# mypy: ignore-errors

import triton
import triton.language as tl

# The running maximum starts at a finite value, so that z - top never is inf - inf; logits are taken to be above it.
_LOWEST: tl.constexpr = tl.constexpr(-3.0e38)


@triton.jit
def scalar(high, low, ACCUMULATOR: tl.constexpr):
    """Return ``high + low`` in the accumulator dtype."""
    return tl.full((), 0.0, ACCUMULATOR) + high + low


@triton.jit
def _tanh(x):
    # 1 - 2 / (e^2x + 1) cancels near 0, where a continued fraction (x / (1 + x^2 / (3 + x^2 / (5 + ...)))) takes over;
    # libdevice's tanh does not exist in the interpreter.
    square = x * x
    near = x * (135135.0 + square * (17325.0 + square * (378.0 + square)))
    near = near / (135135.0 + square * (62370.0 + square * (3150.0 + square * 28.0)))
    size = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)
    far = tl.where(x < 0, -size, size)
    return tl.where(tl.abs(x) < 0.25, near, far)


@triton.jit
def load_logits(pointer, mask, scale, softcap, ACCUMULATOR: tl.constexpr, HAS_SOFTCAP: tl.constexpr):
    """Return ``z = softcap * tanh(scale * logits / softcap)``, 0 where masked."""
    z = tl.load(pointer, mask=mask, other=0.0).to(ACCUMULATOR) * scale
    if HAS_SOFTCAP:
        z = softcap * _tanh(z / softcap)
    return z


@triton.jit
def _store(pointer, value, mask):
    if pointer.dtype.element_ty != tl.float64:
        value = value.to(tl.float32)  # not every version converts float64 to bfloat16 directly
    tl.store(pointer, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _load_entries(indices, weights, start, num_entries, num_classes, BLOCK_S: tl.constexpr):
    slot = start + tl.arange(0, BLOCK_S)
    index = tl.load(indices + slot, mask=slot < num_entries, other=-1)
    filled = (index >= 0) & (index < num_classes)
    weight = tl.load(weights + slot, mask=filled, other=0.0)
    return index, weight, filled


@triton.jit
def target_mass(indices, weights, num_entries, num_classes, ACCUMULATOR: tl.constexpr, BLOCK_S: tl.constexpr):
    """Return ``sum_s w_s`` over the filled slots."""
    mass = tl.zeros((BLOCK_S,), ACCUMULATOR)
    for start in range(0, num_entries, BLOCK_S):
        _index, weight, _filled = _load_entries(indices, weights, start, num_entries, num_classes, BLOCK_S)
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
def statistics(
    logits,  # (V,)
    readable,
    scale,
    softcap,
    ACCUMULATOR: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SPREAD: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
):
    """Return maximum, ``norm = sum_v e^(z_v - max)``, and sum and entropy of the row where asked for."""
    lane = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), _LOWEST, ACCUMULATOR)
    norm = tl.zeros((BLOCK,), ACCUMULATOR)  # sum of e^(z - top)
    moment = tl.zeros((BLOCK,), ACCUMULATOR)  # sum of e^(z - top) (z - top)
    total = tl.zeros((BLOCK,), ACCUMULATOR)
    for start in range(0, readable, BLOCK):
        column = start + lane
        inside = column < readable
        z = load_logits(logits + column, inside, scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
        if HAS_SPREAD:
            total += tl.where(inside, z, 0.0)
        z = tl.where(inside, z, -float("inf"))
        step = z - top
        shrink = tl.exp(-tl.abs(step))  # one exponential serves both cases: the maximum rises, or it stays
        rises = step > 0
        if HAS_ENTROPY:
            step = tl.where(shrink > 0, step, 0.0)  # 0 * inf
            moment = tl.where(rises, shrink * (moment - step * norm), moment + shrink * step)
        norm = tl.where(rises, shrink * norm + 1.0, norm + shrink)
        top = tl.maximum(top, z)
    peak = tl.max(top, 0)
    shrink = tl.exp(top - peak)
    norm_row = tl.sum(shrink * norm, 0)
    entropy = norm_row
    if HAS_ENTROPY:
        step = tl.where(norm > 0, top - peak, 0.0)
        entropy = tl.log(norm_row) - tl.sum(shrink * (moment + step * norm), 0) / norm_row
    return peak, norm_row, tl.sum(total, 0), entropy


@triton.jit
def wide_lse(peak, norm):
    """Return ``peak + log(norm)`` in float64."""
    return peak.to(tl.float64) + tl.log(norm.to(tl.float64))


@triton.jit
def row_loss(
    logits,  # (V,)
    indices,  # (S,)
    weights,  # (S,)
    num_entries,
    num_classes,
    peak,
    log_norm,
    mean,
    entropy,
    even,
    readable,
    smoothing,
    gamma,
    z_loss,
    scale,
    softcap,
    ACCUMULATOR: tl.constexpr,
    BLOCK_S: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SPREAD: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
):
    """Return the loss of the row; `even` is the mass that lies evenly on all classes."""
    terms = tl.zeros((BLOCK_S,), ACCUMULATOR)
    for start in range(0, num_entries, BLOCK_S):
        index, weight, filled = _load_entries(indices, weights, start, num_entries, num_classes, BLOCK_S)
        z = load_logits(logits + index, filled & (index < readable), scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
        # An entry without weight has no influence, not even where its logit is -inf.
        terms += tl.where(weight != 0, weight * (peak - z + log_norm), 0.0)
    lse = peak + log_norm
    loss = (1.0 - smoothing) * tl.sum(terms, 0) + z_loss * lse * lse
    if HAS_SPREAD:
        loss += tl.where(even != 0, even * (peak - mean + log_norm), 0.0)
    if HAS_ENTROPY:
        loss -= gamma * entropy
    return tl.where(readable > 0, loss, 0.0)


@triton.jit
def _gradient(
    z,
    removed,
    peak,
    inverse,
    entropy,
    coefficient,
    outer,
    gamma,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
):
    """Return ``outer dz/dlogit (coefficient p + gamma p (log p + H) - removed)``, ``p = e^(z - peak) inverse``."""
    p = tl.exp(z - peak) * inverse
    gradient = coefficient * p
    if HAS_ENTROPY:
        log_p = z - peak + tl.log(inverse)
        gradient += gamma * tl.where(p > 0, p * (log_p + entropy), 0.0)
    gradient -= removed
    if HAS_SOFTCAP:
        ratio = z / softcap
        gradient *= 1.0 - ratio * ratio
    return outer * gradient


@triton.jit
def _write_gradient(
    logits,  # (V,)
    out,  # (V,)
    num_classes,
    readable,
    even,
    peak,
    inverse,
    entropy,
    coefficient,
    outer,
    gamma,
    scale,
    softcap,
    ACCUMULATOR: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
):
    lane = tl.arange(0, BLOCK)
    for start in range(0, num_classes, BLOCK):
        column = start + lane
        inside = column < num_classes
        z = load_logits(logits + column, column < readable, scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
        gradient = _gradient(
            z, even, peak, inverse, entropy, coefficient, outer, gamma, softcap, HAS_SOFTCAP, HAS_ENTROPY
        )
        _store(out + column, gradient, inside)


@triton.jit
def _overwrite_entries(
    z,  # (BLOCK_S,)
    selected,  # (S,)
    out,  # (V,)
    indices,  # (S,)
    weights,  # (S,)
    num_entries,
    num_classes,
    readable,
    kept,
    even,
    peak,
    inverse,
    entropy,
    coefficient,
    outer,
    gamma,
    scale,
    softcap,
    ACCUMULATOR: tl.constexpr,
    BLOCK_S: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_MANY_ENTRIES: tl.constexpr,
):
    # The tile of comparisons stays small enough not to spill.
    BLOCK_OTHER: tl.constexpr = 32 if BLOCK_S > 32 else BLOCK_S
    for start in range(0, num_entries, BLOCK_S):
        index, _weight, filled = _load_entries(indices, weights, start, num_entries, num_classes, BLOCK_S)
        if HAS_MANY_ENTRIES:
            slot = start + tl.arange(0, BLOCK_S)
            z = load_logits(selected + slot, filled & (index < readable), scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
        shared = tl.zeros((BLOCK_S,), ACCUMULATOR)  # the weight of all entries of this index
        for other in range(0, num_entries, BLOCK_OTHER):
            index_other, weight_other, _filled = _load_entries(
                indices, weights, other, num_entries, num_classes, BLOCK_OTHER
            )
            same = index[:, None] == index_other[None, :]
            shared += tl.sum(tl.where(same, weight_other[None, :], 0.0), 1)
        gradient = _gradient(
            z, even + kept * shared, peak, inverse, entropy, coefficient, outer, gamma, softcap,
            HAS_SOFTCAP, HAS_ENTROPY,
        )  # fmt: skip
        _store(out + index, gradient, filled)


@triton.jit
def backward_row(
    logits,  # (V,)
    selected,  # (S,)
    out,  # (V,)
    indices,  # (S,)
    weights,  # (S,)
    num_entries,
    num_classes,
    readable,
    kept,
    even,
    peak,
    inverse,
    entropy,
    coefficient,
    outer,
    gamma,
    scale,
    softcap,
    ACCUMULATOR: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_MANY_ENTRIES: tl.constexpr,
):
    """Write the gradient of the row to `out`, which may be `logits`; the weights are scaled by `kept`."""
    even = even / num_classes.to(ACCUMULATOR)
    index, _weight, filled = _load_entries(indices, weights, 0, num_entries, num_classes, BLOCK_S)
    z = load_logits(logits + index, filled & (index < readable), scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
    tl.debug_barrier()  # in place, no thread may write before all have loaded what they will need
    _write_gradient(
        logits, out, num_classes, readable, even, peak, inverse, entropy, coefficient, outer, gamma, scale, softcap,
        ACCUMULATOR, BLOCK, HAS_SOFTCAP, HAS_ENTROPY,
    )  # fmt: skip
    tl.debug_barrier()  # the entries' classes were just written, by other threads than write them now
    _overwrite_entries(
        z, selected, out, indices, weights, num_entries, num_classes, readable, kept,
        even, peak, inverse, entropy, coefficient, outer, gamma, scale, softcap,
        ACCUMULATOR, BLOCK_S, HAS_SOFTCAP, HAS_ENTROPY, HAS_MANY_ENTRIES,
    )  # fmt: skip
