"""Draws by edit distance in Triton, for CUDA tensors where ``_C_cuda`` was not built.

What there is to know of a token, its choices and its set, is computed once for all samples by the torch code of the
pools. One kernel, a program for each sentence, weighs how many edits there may be; another, a program for each sample,
draws its script, writes its words and sums over all scripts that give them.
"""
# mypy: ignore-errors

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from smoothloss.sampling import _hamming_triton
from smoothloss.sampling._hamming_triton import _choose, _words
from smoothloss.sampling.philox import Purpose
from smoothloss.sampling.samples import Samples, Sentences

if TYPE_CHECKING:
    from smoothloss.sampling.edit import EditSettings

_COUNTS: tl.constexpr = tl.constexpr(int(Purpose.EDIT_COUNTS))
_REPLACED: tl.constexpr = tl.constexpr(int(Purpose.EDIT_REPLACED))
_CHOICE: tl.constexpr = tl.constexpr(int(Purpose.EDIT_CHOICE))
_GAP: tl.constexpr = tl.constexpr(int(Purpose.EDIT_GAP))
_INSERTED: tl.constexpr = tl.constexpr(int(Purpose.EDIT_INSERTED))
_ALL_SHARES: tl.constexpr = tl.constexpr(2.0**62)
_LOG_2: tl.constexpr = tl.constexpr(0.693147180559945309417)
_NEVER: tl.constexpr = tl.constexpr(2**63 - 1)
_LARGEST_WIDTH = 1024  # the words of a sample are in one block


def unavailable(sentences: Sentences) -> str | None:
    """Return why the kernels cannot draw for these sentences, or None when they can."""
    reason = _hamming_triton.unavailable(sentences)
    width = sentences.target.shape[1]
    if reason is None and width > _LARGEST_WIDTH:
        reason = f"the kernels take sentences of at most {_LARGEST_WIDTH} tokens, not {width}"
    return reason


def draw(
    sentences: Sentences, num_samples: int, seed: Tensor, edit: EditSettings, dtype: torch.dtype = torch.float32
) -> Samples:
    """Draw L samples for each sentence: `_edit_reference.draw` with its passes over all samples in one."""
    sentences.check_lengths()
    target, device = sentences.target, sentences.target.device
    substitutes = sentences.pool.substitutes(target, sentences.replaceable, sentences.references)
    (batch, width), columns = target.shape, edit.max_insertions + 1
    shape, full = (num_samples, batch), width + edit.max_insertions
    tokens = torch.empty((*shape, full), dtype=edit.token_dtype(sentences), device=device)
    distance, lengths = torch.empty((2, *shape), dtype=torch.int64, device=device)
    log_prob = torch.empty(shape, dtype=dtype, device=device)
    if num_samples * batch:
        odds = (substitutes.sets.size.double() * edit.temperature.replaced_odds).expand(batch).contiguous()
        choices = (substitutes.count + 1).where(sentences.replaceable, 0)
        free = sentences.replaceable.sum(dim=-1)
        given = sentences.lengths.contiguous()
        shares = torch.empty((batch, (width + 1) * columns), dtype=torch.int64, device=device)
        log_normalizer = torch.empty(batch, dtype=torch.float64, device=device)
        _prior_kernel[(batch,)](odds, free, given, shares, log_normalizer, edit.max_insertions, shares.shape[1])
        sets = substitutes.sets.tokens
        # In memory: as an argument it would be a float32.
        insertion = torch.full((1,), edit.temperature.replaced_odds, dtype=torch.float64, device=device)
        programs = num_samples * batch
        _draw_kernel[(programs,)](
            target, given, free, choices, (odds[:, None] / choices).where(choices > 0, 0.0),
            substitutes.rank.where(substitutes.inside, -1).contiguous(),
            sets, sets.shape[1] if sets.shape[0] > 1 else 0, substitutes.sets.size.expand(batch).contiguous(),
            shares, log_normalizer, seed, insertion, edit.max_insertions, edit.pad,
            torch.empty((programs, full), dtype=torch.int64, device=device),
            torch.empty((programs, full), dtype=torch.float64, device=device),
            torch.empty((programs, 2, columns, width + 1), dtype=torch.float64, device=device),
            tokens, distance, lengths, log_prob, batch, width,
            BLOCK=triton.next_power_of_2(max(full + 1, 16)),
        )  # fmt: skip
    return Samples(tokens, distance, log_prob, lengths)


@triton.jit
def _frexp(x):
    """``x = mantissa * 2^exponent`` for x >= 0: a mantissa of 0 with exponent 0, or from 1/2 to 1."""
    is_small = x < 2.0**-1000  # also what has fewer bits than others
    bits = tl.where(is_small, x * 2.0**200, x).to(tl.int64, bitcast=True)
    exponent = (bits >> 52) - 1022 - tl.where(is_small, 200, 0)
    mantissa = ((bits & 0xFFFFFFFFFFFFF) | (1022 << 52)).to(tl.float64, bitcast=True)
    return tl.where(x > 0, mantissa, 0.0), tl.where(x > 0, exponent, 0)


@triton.jit
def _power_of_2(exponent):
    """``2^exponent`` from -1022 to 1023."""
    return ((exponent + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def _times(mantissa, exponent, numerator, denominator, odds):
    product, shift = _frexp(mantissa * (numerator.to(tl.float64) / denominator.to(tl.float64)) * odds)
    return product, exponent + shift


@triton.jit
def _prior_kernel(odds, free, lengths, shares, log_normalizers, max_insertions, stride):
    """The cumulative shares of all pairs of numbers of edits, see `_edit_reference._Prior`."""
    sentence = tl.program_id(0).to(tl.int64)
    odds, free, length = tl.load(odds + sentence), tl.load(free + sentence), tl.load(lengths + sentence)
    zero = free * 0
    pairs = ((length + 1) * (max_insertions + 1)).to(tl.float64)
    largest, each = zero, (pairs * 0 + _ALL_SHARES) / pairs
    total, sum = zero, pairs * 0
    # Once for the largest exponent, once for the shares.
    for is_second in range(0, 2):
        row, row_exponent = pairs * 0 + 0.5, zero + 1
        place = shares + sentence * stride
        s = zero
        while s <= free:
            if s > 0:
                row, row_exponent = _times(row, row_exponent, free - s + 1, s, odds)
            mantissa, exponent = row, row_exponent
            k = zero
            while k <= max_insertions:
                if k > 0:
                    mantissa, exponent = _times(mantissa, exponent, length - s + k, k, odds)
                if is_second == 0:
                    largest = tl.maximum(largest, exponent)
                else:
                    below = largest - exponent
                    sum += tl.where(below < 1000, mantissa * _power_of_2(-tl.minimum(below, 1000)), 0.0)
                    total += (mantissa * each).to(tl.int64) >> tl.minimum(below, 63)
                    tl.store(place, total)
                    place += 1
                k += 1
            s += 1
    tl.store(log_normalizers + sentence, tl.log(sum) + largest.to(tl.float64) * _LOG_2)


@triton.jit
def _draw_pair(shares, free, max_insertions, seed, sentence, sample, BLOCK: tl.constexpr):
    """The numbers of replaced and of inserted tokens: the first pair whose cumulative share exceeds the number."""
    cells = (free + 1) * (max_insertions + 1)
    _a, _b, c, d = _words(seed, free * 0, sentence, sample, _COUNTS)
    total = tl.load(shares + cells - 1)
    high, low = total >> 32, total & 0xFFFFFFFF
    share = d * high + (((d * low) >> 32) & 0xFFFFFFFF) + ((c * high) >> 32)
    pair = free * 0
    for start in range(0, cells, BLOCK):
        cell = start + tl.arange(0, BLOCK)
        value = tl.load(shares + cell, mask=cell < cells, other=_NEVER)
        pair += tl.sum((value <= share).to(tl.int64), axis=0)
    return pair // (max_insertions + 1), pair % (max_insertions + 1)


@triton.jit
def _draw_keys(scratch, num_choices, length, seed, sentence, sample, BLOCK: tl.constexpr):
    """A key for each token, the largest for those that must stay; also written to memory, for all lanes to read."""
    place = tl.arange(0, BLOCK).to(tl.int64)
    a, b, _c, _d = _words(seed, place, sentence, sample, _REPLACED)
    keys = tl.where(num_choices > 0, a | ((b & 0x7FFFFFFF) << 32), _NEVER)
    tl.store(scratch + place, keys, mask=place < length)
    tl.debug_barrier()
    return keys


@triton.jit
def _count_smaller(keys, stored, length):
    count = keys * 0
    for t in range(0, length):
        count += (tl.load(stored + t) < keys).to(tl.int64)
    tl.debug_barrier()
    return count


@triton.jit
def _draw_gaps(size, num_inserted, seed, sentence, sample, BLOCK: tl.constexpr):
    """Where insertions go, in the first elements: Polya's urn, see `_edit_reference._multisets`."""
    place = tl.arange(0, BLOCK)
    _a, _b, c, d = _words(seed, place, sentence, sample, _GAP)
    drawn = _choose(c, d, size + place)
    gaps = drawn * 0
    for i in range(0, num_inserted):
        gap = tl.sum(tl.where(place == i, drawn, 0), axis=0)
        earlier = tl.sum(tl.where(place == gap - size, gaps, 0), axis=0)
        gaps = tl.where(place == i, tl.where(gap < size, gap, earlier), gaps)
    return gaps


@triton.jit
def _log_weight(
    cells, words, pooled, tokens, weights, insertion, length, count, width, max_insertions, BLOCK: tl.constexpr
):
    """The logarithm of the sum over all scripts that give these words, see `EditDraw::log_weight` in csrc."""
    row = tl.arange(0, BLOCK).to(tl.int64)
    stride = width + 1
    inside = row <= width
    for k in range(0, max_insertions + 1):
        tl.store(cells + k * stride + row, tl.where((row == 0) & (k == 0), 1.0, 0.0).to(tl.float64), mask=inside)
    tl.debug_barrier()
    factor, log_scale = insertion * 0 + 1.0, insertion * 0
    old, new = cells, cells + (max_insertions + 1) * stride
    for t in range(0, length):
        token, weight = tl.load(tokens + t).to(tl.int64), tl.load(weights + t)
        # Rows that can still become the whole sample.
        live = inside & (row >= count - max_insertions - (length - t - 1)) & (row <= t + 1)
        largest, ended = row.to(tl.float64) * 0, row.to(tl.float64) * 0
        for k in range(0, max_insertions + 1):
            active = live & (row + k <= count)
            value = factor * tl.load(old + k * stride + row, mask=active, other=0.0) * weight
            after = active & (row > 0)
            settled = factor * tl.load(old + k * stride + row - 1, mask=after, other=0.0)
            inserted = tl.load(pooled + row + k - 2, mask=after & (k > 0), other=0.0)
            ended = settled + ended * (insertion * inserted)
            word = tl.load(words + row + k - 1, mask=after, other=0)
            replaced = settled * (weight * tl.load(pooled + row + k - 1, mask=after, other=0.0))
            value += tl.where(after, tl.where(word == token, ended, replaced), 0.0)
            largest = tl.maximum(largest, value)
            tl.store(new + k * stride + row, value, mask=inside)
        tl.debug_barrier()
        _mantissa, exponent = _frexp(tl.max(largest, axis=0))
        shift = tl.where((exponent < -256) | (exponent > 256), tl.minimum(tl.maximum(exponent, -1000), 1000), 0)
        factor = _power_of_2(-shift)
        log_scale += shift.to(tl.float64) * _LOG_2
        old, new = new, old
    ended = row.to(tl.float64) * 0
    for k in range(0, max_insertions + 1):
        active = inside & (row + k <= count)
        cell = factor * tl.load(old + k * stride + row, mask=active, other=0.0)
        inserted = tl.load(pooled + row + k - 1, mask=active & (k > 0), other=0.0)
        ended = tl.where(active, cell + ended * (insertion * inserted), ended)
    complete = inside & (row <= count) & (row + max_insertions >= count)
    return tl.log(tl.sum(tl.where(complete, ended, 0.0), axis=0)) + log_scale


@triton.jit
def _draw_kernel(
    target, lengths_in, free, choices, weights, ranks, sets, set_stride, set_sizes, shares, log_normalizers, seed,
    insertion, max_insertions, pad, words, pooled, cells, tokens, distances, lengths, log_probs, batch, width,
    BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    sample, sentence = program // batch, program % batch
    columns, full = max_insertions + 1, width + max_insertions
    target, choices, weights, ranks = (
        target + sentence * width, choices + sentence * width, weights + sentence * width, ranks + sentence * width,
    )  # fmt: skip
    sets, words, pooled = sets + sentence * set_stride, words + program * full, pooled + program * full
    tokens, cells = tokens + program * full, cells + program * 2 * columns * (width + 1)
    seed, length, set_size = tl.load(seed), tl.load(lengths_in + sentence), tl.load(set_sizes + sentence)
    insertion = tl.load(insertion)
    num_replaced, num_inserted = _draw_pair(
        shares + sentence * (width + 1) * columns,
        tl.load(free + sentence),
        max_insertions,
        seed,
        sentence,
        sample,
        BLOCK,
    )
    place = tl.arange(0, BLOCK).to(tl.int64)
    within = place < length
    num_choices = tl.load(choices + place, mask=within, other=0)
    keys = _draw_keys(words, num_choices, length, seed, sentence, sample, BLOCK)
    replaced = (num_choices > 0) & (_count_smaller(keys, words, length) < num_replaced)
    kept = within & (replaced == 0)
    _a, _b, c, d = _words(seed, place, sentence, sample, _CHOICE)
    choice = _choose(c, d, num_choices)
    substituted = replaced & (choice < num_choices - 1)
    rank = tl.load(ranks + place, mask=within, other=-1)
    choice += ((rank >= 0) & (choice >= rank)).to(tl.int64)
    num_kept = tl.sum(kept.to(tl.int64), axis=0)
    gaps = _draw_gaps(num_kept + 1, num_inserted, seed, sentence, sample, BLOCK)
    gap = tl.cumsum(kept.to(tl.int64), axis=0) - kept.to(tl.int64)
    inserted = place * 0
    for i in range(0, num_inserted):
        inserted += (gap == tl.sum(tl.where(place == i, gaps, 0), axis=0)).to(tl.int64)
    # A kept token takes along what is inserted before it; the end is behind all.
    end = tl.cumsum(tl.where(kept, 1 + inserted, substituted.to(tl.int64)), axis=0)
    count = num_kept + tl.sum(substituted.to(tl.int64), axis=0) + num_inserted
    # All words as if inserted, then those that are not.
    _a, _b, c, d = _words(seed, place, sentence, sample, _INSERTED)
    new_word = tl.load(sets + _choose(c, d, set_size), mask=(place < count) & (set_size > 0), other=0)
    tl.store(words + place, new_word, mask=place < count)
    tl.store(pooled + place, place.to(tl.float64) * 0 + 1.0, mask=place < count)
    tl.debug_barrier()
    own = tl.load(target + place, mask=within, other=0).to(tl.int64)
    stays = kept | substituted
    word = tl.where(substituted, tl.load(sets + choice, mask=substituted, other=0), own)
    tl.store(words + end - 1, word, mask=stays)
    tl.store(pooled + end - 1, (substituted | (rank >= 0)).to(tl.float64), mask=stays)
    tl.debug_barrier()
    # Beyond the words the ground truth's own tail, then padding.
    source = length + place - count
    tail = tl.load(target + source, mask=(place >= count) & (source < width), other=0).to(tl.int64)
    written = tl.where(place < count, tl.load(words + place, mask=place < count, other=0), tail)
    written = tl.where((place >= count) & (source >= width), pad, written)
    tl.store(tokens + place, written.to(tokens.dtype.element_ty), mask=place < full)
    log_weight = _log_weight(
        cells, words, pooled, target, weights, insertion, length, count, width, max_insertions, BLOCK
    )
    tl.store(distances + program, num_replaced + num_inserted)
    tl.store(lengths + program, count)
    log_prob = log_weight - tl.load(log_normalizers + sentence)
    tl.store(log_probs + program, log_prob.to(log_probs.dtype.element_ty))
