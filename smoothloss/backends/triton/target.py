"""The kernel that writes a smoothed target in Triton: one program per position."""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def _merge(
    token,  # (BLOCK_S,)
    number,  # (BLOCK_S,), of the candidate that the token is
    candidates,  # (J,), `stride` apart
    weights,  # (J,), `weights_stride` apart, read where HAS_WEIGHTS
    stride,
    weights_stride,
    num_candidates,
    ignore_index,
    BLOCK_S: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
):
    """Return the weight of all candidates equal to the token, and whether it is the first of them."""
    total = tl.zeros((BLOCK_S,), tl.float32)
    first = tl.full((BLOCK_S,), 1, tl.int1)
    for other in range(0, num_candidates):
        token_other = tl.load(candidates + other * stride)
        weight = 1.0
        if HAS_WEIGHTS:
            weight = tl.load(weights + other * weights_stride)
        same = (token == token_other) & (token_other >= 0) & (token_other != ignore_index)
        total += tl.where(same, weight, 0.0)
        first = first & ~(same & (number > other))
    return total, first


@triton.jit(
    do_not_specialize=[
        "num_rows", "batch", "length", "num_candidates", "num_neighbours", "num_tokens", "ignore_index",
        "kept", "token_alpha",
    ]
)  # fmt: skip
def _smoothed_target_kernel(
    candidates,  # (J, B, T), int32 or int64
    weights,  # (J, B), read where HAS_WEIGHTS
    table_indices,  # (U, K), this, the next and `kept` read where HAS_TABLE
    table_weights,  # (U, K)
    table_tail,  # (U,), read where HAS_TAIL
    indices_out,  # (B T, J (K + 1))
    weights_out,  # (B T, J (K + 1))
    uniform_out,  # (B T,), written where HAS_TAIL
    num_rows,  # B T
    batch,
    length,
    num_candidates,
    num_neighbours,  # K, 0 without a table
    num_tokens,  # U
    ignore_index,
    kept,  # 1 - token_alpha
    token_alpha,
    BLOCK_S: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    HAS_TAIL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    stride = num_rows.to(tl.int64)
    candidates += row
    weights += row // length
    slots = num_candidates * (num_neighbours + 1)
    indices_out += row * slots
    weights_out += row * slots
    ignored = tl.load(candidates) == ignore_index
    uniform = tl.zeros((BLOCK_S,), tl.float32)
    for start in range(0, slots, BLOCK_S):
        slot = start + tl.arange(0, BLOCK_S)
        inside = slot < slots
        number = slot // (num_neighbours + 1)
        neighbour = slot % (num_neighbours + 1) - 1  # -1: the candidate itself
        token = tl.load(candidates + number * stride, mask=inside, other=-1)
        share, first = _merge(
            token, number, candidates, weights, stride, batch, num_candidates, ignore_index, BLOCK_S, HAS_WEIGHTS
        )
        filled = inside & first & (token >= 0) & (token != ignore_index) & ~ignored
        share = tl.where(filled, share, 0.0)
        index = tl.where(filled, token, -1).to(tl.int32)
        weight = share
        if HAS_TABLE:
            own = neighbour < 0
            known = filled & (token < num_tokens)
            place = tl.where(known, token, 0).to(tl.int64)
            entry = place * num_neighbours + neighbour
            similar = tl.load(table_indices + entry, mask=known & ~own, other=-1)
            similarity = tl.load(table_weights + entry, mask=known & ~own & (similar >= 0), other=0.0)
            index = tl.where(own, index, similar)
            weight = tl.where(own, kept * share, token_alpha * share * similarity)
            if HAS_TAIL:
                tail = tl.load(table_tail + place, mask=known & own, other=0.0)
                uniform += token_alpha * share * tail
        tl.store(indices_out + slot, index, mask=inside)
        tl.store(weights_out + slot, weight, mask=inside)
    if HAS_TAIL:
        tl.store(uniform_out + row, tl.sum(uniform, 0))
