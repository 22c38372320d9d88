from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from smoothloss_trainer.decoding import greedy_search, sample
from smoothloss_trainer.decoding.sampling import draw
from smoothloss_trainer.vocabulary import BOS, EOS, PAD, UNK


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def truncated(probability: list[float], top_k: int, top_p: float) -> dict[int, float]:
    """The definition: the most probable tokens in order, first k, of these the fewest with mass p; renormalised."""
    order = sorted(range(len(probability)), key=lambda token: -probability[token])[: top_k or None]
    total = math.fsum(probability[token] for token in order)
    kept: list[int] = []
    while math.fsum(probability[token] for token in kept) < top_p * total:
        kept.append(order[len(kept)])
    mass = math.fsum(probability[token] for token in kept)
    return {token: probability[token] / mass for token in kept}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 3, 50])
@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.8, 1.0])
def test_a_grid_of_numbers_gives_each_token_its_share(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(9, generator=seeded(3), dtype=torch.float64)
    logits[4] = float("-inf")
    expected = truncated((logits / temperature).softmax(-1).tolist(), top_k, top_p)
    count = 20_000
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    tokens = draw(logits.expand(count, -1), grid, temperature=temperature, top_k=top_k, top_p=top_p)
    shares = torch.bincount(tokens, minlength=9) / count
    assert set(shares.nonzero().view(-1).tolist()) == {token for token, share in expected.items() if share > 0}
    for token, share in expected.items():
        assert abs(float(shares[token]) - share) <= 1.01 / count


def test_rows_are_drawn_from_their_own_distributions_up_to_the_ends() -> None:
    log_prob = torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.0, 0.5], [0.0, 0.0, 1.0]]).log()
    ends = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert [draw(log_prob, ends[[end] * 3]).tolist() for end in (0, 1)] == [[2, 0, 2], [0, 2, 2]]


def chi_square(counts: Counter[Any], expected: dict[Any, float], total: int) -> tuple[float, float]:
    """The statistic, rare outcomes pooled, and its 1 - 1e-6 quantile (Wilson and Hilferty's approximation)."""
    common = {key: share for key, share in expected.items() if share * total >= 10}
    cells = [(counts[key], share * total) for key, share in common.items()]
    rest = 1.0 - math.fsum(common.values())
    if rest * total >= 10:
        cells.append((total - sum(counts[key] for key in common), rest * total))
    degrees = len(cells) - 1
    limit = degrees * (1 - 2 / (9 * degrees) + 4.753 * math.sqrt(2 / (9 * degrees))) ** 3
    return sum((seen - share) ** 2 / share for seen, share in cells), limit


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 2},
        {"top_p": 0.6},
        {"temperature": 1.5, "top_k": 3, "top_p": 0.9, "suppress_unk": True, "no_repeat_ngram_size": 2},
    ],
)
def test_sequences_follow_the_distribution(table_model: Any, enumerate_all: Any, options: dict[str, Any]) -> None:
    model, max_length, count = table_model(6, sharpness=1.0), 3, 4000

    def log_prob(words: tuple[int, ...]) -> Tensor:
        """What the next token is drawn from, by the definition."""
        allowed = model.log_prob(2, words).clone()
        allowed[[PAD, BOS, *([UNK] if "suppress_unk" in options else [])]] = float("-inf")
        size = options.get("no_repeat_ngram_size", 0)
        for token in range(6) if size else ():
            longer = (*words, token)
            ngrams = [longer[i : i + size] for i in range(len(longer) - size + 1)]
            if len(set(ngrams)) < len(ngrams):
                allowed[token] = float("-inf")
        if len(words) == max_length:
            return torch.full((6,), float("-inf")).index_fill(0, torch.tensor([EOS]), 0.0)
        probability = (allowed.double() / options.get("temperature", 1.0)).softmax(-1).tolist()
        kept = truncated(probability, options.get("top_k", 0), options.get("top_p", 1.0))
        return torch.tensor([kept.get(token, 0.0) for token in range(6)]).log()

    expected = {tuple(words): math.exp(score) for score, words in enumerate_all(log_prob, 6, max_length)}
    assert math.fsum(expected.values()) == pytest.approx(1.0)
    drawn = sample(model, torch.tensor([2]), 1, max_length=max_length, num_samples=count, generator=seeded(), **options)
    counts = Counter(tuple(hypothesis.tokens) for hypothesis in drawn[0])
    assert sum(counts.values()) == count
    assert all(expected[words] > 0 for words in counts), "nothing outside the truncation"
    statistic, limit = chi_square(counts, expected, count)
    assert statistic < limit


def test_one_generator_repeats_the_samples_whatever_the_batches(table_model: Any) -> None:
    model = table_model(9, sharpness=1.0)
    options = {"num_samples": 3, "max_length": 6, "top_p": 0.9}
    together = sample(model, torch.arange(10), 10, generator=seeded(5), **options)
    assert sample(model, torch.arange(10), 10, generator=seeded(5), **options) == together
    assert sample(model, torch.arange(10), 10, generator=seeded(6), **options) != together
    generator = seeded(5)
    parts = torch.arange(10).split(4)
    assert [
        hypotheses for part in parts for hypotheses in sample(model, part, len(part), generator=generator, **options)
    ] == together


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_scores_are_the_models_own_and_ranked(table_model: Any, penalty: float) -> None:
    model = table_model(8)
    options = {"temperature": 2.0, "top_k": 4, "length_penalty": penalty, "no_repeat_ngram_size": 1}
    drawn = sample(model, torch.arange(5), 5, max_length=4, num_samples=6, generator=seeded(), **options)
    for source, hypotheses in enumerate(drawn):
        assert len(hypotheses) == 6
        scores = [hypothesis.score for hypothesis in hypotheses]
        assert scores == sorted(scores, reverse=True)
        for hypothesis in hypotheses:
            tokens = (*hypothesis.tokens, EOS)
            log_prob = partial(model.log_prob, source)
            total = sum(float(log_prob(tokens[:place])[token]) for place, token in enumerate(tokens))
            assert hypothesis.score == pytest.approx(total / len(tokens) ** penalty, rel=1e-5)


def test_a_cold_sampler_is_greedy_search(table_model: Any) -> None:
    model = table_model(8)
    greedy = greedy_search(model, torch.arange(8), 8, max_length=5)
    for options in ({"temperature": 1e-6}, {"top_k": 1}, {"top_p": 1e-6}):
        drawn = sample(model, torch.arange(8), 8, max_length=5, generator=seeded(), **options)
        assert [hypotheses[0].tokens for hypotheses in drawn] == [hypothesis.tokens for hypothesis in greedy]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_samples", 0),
        ("temperature", 0.0),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("length_penalty", -1.0),
        ("max_length", 0),
    ],
)
def test_options_out_of_range_are_named(table_model: Any, option: str, value: float) -> None:
    with pytest.raises(ValueError, match=option):
        sample(table_model(6), torch.tensor([0]), 1, **{"max_length": 3, option: value})
