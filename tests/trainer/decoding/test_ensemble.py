from __future__ import annotations

from typing import Any

import pytest
import torch

from smoothloss_trainer.decoding import Ensemble, beam_search, sample


@pytest.mark.parametrize("constraints", [{}, {"suppress_unk": True, "no_repeat_ngram_size": 2}])
def test_models_that_are_equal_write_what_one_writes(table_model: Any, constraints: dict[str, Any]) -> None:
    options = {"beam_size": 3, "max_length": 6, "length_penalty": 1.0, **constraints}
    ensemble = Ensemble([table_model(8, seed=4), table_model(8, seed=4)])
    mixed = beam_search(ensemble, ensemble.encode(torch.arange(20)), 20, **options)
    single = beam_search(table_model(8, seed=4), torch.arange(20), 20, **options)
    for ours, theirs in zip(mixed, single, strict=True):
        assert [hypothesis.tokens for hypothesis in ours] == [hypothesis.tokens for hypothesis in theirs]
        scores = [torch.tensor([hypothesis.score for hypothesis in ranked]) for ranked in (ours, theirs)]
        torch.testing.assert_close(*scores)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_different_models_write_what_their_mean_probability_says(
    table_model: Any, enumerate_all: Any, penalty: float
) -> None:
    members = [table_model(6, seed=seed) for seed in range(3)]
    ensemble, max_length = Ensemble(members), 3

    def log_prob(words: tuple[int, ...]) -> torch.Tensor:
        return torch.stack([member.log_prob(5, words).double().exp() for member in members]).mean(0).log()

    expected = enumerate_all(log_prob, 6, max_length, penalty)
    options = {"beam_size": len(expected), "max_length": max_length, "length_penalty": penalty}
    found = beam_search(ensemble, ensemble.encode(torch.tensor([5])), 1, **options)[0]
    assert [hypothesis.tokens for hypothesis in found] == [tokens for _, tokens in expected]
    torch.testing.assert_close(
        torch.tensor([hypothesis.score for hypothesis in found]), torch.tensor([score for score, _ in expected])
    )


def test_ensembles_can_be_sampled(table_model: Any) -> None:
    ensemble = Ensemble([table_model(6, seed=1), table_model(6, seed=1)])
    options = {"num_samples": 4, "max_length": 5}
    drawn = [
        sample(model, model.encode(torch.arange(3)), 3, generator=torch.Generator().manual_seed(1), **options)
        for model in (ensemble, table_model(6, seed=1))
    ]
    assert [[h.tokens for h in ranked] for ranked in drawn[0]] == [[h.tokens for h in ranked] for ranked in drawn[1]]


@pytest.mark.parametrize("sizes", [(), (6, 7)])
def test_models_with_other_vocabularies_are_refused(table_model: Any, sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"vocabularies of one size, got sizes \["):
        Ensemble([table_model(size) for size in sizes])
