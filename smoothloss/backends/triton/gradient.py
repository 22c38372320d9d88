"""Device functions of the row kernels in Triton: pass 2, the gradient of a row.

`backward_row` writes the gradient of every class without the sparse entries; then, after a barrier, the classes that an
entry names get their value again, entries included. All repeats of an index compute the same number, so it does not
matter which of them is stored last: no atomics, and bitwise repeatable.

In place, pass 2 destroys the logits. Whoever needs one later must have loaded it before the barrier that precedes
pass 2. Where the entries are too many for that (`HAS_MANY_ENTRIES`), their logits wait in `selected`, a scratch.
"""
# mypy: ignore-errors

import triton
import triton.language as tl

from smoothloss.backends.triton.device import load_entries, load_logits, mixture


@triton.jit
def store(pointer, value, mask):
    """Store values in the dtype of the pointer."""
    if pointer.dtype.element_ty != tl.float64:
        value = value.to(tl.float32)  # not every version converts float64 to bfloat16 directly
    tl.store(pointer, value.to(pointer.dtype.element_ty), mask=mask)


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
    HAS_DENSE: tl.constexpr,
    HAS_PRIOR: tl.constexpr,
):
    lane = tl.arange(0, BLOCK)
    for start in range(0, num_classes, BLOCK):
        column = start + lane
        inside = column < num_classes
        z = load_logits(logits + column, column < readable, scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
        removed = even
        if HAS_DENSE:
            removed = mixture(
                dense_values, dense_rows, dense_weights, prior, num_values, num_mixed, num_classes, column, inside,
                kept, even, ACCUMULATOR, BLOCK, HAS_PRIOR,
            )  # fmt: skip
        gradient = _gradient(
            z, removed, peak, inverse, entropy, coefficient, outer, gamma, softcap, HAS_SOFTCAP, HAS_ENTROPY
        )
        store(out + column, gradient, inside)


@triton.jit
def keep_selected(
    logits,  # (V,)
    selected,  # (S,)
    indices,  # (S,)
    weights,  # (S,)
    num_entries,
    num_classes,
    ignored,
    readable,
    scale,
    softcap,
    ACCUMULATOR: tl.constexpr,
    BLOCK_S: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
):
    """Store the logits of the slots to `selected`."""
    for start in range(0, num_entries, BLOCK_S):
        index, _weight, filled = load_entries(
            indices, weights, start, num_entries, num_classes, ignored, ACCUMULATOR, BLOCK_S, HAS_WEIGHTS
        )
        z = load_logits(logits + index, filled & (index < readable), scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
        slot = start + tl.arange(0, BLOCK_S)
        tl.store(selected + slot, z, mask=slot < num_entries)


@triton.jit
def shared_weight(
    index,  # (BLOCK_S,)
    indices,  # (S,)
    weights,  # (S,)
    num_entries,
    num_classes,
    ignored,
    ACCUMULATOR: tl.constexpr,
    BLOCK_S: tl.constexpr,
    HAS_MANY_ENTRIES: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
):
    """Return ``sum_s w_s [i_s = index]``, ``(BLOCK_S,)``."""
    # The tile of comparisons stays small enough not to spill.
    BLOCK_OTHER: tl.constexpr = 32 if BLOCK_S > 32 else BLOCK_S
    shared = tl.zeros((BLOCK_S,), ACCUMULATOR)
    for start in range(0, num_entries, BLOCK_OTHER):
        other, weight, _filled = load_entries(
            indices, weights, start, num_entries, num_classes, ignored, ACCUMULATOR, BLOCK_OTHER, HAS_WEIGHTS
        )
        occupied = True
        if HAS_MANY_ENTRIES:  # of the slots of a merged target most are empty
            occupied = tl.max((weight != 0).to(tl.int32), 0) > 0
        if occupied:
            same = index[:, None] == other[None, :]
            shared += tl.sum(tl.where(same, weight[None, :], 0.0), 1)
    return shared


@triton.jit
def _overwrite_entries(
    z,  # (BLOCK_S,), unless HAS_MANY_ENTRIES
    selected,  # (S,), read where HAS_MANY_ENTRIES
    out,  # (V,)
    indices,  # (S,)
    weights,  # (S,)
    dense_values,  # (U, V)
    dense_rows,  # (J,)
    dense_weights,  # (J,)
    prior,  # (V,), read where HAS_PRIOR
    num_values,
    num_mixed,
    num_entries,
    num_classes,
    ignored,
    kept,
    even,
    peak,
    inverse,
    entropy,
    coefficient,
    outer,
    gamma,
    softcap,
    ACCUMULATOR: tl.constexpr,
    BLOCK_S: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_ENTROPY: tl.constexpr,
    HAS_DENSE: tl.constexpr,
    HAS_PRIOR: tl.constexpr,
    HAS_MANY_ENTRIES: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
):
    for start in range(0, num_entries, BLOCK_S):
        index, weight, filled = load_entries(
            indices, weights, start, num_entries, num_classes, ignored, ACCUMULATOR, BLOCK_S, HAS_WEIGHTS
        )
        own, occupied = z, True
        if HAS_MANY_ENTRIES:
            own = tl.load(selected + start + tl.arange(0, BLOCK_S), mask=filled, other=0.0)
            occupied = tl.max((weight != 0).to(tl.int32), 0) > 0
        if occupied:
            shared = shared_weight(
                index,
                indices,
                weights,
                num_entries,
                num_classes,
                ignored,
                ACCUMULATOR,
                BLOCK_S,
                HAS_MANY_ENTRIES,
                HAS_WEIGHTS,
            )
            removed = even
            if HAS_DENSE:
                removed = mixture(
                    dense_values, dense_rows, dense_weights, prior, num_values, num_mixed, num_classes, index, filled,
                    kept, even, ACCUMULATOR, BLOCK_S, HAS_PRIOR,
                )  # fmt: skip
            gradient = _gradient(
                own, removed + kept * shared, peak, inverse, entropy, coefficient, outer, gamma, softcap,
                HAS_SOFTCAP, HAS_ENTROPY,
            )  # fmt: skip
            store(out + index, gradient, filled)


@triton.jit
def backward_row(
    logits,  # (V,)
    selected,  # (S,), scratch where HAS_MANY_ENTRIES
    out,  # (V,)
    indices,  # (S,)
    weights,  # (S,)
    dense_values,  # (U, V)
    dense_rows,  # (J,)
    dense_weights,  # (J,)
    prior,  # (V,), read where HAS_PRIOR
    num_values,
    num_mixed,
    num_entries,
    num_classes,
    ignored,
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
    HAS_DENSE: tl.constexpr,
    HAS_PRIOR: tl.constexpr,
    HAS_MANY_ENTRIES: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
):
    """Write the gradient of the row to `out`, which may be `logits`; weights, not `even`, are scaled by `kept`.

    `even` is the part of the target that each class gets of the mass that lies evenly on all; with a prior, all of that
    mass.
    """
    if HAS_MANY_ENTRIES:
        z = peak
        keep_selected(
            logits, selected, indices, weights, num_entries, num_classes, ignored, readable, scale, softcap,
            ACCUMULATOR, BLOCK_S, HAS_SOFTCAP, HAS_WEIGHTS,
        )  # fmt: skip
    else:
        index, _weight, filled = load_entries(
            indices, weights, 0, num_entries, num_classes, ignored, ACCUMULATOR, BLOCK_S, HAS_WEIGHTS
        )
        z = load_logits(logits + index, filled & (index < readable), scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
    tl.debug_barrier()  # in place, no thread may write before all have loaded what they will need
    _write_gradient(
        logits, out, dense_values, dense_rows, dense_weights, prior, num_values, num_mixed, num_classes, readable,
        kept, even, peak, inverse, entropy, coefficient, outer, gamma, scale, softcap,
        ACCUMULATOR, BLOCK, HAS_SOFTCAP, HAS_ENTROPY, HAS_DENSE, HAS_PRIOR,
    )  # fmt: skip
    tl.debug_barrier()  # the entries' classes were just written, by other threads than write them now
    _overwrite_entries(
        z, selected, out, indices, weights, dense_values, dense_rows, dense_weights, prior, num_values, num_mixed,
        num_entries, num_classes, ignored, kept, even, peak, inverse, entropy, coefficient, outer, gamma, softcap,
        ACCUMULATOR, BLOCK_S, HAS_SOFTCAP, HAS_ENTROPY, HAS_DENSE, HAS_PRIOR, HAS_MANY_ENTRIES, HAS_WEIGHTS,
    )  # fmt: skip
