from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothloss.distillation.cache.packing import PADDING, Packing

BASES = [1, 2, 3, 12, 255, 256, 257, 8514, 65535, 65536, 65537, 151936, 2**31 - 1, 2**31]


@given(
    base=st.one_of(st.sampled_from(BASES), st.integers(1, 2**31)),
    count=st.one_of(st.integers(0, 100), st.just(200_000)),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
@settings(max_examples=120, deadline=None)
def test_spans_come_back(base: int, count: int, seed: int, data: st.DataObject) -> None:
    numbers = np.random.default_rng(seed).integers(0, base, count)
    numbers[::3] = base - 1  # the largest, whose digits fill a word
    packing = Packing.of(base)
    stream = packing.pack(numbers)
    assert stream.dtype == np.uint8 and len(stream) == packing.size(count)
    ends = st.integers(0, count)
    spans = [tuple(sorted(span)) for span in data.draw(st.lists(st.tuples(ends, ends), min_size=1, max_size=4))]
    expected = np.concatenate([numbers[start:stop] for start, stop in spans])
    got = packing.unpack(stream, spans)
    assert got.dtype == np.int64
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("base", BASES)
def test_no_number_takes_more_bits_than_it_needs(base: int) -> None:
    packing = Packing.of(base)
    assert packing.bits / packing.digits <= (base - 1).bit_length()
    assert packing.bits <= 56
    assert base**packing.digits <= 2**packing.bits, "every combination of digits has a word"


def test_bits() -> None:
    assert Packing.of(151_936)[1:] == (3, 52)
    assert Packing.of(65_536)[1:] == (1, 16)
    assert Packing.of(2**31)[1:] == (1, 31)
    assert Packing.of(12)[1:] == (5, 18)
    assert Packing.of(1).size(10**6) == PADDING


def test_the_stream_is_what_the_format_says() -> None:
    base = 151_936
    stream = Packing.of(base).pack(np.array([1, 2, 3, 4, 5]))
    number = int.from_bytes(bytes(stream), "little")
    assert number % 2**52 == 1 + base * (2 + base * 3)
    assert number >> 52 == 4 + base * 5
