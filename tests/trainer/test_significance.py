from __future__ import annotations

import pytest
import torch

from smoothloss_trainer.significance import interval, paired_bootstrap


def mean(totals: torch.Tensor) -> torch.Tensor:
    return totals[..., 0] / totals[..., 1]


def scores(*values: torch.Tensor) -> torch.Tensor:
    stacked = torch.stack(values)
    return torch.stack((stacked, torch.ones_like(stacked)), -1)


def test_a_clear_difference_is_significant_and_none_is_not() -> None:
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0))
    base = scores(noise)
    better = paired_bootstrap(mean, scores(noise + 0.5), base)
    assert better.difference == pytest.approx(0.5) and better.p_value < 0.002
    assert better.low <= 0.5 <= better.high
    same = paired_bootstrap(mean, base, base)
    assert (same.difference, same.p_value) == (0.0, 1.0)


def test_pairing_sees_what_is_hidden_by_the_sentences_own_difficulty() -> None:
    """The interval is that of the differences: their deviation over the root of N."""
    generator = torch.Generator().manual_seed(1)
    hard = 100 * torch.randn(900, generator=generator)
    step = 0.2 + torch.randn(900, generator=generator)
    found = paired_bootstrap(mean, scores(hard + step), scores(hard))
    width = 2 * 1.96 * step.std().item() / 30
    assert found.high - found.low == pytest.approx(width, rel=0.1)
    normal = torch.distributions.Normal(0.0, 1.0)
    z = step.mean() / (step.std() / 30)
    assert found.p_value == pytest.approx(2 * (1 - normal.cdf(z.abs())).item(), abs=0.01)


def test_p_values_are_uniform_without_a_difference() -> None:
    """A tenth of the experiments in which nothing differs is significant at 10 %."""
    generator = torch.Generator().manual_seed(2)
    found = [
        paired_bootstrap(mean, scores(torch.randn(60, generator=generator)), scores(torch.zeros(60)), resamples=200)
        for _ in range(300)
    ]
    share = sum(comparison.p_value <= 0.1 for comparison in found) / len(found)
    assert 0.05 < share < 0.17


def test_seeds_are_averaged_and_may_differ_in_number() -> None:
    noise = torch.randn(3, 50, generator=torch.Generator().manual_seed(3))
    found = paired_bootstrap(mean, scores(*noise), scores(noise[0], noise[1]), resamples=100)
    assert found.difference == pytest.approx((noise.mean() - noise[:2].mean()).item(), abs=1e-6)


def test_other_sentences_are_refused() -> None:
    with pytest.raises(ValueError, match="baseline: got 5 sentences, expected 4"):
        paired_bootstrap(mean, torch.ones(1, 4, 2), torch.ones(1, 5, 2))


def test_the_interval_holds_the_choice_of_the_seed() -> None:
    """Seeds that differ by far more than sentences do: the deviation of a mean of S values, drawn from those S."""
    generator = torch.Generator().manual_seed(4)
    levels = torch.randn(16, generator=generator)
    system = scores(*(level + 0.01 * torch.randn(400, generator=generator) for level in levels))
    found = paired_bootstrap(mean, system, scores(torch.zeros(400)))
    width = 2 * 1.96 * levels.std(correction=0).item() / 4
    assert found.high - found.low == pytest.approx(width, rel=0.1)
    low, high = interval(mean, system)
    assert high - low == pytest.approx(width, rel=0.1) and low < levels.mean() < high
