"""What rewards answer to arguments that are none, and that NumPy's numbers and arrays are as good as Python's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from smoothloss.rewards import Cider, References, bleu_statistics, corpus_bleu, hamming, rouge_l, sentence_bleu
from smoothloss.rewards._candidates import problem

REFERENCES = References([[[1, 2, 3]], [[2, 3]]])
TOKENS = torch.ones(2, 3, dtype=torch.int64)

MISTAKES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: sentence_bleu(None, None, REFERENCES), TypeError, "candidates: got NoneType"),  # type: ignore[arg-type]
    (lambda: sentence_bleu(5, None, REFERENCES), TypeError, "candidates: got int"),  # type: ignore[arg-type]
    (lambda: hamming("ab", None, REFERENCES), TypeError, "candidates: got str"),  # type: ignore[arg-type]
    (lambda: hamming({1: 2}, None, REFERENCES), TypeError, "candidates: got dict"),  # type: ignore[arg-type]
    (lambda: hamming([[1, "a"], [2]], None, REFERENCES), TypeError, "candidates: got values of type"),  # type: ignore[list-item]
    (lambda: hamming(np.array([1, 2]), None, REFERENCES), TypeError, "candidates: got object of type"),  # type: ignore[arg-type]
    (lambda: hamming(TOKENS.float(), None, REFERENCES), TypeError, r"candidates: got torch\.float32"),
    (lambda: hamming(TOKENS, 3, REFERENCES), TypeError, "lengths: got int, expected a torch.Tensor"),  # type: ignore[arg-type]
    (lambda: hamming(TOKENS, [3, 3], REFERENCES), TypeError, "lengths: got list"),  # type: ignore[arg-type]
    (lambda: hamming(TOKENS, torch.tensor([4, 1]), REFERENCES), ValueError, "lengths: got 4 for candidate 0"),
    (lambda: hamming(TOKENS, torch.tensor([3, -1]), REFERENCES), ValueError, "lengths: got -1 for candidate 1"),
    (lambda: hamming([[1], [2]], 2, REFERENCES), ValueError, "lengths: got int beside lists"),  # type: ignore[arg-type]
    (lambda: hamming(TOKENS, None, None), TypeError, "references: got NoneType"),  # type: ignore[arg-type]
    (lambda: sentence_bleu(TOKENS, None, REFERENCES, n="4"), TypeError, "n: got '4'"),  # type: ignore[arg-type]
    (lambda: sentence_bleu(TOKENS, None, REFERENCES, n=9), ValueError, "n: got 9, expected at most 8"),
    (lambda: sentence_bleu(TOKENS, None, REFERENCES, k="x"), TypeError, "k: got 'x'"),  # type: ignore[arg-type]
    (lambda: bleu_statistics(TOKENS, None, REFERENCES, n=None), TypeError, "n: got None"),  # type: ignore[arg-type]
    (lambda: corpus_bleu([1]), TypeError, "statistics: got list"),  # type: ignore[arg-type]
    (lambda: rouge_l(TOKENS, None, REFERENCES, beta="x"), TypeError, "beta: got 'x'"),  # type: ignore[arg-type]
    (lambda: Cider(REFERENCES, sigma=None), TypeError, "sigma: got None"),  # type: ignore[arg-type]
    (lambda: References(None), TypeError, "token_ids: got NoneType, expected for each input"),  # type: ignore[arg-type]
    (lambda: References([1]), TypeError, "token_ids: got list, expected for each input"),  # type: ignore[list-item]
    (lambda: REFERENCES.select([0]), TypeError, "inputs: got list"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "error", "message"), MISTAKES)
def test_a_mistake_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_numpys_numbers_are_numbers() -> None:
    lists = [[1, 2, 3], [2, 3, 1]]
    arrays = References([[np.array([1, 2, 3])], [np.array([2, 3], np.uint8)]])
    assert arrays.tolist() == REFERENCES.tolist()
    actual = sentence_bleu(np.array(lists), None, arrays, n=np.int64(2), k=np.float32(0.5))  # type: ignore[arg-type]
    assert torch.equal(actual, sentence_bleu(lists, None, REFERENCES, n=2, k=0.5))
    actual = rouge_l([np.array(row) for row in lists], None, arrays, beta=np.array(1.5))  # type: ignore[arg-type, misc]
    assert torch.equal(actual, rouge_l(lists, None, REFERENCES, beta=1.5))
    assert Cider(arrays, sigma=np.float32(2.0)).sigma == 2.0


def test_samples_share_the_lengths_of_their_inputs() -> None:
    """As a sampler gives them, without a copy; what is wrong with them is said all the same."""
    tokens, lengths = torch.tensor([[[1, 2, 3], [2, 3, 1]], [[3, 2, 1], [2, 2, 2]]]), torch.tensor([3, 1])
    corpus = Cider(REFERENCES)
    for reward in (sentence_bleu, rouge_l, hamming, corpus):
        expected = reward(tokens, lengths.repeat(2, 1), REFERENCES)
        assert torch.equal(reward(tokens, lengths.expand(2, 2), REFERENCES), expected)
    assert not torch.equal(hamming(tokens, None, REFERENCES), hamming(tokens, lengths.expand(2, 2), REFERENCES))
    for shared in (lengths.expand(2, 2), lengths.expand(1, 2), lengths):
        some = tokens[: len(shared)] if shared.dim() == 2 else tokens[0]
        assert problem(some, shared, REFERENCES).lengths.data_ptr() == lengths.data_ptr()
    assert hamming(tokens[:0], lengths.expand(0, 2), REFERENCES).shape == (0, 2)
    with pytest.raises(ValueError, match="lengths: got 4 for candidate 1, expected 0 to 3"):
        hamming(tokens, torch.tensor([3, 4]).expand(2, 2), REFERENCES)
