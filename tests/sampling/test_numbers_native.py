"""The kernels write the words that the definition computes."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothloss import _compiled as compiled
from smoothloss.sampling import EditSampler, ReferencePool
from smoothloss.sampling._numbers_native import make_numbers
from smoothloss.sampling.philox import Numbers, Purpose

SHAPES = st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 90))
SEEDS = st.integers(-(2**63), 2**63 - 1)
needs_native = pytest.mark.skipif(compiled.load("_C")[0] is None, reason="no C++ here")


def assert_words(actual: Numbers, expected: Numbers, shape: tuple[int, int, int]) -> None:
    for word, other in zip(actual.words, expected.words, strict=True):
        assert torch.equal(word.expand(shape), other.expand(shape))


@needs_native
@given(SEEDS, st.sampled_from(Purpose), SHAPES)
@settings(deadline=None)
def test_words_on_the_cpu(seed: int, purpose: Purpose, shape: tuple[int, int, int]) -> None:
    given_seed = torch.tensor([seed])
    assert_words(make_numbers(given_seed, purpose, shape), Numbers(given_seed, purpose, shape), shape)


@pytest.mark.parametrize("shape", [(0, 3, 2), (1, 1, 1), (2, 3, 85), (3, 2, 256)])
def test_words_of_the_cuda_kernel(emulated_cuda: ModuleType, shape: tuple[int, int, int]) -> None:
    seed, purpose = torch.tensor([-(2**40) - 7]), Purpose.EDIT_GAP
    words = torch.full((4 * shape[0] * shape[1] * shape[2] + 3,), -7)
    emulated_cuda.philox_words((seed.data_ptr(), int(purpose), *shape, words.data_ptr()), 0, 0)
    assert (words[-3:] == -7).all()
    expected = Numbers(seed, purpose, shape)
    assert_words(Numbers(seed, purpose, shape, words[:-3].view(4, *shape).unbind()), expected, shape)


def test_edit_samples_are_the_same_without_the_binaries(monkeypatch: pytest.MonkeyPatch) -> None:
    target = torch.randint(0, 9, (4, 7), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([7, 0, 3, 5])
    draws = []
    for has_native in (True, False):
        if not has_native:
            monkeypatch.setattr(compiled, "load", lambda name: (None, "not here"))
        sampler = EditSampler(0.7, ReferencePool((0,)))
        draws.append(sampler(target, lengths, 20, torch.Generator().manual_seed(3), target))
    assert all(torch.equal(one, other) for one, other in zip(*draws, strict=True))


def test_edit_samples_do_not_depend_on_the_padding() -> None:
    target = torch.randint(1, 9, (4, 7), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([7, 0, 3, 5])
    padded = torch.nn.functional.pad(target, (0, 6), value=4)
    references = torch.nn.functional.pad(target, (0, 3), value=-1)
    sampler = EditSampler(0.7, ReferencePool((0,)), pad=0)
    narrow = sampler(target, lengths, 200, torch.Generator().manual_seed(3), target)
    wide = sampler(padded, lengths, 200, torch.Generator().manual_seed(3), references)
    assert torch.equal(narrow.lengths, wide.lengths)
    assert torch.equal(narrow.distance, wide.distance)
    torch.testing.assert_close(narrow.log_prob, wide.log_prob)
    inside = torch.arange(narrow.tokens.shape[-1]) < narrow.lengths[..., None]
    assert torch.equal(narrow.tokens[inside], wide.tokens[..., : inside.shape[-1]][inside])


@needs_native
def test_the_binding_refuses_what_it_can_see() -> None:
    words = compiled.require("_C").philox_words
    seed = torch.tensor([1])
    for arguments, threads, message in (
        ((0, 0, 1, 1, 1, seed.data_ptr()), 1, "words: got a null pointer"),
        ((seed.data_ptr(), 0, 1, 1, 1, 0), 1, "words: got a null pointer"),
        ((seed.data_ptr(), 0, -1, 1, 1, 0), 1, "words: got a size"),
        ((seed.data_ptr(), 0, 0, 1, 1, 0), 0, "threads: got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            words(arguments, threads, "")
