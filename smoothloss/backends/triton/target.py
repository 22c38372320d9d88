"""The kernel that writes a smoothed target in Triton: one program per position."""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def _token(
    target,  # of this position
    samples,  # (L,) of this position, `stride` apart, read where HAS_SAMPLES
    number,  # of the candidate: 0 the target, then the samples
    stride,
    mask,
    HAS_SAMPLES: tl.constexpr,
):
    token = tl.load(target + number * 0, mask=mask & (number == 0), other=-1)
    if HAS_SAMPLES:
        sample = tl.load(samples + (number - 1) * stride, mask=mask & (number > 0), other=-1)
        token = tl.where(number == 0, token, sample)
    return token


@triton.jit
def _merge(
    token,  # (BLOCK_S,)
    number,  # (BLOCK_S,), of the candidate that the token is
    target,  # of this position
    samples,  # (L,) of this position, `stride` apart, read where HAS_SAMPLES
    own_share,  # the target's weight
    sample_weights,  # (L,), `weights_stride` apart, read where HAS_WEIGHTS
    alpha,
    even,  # a sample's weight where there are none
    stride,
    weights_stride,
    num_candidates,
    ignore_index,
    BLOCK_S: tl.constexpr,
    HAS_SAMPLES: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
):
    """Return the weight of all candidates equal to the token, and whether it is the first of them."""
    first_token = tl.load(target)
    same = (token == first_token) & (first_token >= 0) & (first_token != ignore_index)
    total = tl.where(same, own_share, 0.0)
    first = ~(same & (number > 0))
    if HAS_SAMPLES:
        for other in range(1, num_candidates):
            token_other = tl.load(samples + (other - 1) * stride)
            weight = even
            if HAS_WEIGHTS:
                weight = alpha * tl.load(sample_weights + (other - 1) * weights_stride).to(tl.float32)
            same = (token == token_other) & (token_other >= 0) & (token_other != ignore_index)
            total += tl.where(same, weight, 0.0)
            first = first & ~(same & (number > other))
    return total, first


@triton.jit(
    do_not_specialize=[
        "num_rows", "batch", "length", "num_candidates", "num_neighbours", "num_tokens", "ignore_index",
        "alpha", "even", "kept", "token_alpha",
    ]
)  # fmt: skip
def _smoothed_target_kernel(
    target,  # (B, T), int32 or int64
    samples,  # (L, B, T), the same, read where HAS_SAMPLES
    target_weights,  # (B,), read where HAS_OWN_WEIGHTS
    sample_weights,  # (L, B), read where HAS_WEIGHTS
    table_indices,  # (U, K), this, the next and `kept` read where HAS_TABLE
    table_weights,  # (U, K)
    table_tail,  # (U,), read where HAS_TAIL
    indices_out,  # (B T, J (K + 1))
    weights_out,  # (B T, J (K + 1))
    uniform_out,  # (B T,), written where HAS_TAIL
    num_rows,  # B T
    batch,
    length,
    num_candidates,  # J = L + 1
    num_neighbours,  # K, 0 without a table
    num_tokens,  # U
    ignore_index,
    alpha,
    even,  # alpha / L
    kept,  # 1 - token_alpha
    token_alpha,
    BLOCK_S: tl.constexpr,
    HAS_SAMPLES: tl.constexpr,
    HAS_OWN_WEIGHTS: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    HAS_TABLE: tl.constexpr,
    HAS_TAIL: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    stride = num_rows.to(tl.int64)
    target += row
    samples += row
    own_share = 1.0 - alpha
    if HAS_OWN_WEIGHTS:
        own_share *= tl.load(target_weights + row // length)
    sample_weights += row // length
    slots = num_candidates * (num_neighbours + 1)
    indices_out += row * slots
    weights_out += row * slots
    ignored = tl.load(target) == ignore_index
    uniform = tl.zeros((BLOCK_S,), tl.float32)
    for start in range(0, slots, BLOCK_S):
        slot = start + tl.arange(0, BLOCK_S)
        inside = slot < slots
        number = slot // (num_neighbours + 1)
        neighbour = slot % (num_neighbours + 1) - 1  # -1: the candidate itself
        token = _token(target, samples, number, stride, inside, HAS_SAMPLES)
        share, first = _merge(
            token, number, target, samples, own_share, sample_weights, alpha, even, stride, batch, num_candidates,
            ignore_index, BLOCK_S, HAS_SAMPLES, HAS_WEIGHTS,
        )  # fmt: skip
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
