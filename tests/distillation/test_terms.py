"""What two distributions differ by: near each other, at zero, and far apart."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from smoothloss.distillation import _terms as terms
from smoothloss.targets.shares import shares


def near(distance: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    log_q = (3 * torch.randn(50, 20, generator=generator, dtype=torch.float64)).log_softmax(-1)
    log_p = (log_q + distance * torch.randn(50, 20, generator=generator, dtype=torch.float64)).log_softmax(-1)
    return log_q, log_p


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("distance", [1e-3, 1e-2, 1.0])
def test_jensen_shannon_of_near_ones_keeps_its_digits(beta: float, distance: float) -> None:
    """The logarithm of m, taken as such, would lose them: its rounding is one of 1, and the result of distance^2."""
    exact = near(distance)
    log_q, log_p = (value.float() for value in exact)
    wide = terms.jensen_shannon(log_q.double(), log_p.double(), beta)
    log_m = torch.logaddexp(log_q + math.log(beta), log_p + math.log(1 - beta))
    plain = (beta * log_q.exp() * (log_q - log_m) + (1 - beta) * log_p.exp() * (log_p - log_m)).sum(-1)
    error, theirs = ((value - wide).abs().max() for value in (terms.jensen_shannon(log_q, log_p, beta), plain))
    assert error < theirs or theirs == 0
    assert error < 1e-7 * max(distance, 1e-3)


@pytest.mark.parametrize("beta", [0.2, 0.5])
def test_the_derivative_by_log_p(beta: float) -> None:
    log_q, log_p = near(0.5)
    log_p[:, :5] = log_q[:, :5]  # where both branches meet
    log_p[:, 5], log_q[:, 6] = -math.inf, -math.inf
    leaf = log_p.clone().requires_grad_()
    (grad,) = torch.autograd.grad(terms.jensen_shannon(log_q, leaf, beta).sum(), leaf)
    log_m = torch.logaddexp(log_q + math.log(beta), log_p + math.log(1 - beta))
    expected = (1 - beta) * log_p.exp() * (log_p - log_m)
    torch.testing.assert_close(grad, expected.nan_to_num(0.0))


@given(
    q=st.lists(st.floats(-800, 0), min_size=1, max_size=5), p=st.lists(st.floats(-800, 0), min_size=5, max_size=5),
    beta=st.floats(0.01, 0.99), dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_no_size_of_a_log_probability_is_too_much(
    q: list[float], p: list[float], beta: float, dtype: torch.dtype
) -> None:
    log_q = torch.tensor(q, dtype=dtype)
    log_p = torch.tensor(p[: len(q)], dtype=dtype, requires_grad=True)
    for value in (
        terms.jensen_shannon(log_q, log_p, beta), terms.forward_kl(log_q, log_p), terms.reverse_kl(log_q, log_p)
    ):  # fmt: skip
        (grad,) = torch.autograd.grad(value, log_p)
        assert value.isfinite() and grad.isfinite().all()


def test_zeros_on_either_side() -> None:
    nothing, one = torch.tensor([-math.inf]), torch.tensor([0.0])
    for log_q, log_p, forward, reverse, middle in (
        (nothing, nothing, 0.0, 0.0, 0.0), (nothing, one, 0.0, math.inf, -0.5 * math.log(0.5)),
        (one, nothing, math.inf, 0.0, -0.5 * math.log(0.5)), (one, one, 0.0, 0.0, 0.0),
    ):  # fmt: skip
        assert terms.forward_kl(log_q, log_p) == forward
        assert terms.reverse_kl(log_q, log_p) == reverse
        assert terms.cross_entropy(log_q, log_p) == reverse
        assert terms.jensen_shannon(log_q, log_p, 0.5).item() == pytest.approx(middle)


def test_shares() -> None:
    log_probs = torch.tensor([[0.2, 0.6, 0.9], [0.0, 0.0, 0.5], [0.1, 0.2, 0.3]]).log()
    filled = torch.tensor([[True, True, False], [True, True, False], [False, False, False]])
    expected = torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(shares(log_probs, filled).exp(), expected)
