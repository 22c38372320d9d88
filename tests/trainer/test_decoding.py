from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from smoothloss.trainer.decoding import beam_search, greedy_search
from smoothloss.trainer.tasks import State
from smoothloss.trainer.vocabulary import BOS, EOS, PAD


class _State(NamedTuple):
    source: Tensor  # (B,) number of the input
    history: Tensor  # (B,) hash of the tokens so far


class TableModel:
    """Random logits for every (input, history): nothing is Markov, so mixed-up states show."""

    def __init__(self, vocabulary: int, sharpness: float = 2.0, seed: int = 0) -> None:
        self.vocabulary, self.sharpness, self.seed = vocabulary, sharpness, seed

    def logits(self, source: int, history: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + source * 7919 + history)
        return self.sharpness * torch.randn(self.vocabulary, generator=generator)

    def initial_state(self, memory: Tensor) -> State:
        return _State(memory, torch.zeros_like(memory))

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        history = (state.history * self.vocabulary + tokens) % 100_003
        rows = [self.logits(s, h) for s, h in zip(state.source.tolist(), history.tolist(), strict=True)]
        return torch.stack(rows), _State(state.source, history)


def all_hypotheses(model: TableModel, source: int, max_length: int, penalty: float) -> list[tuple[float, list[int]]]:
    """Every sequence of at most `max_length` words, with the score of the definition, best first."""
    words = [token for token in range(model.vocabulary) if token not in (PAD, BOS, EOS)]
    found = []
    for length in range(max_length + 1):
        for sequence in itertools.product(words, repeat=length):
            history, score = BOS, 0.0
            for token in (*sequence, EOS):
                score += float(torch.log_softmax(model.logits(source, history % 100_003), -1)[token])
                history = (history * model.vocabulary + token) % 100_003
            found.append((score / (length + 1) ** penalty, list(sequence)))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_finds_what_brute_force_finds(penalty: float, seed: int) -> None:
    model, max_length = TableModel(6, seed=seed), 3
    expected = all_hypotheses(model, 5, max_length, penalty)
    found = beam_search(
        model, torch.tensor([5]), 1, beam_size=len(expected), max_length=max_length, length_penalty=penalty
    )[0]
    assert [hypothesis.tokens for hypothesis in found] == [tokens for _, tokens in expected]
    torch.testing.assert_close(
        torch.tensor([hypothesis.score for hypothesis in found]), torch.tensor([score for score, _ in expected])
    )


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_hypotheses_do_not_depend_on_the_batch(beam_size: int, penalty: float) -> None:
    model = TableModel(7, sharpness=1.5)
    options = {"beam_size": beam_size, "max_length": 8, "length_penalty": penalty}
    together = beam_search(model, torch.arange(20), 20, **options)
    alone = [beam_search(model, torch.tensor([source]), 1, **options)[0] for source in range(20)]
    assert together == alone
    assert len({len(hypotheses[0].tokens) for hypotheses in together}) > 2, "inputs should end at different steps"


def test_one_beam_is_greedy_search() -> None:
    model = TableModel(6)
    for source, found in enumerate(greedy_search(model, torch.arange(5), 5, max_length=6)):
        history, tokens = BOS, []
        while len(tokens) < 6:
            logits = model.logits(source, history % 100_003)
            logits[[PAD, BOS]] = float("-inf")
            token = int(logits.argmax())
            if token == EOS:
                break
            tokens.append(token)
            history = (history * 6 + token) % 100_003
        assert found.tokens == tokens


def test_a_wider_beam_scores_no_lower_on_average() -> None:
    model = TableModel(12, sharpness=1.0)
    means = []
    for beam_size in (1, 4):
        found = beam_search(model, torch.arange(100), 100, beam_size=beam_size, max_length=6)
        means.append(sum(hypotheses[0].score for hypotheses in found) / 100)
    assert means[1] > means[0]


def test_results_are_ranked_and_end_within_max_length() -> None:
    for hypotheses in beam_search(TableModel(9), torch.arange(10), 10, beam_size=4, max_length=5, length_penalty=1.0):
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == sorted(scores, reverse=True)
        assert len(hypotheses) == 4
        assert all(len(hypothesis.tokens) <= 5 for hypothesis in hypotheses)
        assert not {PAD, BOS, EOS} & {token for hypothesis in hypotheses for token in hypothesis.tokens}


@pytest.mark.parametrize(("option", "value"), [("beam_size", 0), ("max_length", 0), ("length_penalty", -1.0)])
def test_options_out_of_range_are_named(option: str, value: float) -> None:
    options = {"beam_size": 1, "max_length": 3, option: value}
    with pytest.raises(ValueError, match=option):
        beam_search(TableModel(6), torch.tensor([0]), 1, **options)
