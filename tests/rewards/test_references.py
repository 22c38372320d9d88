"""Packing references, taking those of a batch, and what is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothloss.rewards import Cider, References, hamming, sentence_bleu

NESTED = [[[5, 6, 7], [8]], [], [[9, 9], [], [2**31 - 2]]]


def test_packing_keeps_every_sentence():
    references = References(NESTED)
    assert len(references) == 3
    assert references.max_references == 3
    assert references.tolist() == NESTED
    assert references.sentences.num_sentences == 5
    assert references.sentences.tokens.dtype == torch.int32


def test_packing_takes_any_sequence_of_integers():
    nested = [[np.array([5, 6, 7], dtype=np.int16), (8,)], (), ((9, 9), [], np.array([2**31 - 2]))]
    assert References(nested).tolist() == NESTED


def test_select_shares_the_sentences():
    references = References(NESTED)
    chosen = references.select(torch.tensor([2, 0, 2]))
    assert chosen.tolist() == [NESTED[2], NESTED[0], NESTED[2]]
    assert chosen.sentences is references.sentences
    assert chosen.select(torch.tensor([1])).tolist() == [NESTED[0]]


@given(data=st.data())
@settings(deadline=None)
def test_targets_are_their_own_references(data):
    count, width = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 6))
    dtype = data.draw(st.sampled_from([torch.int64, torch.int32]))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    lengths = torch.randint(0, width + 1, (count,), generator=generator, dtype=dtype)
    target = torch.randint(0, 9, (count, width), generator=generator, dtype=dtype)
    target[torch.arange(width) >= lengths[:, None]] = -100  # what is behind a sentence means nothing
    found = References.of_targets(target, lengths)
    nested = [[row[:length].tolist()] for row, length in zip(target, lengths.tolist(), strict=True)]
    assert found.tolist() == nested and found.max_references == min(count, 1)
    candidates = torch.randint(0, 9, (3, count, width), generator=generator)
    for reward in (hamming, sentence_bleu, Cider(References(nested))) if count else (hamming,):
        torch.testing.assert_close(reward(candidates, None, found), reward(candidates, None, References(nested)))


def test_targets_name_what_is_wrong():
    target, lengths = torch.tensor([[5, 6, 7]]), torch.tensor([2])
    with pytest.raises(ValueError, match=r"target: got shape \(3,\), expected \(B, T\)"):
        References.of_targets(target[0], lengths)
    with pytest.raises(ValueError, match=r"lengths: got shape \(2,\)"):
        References.of_targets(target, torch.tensor([2, 2]))
    with pytest.raises(ValueError, match="lengths: got 4 to 4, expected 0 <= length <= 3"):
        References.of_targets(target, torch.tensor([4]))
    with pytest.raises(ValueError, match="target: got the ids -1 to 5"):
        References.of_targets(torch.tensor([[5, -1, 7]]), lengths)
    with pytest.raises(TypeError, match="target: got"):
        References.of_targets(target.float(), lengths)


def test_an_empty_set_is_a_set():
    references = References([])
    assert len(references) == 0 and references.tolist() == []
    assert hamming(torch.zeros(0, 4, dtype=torch.int64), None, references).shape == (0,)


@pytest.mark.parametrize(
    ("token_ids", "error", "message"),
    [
        ([[[1, -2]]], ValueError, "token_ids: got the ids -2 to 1, expected 0 <= id"),
        ([[[2**31 - 1]]], ValueError, "token_ids: got the ids 2147483647 to"),
        ([[[1.5]]], TypeError, "token_ids: got values of type float64"),
        ([[["word"]]], TypeError, "token_ids: got values of type"),
        ([[1, 2]], TypeError, "token_ids: got .*expected lists of integer token ids"),
        ([[[1, [2]]]], TypeError, "token_ids"),
    ],
)
def test_other_nestings_and_values_are_refused(token_ids, error, message):
    with pytest.raises(error, match=message):
        References(token_ids)


def test_select_names_what_is_wrong():
    references = References(NESTED)
    with pytest.raises(TypeError, match="inputs: got list"):
        references.select([0])
    with pytest.raises(ValueError, match=r"inputs: got shape \(1, 1\)"):
        references.select(torch.tensor([[0]]))
    for number in (-1, len(references)):
        with pytest.raises(IndexError, match=f"inputs: got {number}, expected numbers of inputs, 0 <= number < "):
            references.select(torch.tensor([0, number]))


def test_candidates_and_lengths_are_checked():
    references = References(NESTED)
    good = torch.zeros(2, 3, 4, dtype=torch.int64)
    with pytest.raises(TypeError, match="references: got list"):
        hamming(good, None, NESTED)
    with pytest.raises(TypeError, match=r"candidates: got torch\.float32"):
        hamming(good.float(), None, references)
    with pytest.raises(ValueError, match=r"candidates: got shape \(2, 4, 4\).*B = 3"):
        hamming(torch.zeros(2, 4, 4, dtype=torch.int64), None, references)
    with pytest.raises(ValueError, match=r"lengths: got shape \(3,\), expected \(2, 3\)"):
        hamming(good, torch.tensor([1, 2, 3]), references)
    with pytest.raises(ValueError, match="lengths: got 5 for candidate 1, expected 0 to 4"):
        hamming(good, torch.tensor([[1, 5, 3], [0, 0, 0]]), references)
    with pytest.raises(IndexError, match="candidates: got token -1 at position 3 of candidate 2"):
        hamming(torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, -1]]), None, references)
    with pytest.raises(ValueError, match="lengths: got Tensor beside lists"):
        hamming([[1], [2], [3]], torch.tensor([1, 1, 1]), references)


def test_ids_beyond_the_lengths_are_not_read():
    candidates = torch.tensor([[5, 6, -100], [1, -100, 2**40]])
    references = References([[[5, 6]], [[1]]])
    assert hamming(candidates, torch.tensor([2, 1]), references).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_every_form_of_candidates_gives_the_same(dtype):
    references = References([[[5, 6, 7]], [[1, 1]]])
    padded = torch.tensor([[[5, 6, 0], [1, 0, 0]], [[7, 0, 0], [1, 1, 1]]], dtype=dtype)
    lengths = torch.tensor([[2, 1], [1, 3]])
    scores = hamming(padded, lengths, references)
    assert scores.dtype == torch.float64 and scores.tolist() == [[-1, -1], [-3, -1]]
    assert torch.equal(hamming(padded[1], lengths[1], references), scores[1])
    assert torch.equal(hamming([[7], [1, 1, 1]], None, references), scores[1])
    # Any strides.
    assert torch.equal(hamming(padded.mT.contiguous().mT, lengths.int(), references), scores)
