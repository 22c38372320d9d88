"""Counter-based random numbers, and how they become choices: the definition, in torch integers.

A draw takes one seed of 64 bits. Each of its random numbers is ``philox(seed; position, sentence, sample, purpose)``:
Philox-4x32-10, whose key is the seed's low and high half and whose counter is

    word 0: the position in the sentence      word 1: the sentence's number in the batch
    word 2: the sample's number               word 3: what the number is for (:class:`Purpose`)

So a number depends on nothing else: not on the device, the order of computing, or how long a batch is padded.
The four words of 32 bits that come out are used as a coin of 63 bits (words 0 and 1) and a number of 64 bits (words 2
and 3). Whatever is decided by them is decided in integers, so that all devices decide alike.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import enum

import torch
from torch import Tensor

_FACTORS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF
COIN_BITS = 63
LARGEST_COUNT = 2**31 - 1  # of things that one number chooses among


class Purpose(enum.IntEnum):
    """What a number is for."""

    HAMMING = 0  # the coin of a position and its substitute, or the slot of its similarity row
    SIMILAR = 1  # which of the slot's segments, and which of its tokens
    EDIT_COUNTS = 2  # how many edits; position 0
    EDIT_REPLACED = 3  # which positions are replaced
    EDIT_CHOICE = 4  # by what
    EDIT_GAP = 5  # where the n-th insertion goes; the position is n
    EDIT_INSERTED = 6  # what is inserted


def philox(seed: Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the four words of Philox-4x32-10.

    Args:
        seed: One int64: the key is its low and its high half.
        counter: Four int64 tensors of values below 2^32, which broadcast.

    Returns:
        Four int64 tensors of values below 2^32.
    """
    a, b, c, d = torch.broadcast_tensors(*counter)
    key = (seed & _WORD, seed >> 32 & _WORD)
    for _ in range(_ROUNDS):
        # A product of two words fills the 64 bits; shifted and masked, the sign that it seems to have is gone.
        first, second = a * _FACTORS[0], c * _FACTORS[1]
        a, b = (second >> 32 & _WORD) ^ b ^ key[0], second & _WORD
        c, d = (first >> 32 & _WORD) ^ d ^ key[1], first & _WORD
        key = (key[0] + _KEY_STEPS[0] & _WORD, key[1] + _KEY_STEPS[1] & _WORD)
    return a, b, c, d


class Numbers:
    """The random numbers of samples ``(L, B, X)`` for one purpose.

    Args:
        seed: The draw's seed, ``(1,)`` int64.
        purpose: What they are for.
        shape: L, B and X.
    """

    def __init__(self, seed: Tensor, purpose: Purpose, shape: tuple[int, int, int]) -> None:
        self.seed, self.shape = seed, shape
        sample, sentence, position = (torch.arange(size, device=seed.device) for size in shape)
        counter = (position, sentence[:, None], sample[:, None, None], torch.full_like(seed, int(purpose)))
        self.words = philox(seed, counter)

    def others(self, purpose: Purpose) -> Numbers:
        """Those of the same positions for another purpose."""
        return Numbers(self.seed, purpose, self.shape)

    @property
    def coin(self) -> Tensor:
        """63 bits, from words 0 and 1: a coin falls where it is below a threshold of as many bits."""
        return self.words[0] | (self.words[1] & 0x7FFFFFFF) << 32

    def choose(self, size: Tensor) -> Tensor:
        """``floor(n size / 2^64)`` for the 64 bits n of words 2 and 3: one of ``size < 2^31``, all alike to 2^-64."""
        return (self.words[3] * size + (self.words[2] * size >> 32)) >> 32

    def fraction(self) -> Tensor:
        """The upper 53 of the 64 bits as a float64 in [0, 1): exact."""
        return (self.words[3] << 21 | self.words[2] >> 11).double() * 2.0**-53

    def choose_share(self, total: Tensor) -> Tensor:
        """One of ``total <= 2^62`` shares, all alike to 2^-62: ``n total / 2^64`` without the products' last bits."""
        high, low = total >> 32, total & _WORD
        return self.words[3] * high + (self.words[3] * low >> 32 & _WORD) + (self.words[2] * high >> 32)


def coin_threshold(count: Tensor, kept_share: float) -> Tensor:
    """``floor(2^63 count / (count + kept_share))``: the share of the coins that replace a token of `count` substitutes.

    To keep the token has the odds ``kept_share >= 1`` against each of them. The sum, the quotient and the power of two
    are float64 and round alike on every device.
    """
    count = count.double()
    return (count / (count + kept_share) * 2.0**COIN_BITS).to(torch.int64)


def draw_seed(device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Return one seed ``(1,)`` int64 on `device`, drawn from the generator where that is: nothing waits for it."""
    place = device if generator is None or device.type == "meta" else generator.device
    seed = torch.empty(1, dtype=torch.int64, device=place)
    seed.random_(generator=None if device.type == "meta" else generator)
    return seed if place == device else seed.to(device, non_blocking=True)
