"""Draws by Hamming distance in Triton, for CUDA tensors where ``_C_cuda`` was not built.

What there is to know of a position, its threshold and its set, is computed once for all samples by the torch code of
the pools; the kernel makes the draws, one program a sample of a sentence.
"""
# mypy: ignore-errors

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from smoothloss.sampling import _hamming_reference
from smoothloss.sampling.philox import Purpose, coin_threshold
from smoothloss.sampling.pools import Substitutes, UniformSubstitutes
from smoothloss.sampling.samples import Samples, Sentences
from smoothloss.sampling.segments import SegmentSubstitutes

if TYPE_CHECKING:
    from smoothloss.sampling.hamming import Temperature

_HAMMING: tl.constexpr = tl.constexpr(int(Purpose.HAMMING))
_SIMILAR: tl.constexpr = tl.constexpr(int(Purpose.SIMILAR))
_MAX_BLOCK = 256
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def unavailable(sentences: Sentences) -> str | None:
    """Return why the kernel cannot draw for these sentences, or None when it can."""
    device = sentences.target.device.type
    if device != ("cpu" if _INTERPRETED else "cuda"):
        return f"the kernel takes {'CPU tensors in the interpreter' if _INTERPRETED else 'CUDA tensors'}, not {device}"
    if not sentences.has_values():
        return "the kernel needs memory to read, which fake tensors and compiled code do not show"
    pool = sentences.pool
    if pool.kernel_pool(sentences.target.device, sentences.references) is None:
        return f"the kernel does not know how to draw from {pool}"
    return None


def draw(sentences: Sentences, num_samples: int, seed: Tensor, temperature: Temperature) -> Samples:
    """Draw L samples for each sentence: `_hamming_reference.draw` with its passes over all samples in one."""
    sentences.check_lengths()
    target, pool, references = sentences.target, sentences.pool, sentences.references
    substitutes = pool.substitutes(target, sentences.replaceable, references)
    count = substitutes.count.where(sentences.replaceable, 0)
    dtype = pool.token_dtype(target.dtype, None if references is None else references.dtype)
    batch, width = target.shape
    tokens = torch.empty((num_samples, batch, width), dtype=dtype, device=target.device)
    distance = torch.empty((num_samples, batch), dtype=torch.int64, device=target.device)
    ratio = torch.empty((num_samples, batch), dtype=torch.float64, device=target.device)
    if num_samples * batch:
        _draw_kernel[(num_samples * batch,)](
            target, seed, coin_threshold(count, temperature.kept_share), count, *_tables(substitutes, target),
            tokens, distance, ratio, batch, width,
            HAS_SEGMENTS=isinstance(substitutes, SegmentSubstitutes),
            BLOCK=min(_MAX_BLOCK, triton.next_power_of_2(max(width, 16))),
        )  # fmt: skip
    log_prob = _hamming_reference.log_prob(distance, ratio, count, temperature)
    return Samples(tokens, distance, log_prob, sentences.lengths.expand(num_samples, -1))


def _tables(substitutes: Substitutes, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int]:
    """Return ``(B, T)`` ranks or rows, the tokens, segments as integers and as numbers, and the strides of a set.

    A rank that no place reaches is that of a token out of its set.
    """
    if isinstance(substitutes, SegmentSubstitutes):
        rows = substitutes.rows
        segments = rows.segments
        return substitutes.tokens, rows.by_rank, segments, segments.view(torch.float64), 0, segments.shape[1]
    assert isinstance(substitutes, UniformSubstitutes)
    rank = substitutes.rank.where(substitutes.inside, torch.iinfo(torch.int64).max).contiguous()
    tokens = substitutes.sets.tokens
    set_stride = tokens.shape[1] if tokens.shape[0] > 1 else 0
    return rank, tokens, rank, rank, set_stride, 0


@triton.jit
def _choose(low, high, size):
    """``floor(n size / 2^64)``, see philox.py."""
    return (high * size + ((low * size) >> 32)) >> 32


@triton.jit
def _words(seed, position, sentence, sample, PURPOSE: tl.constexpr):
    position = position.to(tl.uint32)  # counters of 64 bits would be those of another generator
    zero = position * 0
    sentence, sample = zero + sentence.to(tl.uint32), zero + sample.to(tl.uint32)
    a, b, c, d = tl.philox(seed, position, sentence, sample, zero + PURPOSE)
    return (
        a.to(tl.uint32).to(tl.int64),
        b.to(tl.uint32).to(tl.int64),
        c.to(tl.uint32).to(tl.int64),
        d.to(tl.uint32).to(tl.int64),
    )


@triton.jit
def _draw_kernel(
    target, seed, thresholds, counts, ranks, set_tokens, segments, segment_numbers, set_stride, row_width,
    tokens, distances, ratios, batch, width, HAS_SEGMENTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    sample, sentence = program // batch, program % batch
    key = tl.load(seed)
    distance = tl.zeros((BLOCK,), tl.int64)
    ratio = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, width, BLOCK):
        position = start + tl.arange(0, BLOCK)
        inside = position < width
        at = sentence.to(tl.int64) * width + position
        a, b, c, d = _words(key, position, sentence, sample, _HAMMING)
        coin = a | ((b & 0x7FFFFFFF) << 32)
        replaced = inside & (coin < tl.load(thresholds + at, mask=inside, other=0))
        count = tl.load(counts + at, mask=replaced, other=0)
        rank = tl.load(ranks + at, mask=replaced, other=0)
        if HAS_SEGMENTS:
            slot = rank * row_width + _choose(c, d, row_width)
            a, b, c, d = _words(key, position, sentence, sample, _SIMILAR)
            coin = a | ((b & 0x7FFFFFFF) << 32)
            threshold = tl.load(segments + slot * 4, mask=replaced, other=0)
            packed = tl.load(segments + slot * 4 + 1, mask=replaced, other=0)
            # Two int32: the slot's other segment, less its own, in the low half.
            slot += tl.where(coin >= threshold, (packed << 32) >> 32, 0)
            first = tl.load(segments + slot * 4 + 1, mask=replaced, other=0) >> 32
            length = tl.load(segments + slot * 4 + 2, mask=replaced, other=0)
            ratio += tl.load(segment_numbers + slot * 4 + 3, mask=replaced, other=0.0)
            place = first + _choose(c, d, length)
        else:
            place = _choose(c, d, count)
            place += (place >= rank).to(tl.int64) + sentence.to(tl.int64) * set_stride
        drawn = tl.load(set_tokens + place, mask=replaced, other=0)
        own = tl.load(target + at, mask=inside, other=0).to(tl.int64)
        out = tokens + program.to(tl.int64) * width + position
        tl.store(out, tl.where(replaced, drawn, own).to(tokens.dtype.element_ty), mask=inside)
        distance += replaced.to(tl.int64)
    tl.store(distances + program, tl.sum(distance, axis=0))
    tl.store(ratios + program, tl.sum(ratio, axis=0))
