"""Sets of tokens against Python's."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from smoothloss.sampling.sets import TokenSets

LARGEST = 2**63 - 1
TOKENS = st.one_of(st.integers(0, 9), st.sampled_from([LARGEST, LARGEST - 1, 2**31, 2**32 + 1]))


@st.composite
def rows(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, width, asked = draw(st.integers(1, 4)), draw(st.integers(0, 12)), draw(st.integers(0, 5))
    tokens = torch.tensor([[draw(TOKENS) for _ in range(width)] for _ in range(batch)], dtype=torch.int64)
    keep = torch.tensor([[draw(st.booleans()) for _ in range(width)] for _ in range(batch)], dtype=torch.bool)
    wanted = st.one_of(TOKENS, st.sampled_from([-1, -100, -LARGEST - 1]))
    questions = torch.tensor([[draw(wanted) for _ in range(asked)] for _ in range(batch)], dtype=torch.int64)
    return tokens.view(batch, width), keep.view(batch, width), questions.view(batch, asked)


@given(rows())
def test_sets_are_pythons_in_the_order_of_first_appearance(
    case: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    tokens, keep, questions = case
    sets = TokenSets(tokens, keep)
    rank, inside = sets.find(questions)
    for b in range(len(tokens)):
        expected = list(dict.fromkeys(tokens[b][keep[b]].tolist()))
        assert int(sets.size[b]) == len(expected)
        assert sets.tokens[b, : len(expected)].tolist() == expected
        assert (sets.tokens[b, len(expected) :] < 0).all()
        for question, place, is_in in zip(questions[b].tolist(), rank[b].tolist(), inside[b].tolist(), strict=True):
            assert is_in == (question in expected)
            assert not is_in or expected[place] == question
    places = torch.zeros(2, len(tokens), 3, dtype=torch.int64)
    assert torch.equal(sets[places], sets.tokens[:, :1].expand(2, -1, 3))
