"""Alias tables hold exactly the distribution that they were built from."""

import pytest
import torch

from smoothloss.sampling.alias import alias_table


def held(threshold, other):
    """The probabilities that the slots add up to."""
    return torch.zeros_like(threshold).scatter_add(1, other, 1 - threshold).add(threshold) / threshold.shape[1]


@pytest.mark.parametrize("width", [1, 2, 3, 64, 131])
@pytest.mark.parametrize("power", [0, 1, 30])
def test_the_table_holds_the_weights(width, power):
    generator = torch.Generator().manual_seed(width)
    weight = torch.rand(50, width, dtype=torch.float64, generator=generator) ** power
    threshold, other = alias_table(weight)
    torch.testing.assert_close(held(threshold, other), weight / weight.sum(1, keepdim=True), rtol=1e-12, atol=1e-15)
    assert threshold.max() <= 1 + 1e-12
    assert threshold.min() >= -1e-12


def test_what_has_no_weight_is_in_no_slot():
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(200, 20, dtype=torch.float64, generator=generator)
    weight *= torch.rand(200, 20, generator=generator) < torch.linspace(0.05, 1, 200)[:, None]
    threshold, other = alias_table(weight)
    some = weight.sum(1) > 0
    assert (threshold[weight == 0][some[:, None].expand(-1, 20)[weight == 0]] <= 0).all()
    assert (weight.gather(1, other)[some] > 0)[threshold[some] < 1].all()
    torch.testing.assert_close(held(threshold, other)[some], (weight / weight.sum(1, keepdim=True))[some])


def test_a_row_of_zeros_does_no_harm_to_others():
    threshold, other = alias_table(torch.tensor([[0.0, 0.0], [1.0, 3.0]], dtype=torch.float64))
    assert threshold[1].tolist() == [0.5, 1.0]
    assert other[1].tolist() == [1, 1]
    assert threshold.isfinite().all()
