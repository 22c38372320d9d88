from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from smoothloss_trainer.decoding import Hypothesis, beam_search, greedy_search
from smoothloss_trainer.vocabulary import BOS, EOS, PAD, UNK


def assert_same(found: list[Hypothesis], expected: list[tuple[float, list[int]]]) -> None:
    assert [hypothesis.tokens for hypothesis in found] == [tokens for _, tokens in expected]
    torch.testing.assert_close(
        torch.tensor([hypothesis.score for hypothesis in found]), torch.tensor([score for score, _ in expected])
    )


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_finds_what_brute_force_finds(
    table_model: Any, enumerate_all: Any, penalty: float, seed: int
) -> None:
    model, max_length = table_model(6, seed=seed), 3
    expected = enumerate_all(partial(model.log_prob, 5), 6, max_length, penalty)
    options = {"beam_size": len(expected), "max_length": max_length, "length_penalty": penalty}
    assert_same(beam_search(model, torch.tensor([5]), 1, **options)[0], expected)


@pytest.mark.parametrize("size", [0, 1, 2, 3])
@pytest.mark.parametrize("suppress_unk", [False, True])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_beam_finds_all_that_is_allowed_and_nothing_else(
    table_model: Any, enumerate_all: Any, size: int, suppress_unk: bool, penalty: float
) -> None:
    def allowed(words: tuple[int, ...]) -> bool:
        ngrams = [words[i : i + size] for i in range(len(words) - size + 1)] if size else []
        return len(ngrams) == len(set(ngrams)) and not (suppress_unk and UNK in words)

    model, max_length = table_model(6), 4
    options = {"suppress_unk": suppress_unk, "no_repeat_ngram_size": size, "length_penalty": penalty}
    # A beam as wide as all there is to find, and wider: the rest stays empty.
    found = beam_search(model, torch.arange(2), 2, beam_size=130, max_length=max_length, **options)
    for source in range(2):
        expected = enumerate_all(partial(model.log_prob, source), 6, max_length, penalty, allowed)
        assert len(expected) < 130
        assert_same(found[source], expected)


@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
@pytest.mark.parametrize("constraints", [{}, {"suppress_unk": True, "no_repeat_ngram_size": 2}])
def test_hypotheses_do_not_depend_on_the_batch(
    table_model: Any, beam_size: int, penalty: float, constraints: dict[str, Any]
) -> None:
    model = table_model(7, sharpness=1.5)
    options = {"beam_size": beam_size, "max_length": 8, "length_penalty": penalty, **constraints}
    together = beam_search(model, torch.arange(20), 20, **options)
    alone = [beam_search(model, torch.tensor([source]), 1, **options)[0] for source in range(20)]
    assert together == alone
    assert len({len(hypotheses[0].tokens) for hypotheses in together}) > 2, "inputs should end at different steps"


def test_one_beam_is_greedy_search(table_model: Any) -> None:
    model = table_model(6)
    for source, found in enumerate(greedy_search(model, torch.arange(5), 5, max_length=6)):
        tokens: list[int] = []
        while len(tokens) < 6:
            log_prob = model.log_prob(source, tokens)
            log_prob[[PAD, BOS]] = float("-inf")
            token = int(log_prob.argmax())
            if token == EOS:
                break
            tokens.append(token)
        assert found.tokens == tokens


def test_a_wider_beam_scores_no_lower_on_average(table_model: Any) -> None:
    model = table_model(12, sharpness=1.0)
    means = []
    for beam_size in (1, 4):
        found = beam_search(model, torch.arange(100), 100, beam_size=beam_size, max_length=6)
        means.append(sum(hypotheses[0].score for hypotheses in found) / 100)
    assert means[1] > means[0]


def test_results_are_ranked_and_end_within_max_length(table_model: Any) -> None:
    options = {"beam_size": 4, "max_length": 5, "length_penalty": 1.0}
    for hypotheses in beam_search(table_model(9), torch.arange(10), 10, **options):
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == sorted(scores, reverse=True)
        assert len(hypotheses) == 4
        assert all(len(hypothesis.tokens) <= 5 for hypothesis in hypotheses)
        assert not {PAD, BOS, EOS} & {token for hypothesis in hypotheses for token in hypothesis.tokens}


@pytest.mark.parametrize(
    ("option", "value"), [("beam_size", 0), ("max_length", 0), ("length_penalty", -1.0), ("no_repeat_ngram_size", -1)]
)
def test_options_out_of_range_are_named(table_model: Any, option: str, value: float) -> None:
    options = {"beam_size": 1, "max_length": 3, option: value}
    with pytest.raises(ValueError, match=option):
        beam_search(table_model(6), torch.tensor([0]), 1, **options)
