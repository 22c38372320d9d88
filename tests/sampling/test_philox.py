"""Philox against published vectors and against itself in Python's integers; what its words are turned into."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smoothloss.sampling import philox
from smoothloss.sampling.philox import Numbers, Purpose, coin_threshold, draw_seed

WORD = st.integers(0, 2**32 - 1)
ONES = 0xFFFFFFFF
# The known answers of Random123 for philox4x32-10: counter, key, words. The last ones are digits of pi.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]  # fmt: skip


def seed_of(key: tuple[int, int]) -> torch.Tensor:
    number = key[1] << 32 | key[0]
    return torch.tensor([number - (1 << 64 if number >= 1 << 63 else 0)])


def words_of(key: tuple[int, int], counter: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(word) for word in philox.philox(seed_of(key), tuple(torch.tensor([x]) for x in counter)))  # type: ignore[arg-type]


def in_python(key: tuple[int, int], counter: tuple[int, ...]) -> tuple[int, ...]:
    (a, b, c, d), (low, high) = counter, key
    for _ in range(10):
        (upper0, lower0), (upper1, lower1) = divmod(0xD2511F53 * a, 2**32), divmod(0xCD9E8D57 * c, 2**32)
        a, b, c, d = upper1 ^ b ^ low, lower1, upper0 ^ d ^ high, lower0
        low, high = (low + 0x9E3779B9) % 2**32, (high + 0xBB67AE85) % 2**32
    return a, b, c, d


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    assert words_of(key, counter) == words == in_python(key, counter)


@given(st.tuples(WORD, WORD), st.tuples(WORD, WORD, WORD, WORD))
def test_it_is_philox(key: tuple[int, int], counter: tuple[int, int, int, int]) -> None:
    assert words_of(key, counter) == in_python(key, counter)


def test_the_counter_is_position_sentence_sample_purpose() -> None:
    numbers = Numbers(torch.tensor([77]), Purpose.EDIT_GAP, (2, 3, 4))
    for sample, sentence, position in ((0, 0, 0), (1, 2, 3), (1, 0, 2)):
        expected = in_python((77, 0), (position, sentence, sample, 5))
        assert tuple(int(word.expand(2, 3, 4)[sample, sentence, position]) for word in numbers.words) == expected
    others = numbers.others(Purpose.SIMILAR)
    assert int(others.words[0][1, 2, 3]) == in_python((77, 0), (3, 2, 1, 1))[0]


@given(st.tuples(WORD, WORD, WORD, WORD), st.integers(0, 2**31 - 1))
def test_words_become_choices(words: tuple[int, int, int, int], size: int) -> None:
    numbers = Numbers.__new__(Numbers)
    numbers.words = tuple(torch.tensor([word]) for word in words)  # type: ignore[assignment]
    number = words[3] << 32 | words[2]
    assert int(numbers.choose(torch.tensor([size]))) == number * size >> 64
    assert int(numbers.coin) == (words[1] << 32 | words[0]) % 2**63
    total = (size << 31) + size  # up to 2^62
    share = int(numbers.choose_share(torch.tensor([total])))
    assert (number * total >> 64) - 2 <= share <= number * total >> 64
    assert Fraction(float(numbers.fraction())) == Fraction(number >> 11, 2**53)


@given(st.integers(0, 2**31 - 1), st.floats(1, 1e308))
def test_thresholds(count: int, kept_share: float) -> None:
    exact = Fraction(count) / (count + Fraction(kept_share)) * 2**63
    threshold = int(coin_threshold(torch.tensor([count]), kept_share))
    assert 0 <= threshold < 2**63
    assert abs(threshold - exact) <= 1 + exact * Fraction(3, 2**53)


def test_seeds_come_from_the_generator_and_move_it_on() -> None:
    generator, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    seeds = [int(draw_seed(torch.device("cpu"), generator)) for _ in range(3)]
    assert len(set(seeds)) == 3
    assert seeds == [int(draw_seed(torch.device("cpu"), other)) for _ in range(3)]
    assert max(seeds) >= 2**48
    state = torch.get_rng_state()
    first = draw_seed(torch.device("cpu"), None)
    assert not torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(state)
    assert torch.equal(draw_seed(torch.device("cpu"), None), first)
    assert draw_seed(torch.device("meta"), generator).device.type == "meta"
