"""Whole numbers below a base in as many bits as they need.

A few numbers at a time are one word, the digits of a number in that base: three of 151,936 classes take 52 bits, 17.33
each, where a field of its own would take 18. Words follow each other bit by bit, the lowest first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]

PADDING = 8  # bytes at the end of a stream, so that a word is read as eight bytes wherever it begins
_MOST_BITS = 56  # of a word: with the seven bits before it, it lies within eight bytes
_MOST_DIGITS = 8
_WORDS_AT_A_TIME = 1 << 16  # a multiple of 8, so that each part ends with a byte


class Packing(NamedTuple):
    """How numbers below `base` are packed: `digits` of them in a word of `bits`."""

    base: int
    digits: int
    bits: int

    @classmethod
    def of(cls, base: int) -> Packing:
        """Return the packing with the fewest bits a number, for a base between 1 and 2^31."""
        best = cls(base, 1, (base - 1).bit_length())
        for digits in range(2, _MOST_DIGITS + 1):
            bits = (base**digits - 1).bit_length()
            if bits <= _MOST_BITS and bits * best.digits < best.bits * digits:
                best = cls(base, digits, bits)
        return best

    def size(self, count: int) -> int:
        """Return the bytes of a stream of so many numbers."""
        words = -(-count // self.digits)
        return -(-words * self.bits // 8) + PADDING

    def pack(self, numbers: npt.NDArray[np.integer]) -> Bytes:
        """Return the stream of numbers ``(n,)``, each at least 0 and below the base."""
        parts: list[Bytes] = []
        step = _WORDS_AT_A_TIME * self.digits
        for begin in range(0, len(numbers), step):
            words = self._words(numbers[begin : begin + step])
            octets = words.astype("<u8").view(np.uint8).reshape(-1, 8)
            bits = np.unpackbits(octets, axis=1, count=self.bits, bitorder="little")
            parts.append(np.packbits(bits.ravel(), bitorder="little"))
        return np.concatenate([*parts, np.zeros(PADDING, np.uint8)])

    def unpack(self, stream: Bytes, spans: list[tuple[int, int]]) -> Integers:
        """Return the numbers of spans ``[start, stop)`` of a stream, one after the other."""
        wide = [(start // self.digits, -(-stop // self.digits)) for start, stop in spans]
        where = np.concatenate([np.arange(first, last, dtype=np.int64) for first, last in wide])
        numbers = self._digits(self._read(stream, where * self.bits))
        parts, before = [], 0
        for (start, stop), (first, last) in zip(spans, wide, strict=True):
            begin = (before - first) * self.digits + start
            parts.append(numbers[begin : begin + stop - start])
            before += last - first
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _words(self, numbers: npt.NDArray[np.integer]) -> npt.NDArray[np.uint64]:
        missing = -len(numbers) % self.digits
        digits = np.pad(numbers.astype(np.uint64), (0, missing)).reshape(-1, self.digits)
        words = digits[:, -1].copy()
        for place in reversed(range(self.digits - 1)):
            words *= np.uint64(self.base)
            words += digits[:, place]
        return words

    def _read(self, stream: Bytes, where: Integers) -> npt.NDArray[np.uint64]:
        """The words that begin at these bits."""
        octets = np.ndarray((len(stream) - PADDING + 1,), "<u8", stream, strides=(1,))  # at every byte
        words = octets[where >> 3]
        words >>= (where & 7).astype(np.uint64)
        words &= np.uint64((1 << self.bits) - 1)
        return words

    def _digits(self, words: npt.NDArray[np.uint64]) -> Integers:
        numbers = np.empty((len(words), self.digits), np.uint64)
        base = np.uint64(self.base)
        for place in range(self.digits - 1):
            rest = words // base
            np.subtract(words, rest * base, out=numbers[:, place])
            words = rest
        numbers[:, -1] = words
        return numbers.ravel().view(np.int64)
