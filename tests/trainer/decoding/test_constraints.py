from __future__ import annotations

import random

import pytest
import torch

from smoothloss_trainer.decoding.constraints import Constraints
from smoothloss_trainer.vocabulary import BOS, EOS, PAD, UNK


def forbidden(constraints: Constraints, words: list[list[int]], vocabulary: int) -> list[set[int]]:
    log_prob = torch.randn(len(words), vocabulary)
    before = log_prob.clone()
    allowed = constraints.apply(log_prob, torch.tensor([[BOS, *row] for row in words]))
    assert torch.equal(log_prob, before)
    kept = allowed > float("-inf")
    assert torch.equal(allowed[kept], log_prob[kept]), "what is allowed keeps its log-probability"
    return [set((~row).nonzero().view(-1).tolist()) for row in kept]


def completing(words: list[int], size: int) -> set[int]:
    """The words that would make an n-gram of this size occur twice."""
    seen = {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}
    return {ngram[-1] for ngram in seen if list(ngram[:-1]) == words[len(words) - size + 1 :]}


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 7, 20])
def test_ngrams_are_blocked_as_by_definition(size: int, length: int) -> None:
    draw = random.Random(size * 100 + length)
    words = [draw.choices(range(UNK, 7), k=length) for _ in range(50)]
    found = forbidden(Constraints(max_length=30, no_repeat_ngram_size=size), words, 8)
    assert found == [{PAD, BOS} | completing(row, size) for row in words]
    if length > 7:
        assert any(row != {PAD, BOS} for row in found)


def test_special_tokens_are_suppressed() -> None:
    assert forbidden(Constraints(3), [[4]], 6) == [{PAD, BOS}]
    assert forbidden(Constraints(3, suppress_unk=True), [[4]], 6) == [{PAD, BOS, UNK}]


def test_only_the_end_follows_the_longest_output() -> None:
    assert forbidden(Constraints(2), [[4, 5], [5, 5]], 6) == [set(range(6)) - {EOS}] * 2


@pytest.mark.parametrize(("name", "value"), [("max_length", 0), ("no_repeat_ngram_size", -1)])
def test_numbers_out_of_range_are_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must .*, got {value}"):
        Constraints(**{"max_length": 3, name: value})
