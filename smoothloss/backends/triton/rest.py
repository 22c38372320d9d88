"""Device functions of the token statistics in Triton: the classes that slots name, and the rest, summed apart.

Classes that no slot names are the rest. The forward pays nothing for it class by class. Each lane of a block adds up
its own classes, one of every `BLOCK`, as in any online softmax; of S slots at most S lanes hold a listed class. These
lanes alone are summed again, listed classes apart, over a few classes each, which the caches still hold. All others
give the rest what they give the whole. Of more slots than the kernels keep in registers, where the comparisons of each
with each would cost more than that, a bit a class is written down, and the whole row summed again.

`slot` counts the indices of a row; a class lies in lane ``class % BLOCK`` of block ``class // BLOCK`` of the row.
"""
# mypy: ignore-errors

import triton
import triton.language as tl

from smoothloss.backends.triton.device import load_logits, lowest

# Blocks of a lane that are summed again at a time: bits of a word say which of its classes are listed.
_STEPS: tl.constexpr = tl.constexpr(32)


@triton.jit
def either(one, other):
    """Return the bits of both."""
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
        words |= tl.reduce(bits, 1, either)
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
        listed |= tl.reduce(tl.where(same, bit[None, :], 0), 1, either)
        earlier = same & (other_slot[None, :] < slot[:, None])
        repeated = tl.maximum(repeated, tl.max(earlier.to(tl.int32), 1))
    return listed, repeated


@triton.jit
def _with(top, norm, z):
    """Return maximum and ``sum e^(z - max)`` with one more number in each place; -inf changes nothing."""
    shrink = tl.exp(-tl.abs(z - top))
    return tl.maximum(top, z), tl.where(z > top, shrink * norm + 1.0, norm + shrink)


@triton.jit
def listed_and_rest(
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
    """Return maximum and ``sum_v e^(z_v - max)`` of the listed classes, and of the rest; a sum of 0 of no class."""
    step = tl.arange(0, _STEPS)
    rest_top = tl.zeros((TILE, _STEPS), ACCUMULATOR) + lowest(ACCUMULATOR)
    rest_norm = tl.zeros((TILE, _STEPS), ACCUMULATOR)
    listed_top, listed_norm = rest_top, rest_norm
    for start in range(0, num_entries, TILE):
        slot, lane, _block = _lanes(indices, start, num_entries, num_classes, BLOCK, TILE)
        for first_block in range(0, tl.cdiv(num_classes, BLOCK), _STEPS):
            bits, repeated = _listed_blocks(slot, lane, first_block, indices, num_entries, num_classes, BLOCK, TILE)
            column = (first_block + step)[None, :] * BLOCK + lane[:, None]
            wanted = ((lane >= 0) & (repeated == 0))[:, None] & (column < num_classes)
            is_listed = ((bits[:, None] >> step[None, :]) & 1) != 0
            z = load_logits(logits + column, wanted, scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
            rest_top, rest_norm = _with(rest_top, rest_norm, tl.where(wanted & ~is_listed, z, -float("inf")))
            listed_top, listed_norm = _with(listed_top, listed_norm, tl.where(wanted & is_listed, z, -float("inf")))
    listed_peak = tl.max(tl.max(listed_top, 1), 0)
    listed = tl.sum(tl.sum(tl.exp(listed_top - listed_peak) * listed_norm, 1), 0)
    marked = _marked_lanes(indices, num_entries, num_classes, BLOCK, TILE)
    top = tl.where(marked, lowest(ACCUMULATOR), top)
    peak = tl.maximum(tl.max(top, 0), tl.max(tl.max(rest_top, 1), 0))
    rest = tl.sum(tl.where(marked, 0.0, tl.exp(top - peak) * norm), 0)
    return listed_peak, listed, peak, rest + tl.sum(tl.sum(tl.exp(rest_top - peak) * rest_norm, 1), 0)


@triton.jit
def _mark_listed(words, indices, num_entries, num_classes, BLOCK: tl.constexpr, BLOCK_S: tl.constexpr):
    """Write which classes are listed: a bit a block in the word of a lane, and as many words as there are 32 blocks."""
    lane = tl.arange(0, BLOCK)
    for first_block in range(0, tl.cdiv(num_classes, BLOCK), 32):
        tl.store(words + first_block // 32 * BLOCK + lane, tl.zeros((BLOCK,), tl.int32))
    tl.debug_barrier()
    for start in range(0, num_entries, BLOCK_S):
        _slot, place, block = _lanes(indices, start, num_entries, num_classes, BLOCK, BLOCK_S)
        # In whatever order: the bits are the same.
        tl.atomic_or(words + block // 32 * BLOCK + place, 1 << (block & 31), mask=place >= 0)
    tl.debug_barrier()


@triton.jit
def many_listed_and_rest(
    logits,  # (V,)
    words,  # scratch
    indices,  # (S,)
    num_entries,
    num_classes,
    scale,
    softcap,
    ACCUMULATOR: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """Return what `listed_and_rest` does in one more pass over the row, however many slots there are."""
    _mark_listed(words, indices, num_entries, num_classes, BLOCK, BLOCK_S)
    lane = tl.arange(0, BLOCK)
    rest_top = tl.zeros((BLOCK,), ACCUMULATOR) + lowest(ACCUMULATOR)
    rest_norm = tl.zeros((BLOCK,), ACCUMULATOR)
    listed_top, listed_norm = rest_top, rest_norm
    num_blocks = tl.cdiv(num_classes, BLOCK)
    for first_block in range(0, num_blocks, 32):
        word = tl.load(words + first_block // 32 * BLOCK + lane)
        for block in range(first_block, tl.minimum(first_block + 32, num_blocks)):
            column = block * BLOCK + lane
            inside = column < num_classes
            is_listed = ((word >> (block - first_block)) & 1) != 0
            z = load_logits(logits + column, inside, scale, softcap, ACCUMULATOR, HAS_SOFTCAP)
            rest_top, rest_norm = _with(rest_top, rest_norm, tl.where(inside & ~is_listed, z, -float("inf")))
            listed_top, listed_norm = _with(listed_top, listed_norm, tl.where(is_listed, z, -float("inf")))
    listed_peak, rest_peak = tl.max(listed_top, 0), tl.max(rest_top, 0)
    listed = tl.sum(tl.exp(listed_top - listed_peak) * listed_norm, 0)
    return listed_peak, listed, rest_peak, tl.sum(tl.exp(rest_top - rest_peak) * rest_norm, 0)
