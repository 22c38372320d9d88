"""What a model may do with its logits, done with its hidden states: the same loss and gradients, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import smoothloss.functional as F
from smoothloss.integrations._hidden_logits import Head, HiddenLogits
from smoothloss.integrations._loss import LossOfLogits
from smoothloss.testing import make_table

B, T, D, V = 2, 5, 4, 7
STEPS: dict[str, Callable[[Any], Any]] = {
    "contiguous": lambda z: z.contiguous(),
    "device": lambda z: z.to(torch.device("cpu")),
    "scale": lambda z: z * 1.7,
    "scale from the left": lambda z: 2 * z,
    "quotient": lambda z: z / 3.0,
    "shift": lambda z: z[..., :-1, :],
    "shift, by rows": lambda z: z[:, 1:, :],
    "last": lambda z: z[:, -3:],
}
TANH: list[Callable[[Any], Any]] = [lambda z: torch.tanh(z), lambda z: z.tanh()]
FLAT: list[Callable[[Any], Any]] = [
    lambda z: z.view(-1, V),
    lambda z: z.reshape(-1, z.size(-1)),
    lambda z: z.view((-1, z.shape[-1])),
    lambda z: z.contiguous().view(z.shape[0] * z.shape[1], -1),
]


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden states, a head's weight and bias, and one more bias."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(B, T, D, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).requires_grad_()
    bias, more = (torch.randn(V, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    return hidden, weight, bias, more


def loss_of_hidden(logits: HiddenLogits, target: Tensor, ignore_index: int, reduction: str) -> Tensor:
    head = logits.head
    return F.linear_cross_entropy(
        logits.hidden, head.weight, target, linear_bias=head.bias, logit_scale=head.logit_scale, softcap=head.after,
        ignore_index=ignore_index, reduction=reduction,
    )  # fmt: skip


@given(
    steps=st.lists(st.sampled_from(sorted(STEPS)), max_size=5),
    capped=st.lists(st.sampled_from(["scale", "quotient", "shift"]), max_size=3),
    tanh=st.sampled_from([None, *TANH]),
    flat=st.sampled_from(FLAT),
    biased=st.booleans(),
    reduction=st.sampled_from(["mean", "sum", "none"]),
)
def test_whatever_a_model_does_with_its_logits(
    steps: list[str], capped: list[str], tanh: Any, flat: Any, biased: bool, reduction: str
) -> None:
    hidden, weight, bias, more = problem()

    def treated(logits: Any) -> Any:
        logits = logits + more.view(1, -1) if biased else logits
        for name in steps:
            logits = STEPS[name](logits)
        if tanh is not None:
            logits = tanh(logits)
            for name in capped:
                logits = STEPS[name](logits)
        return logits

    made = treated(torch.nn.functional.linear(hidden, weight, bias))
    assume(made.shape[1])
    target = torch.arange(made.shape[0] * made.shape[1]) % V
    target[::3] = -100
    kept = treated(HiddenLogits(hidden, Head(weight, bias), loss_of_hidden))
    assert (kept.shape, kept.dim(), kept.device) == (made.shape, made.dim(), made.device)
    torch.testing.assert_close(kept.logits(), made)
    expected = torch.nn.functional.cross_entropy(flat(made.contiguous()), target, reduction=reduction)
    got = torch.nn.CrossEntropyLoss(reduction=reduction)(flat(kept), target)
    torch.testing.assert_close(got, expected, equal_nan=True)
    leaves = (hidden, weight, bias, more) if biased else (hidden, weight, bias)
    seed = torch.linspace(1, 2, expected.numel(), dtype=torch.float64).view_as(expected)
    wanted = torch.autograd.grad(expected, leaves, seed)
    for gradient, right in zip(torch.autograd.grad(got, leaves, seed), wanted, strict=True):
        torch.testing.assert_close(gradient, right, equal_nan=True)


REFUSED: dict[str, Callable[[Any], Any]] = {
    "a LoRA layer's output": lambda z: z + torch.zeros(B, T, V),
    "a bias after a scale": lambda z: z * 2.0 + torch.zeros(V),
    "a number": lambda z: z + 1.0,
    "a negative scale": lambda z: z * -1.0,
    "a scale of 0": lambda z: z * 0.0,
    "a learnt scale": lambda z: z * torch.ones((), requires_grad=True),
    "some classes": lambda z: z[..., :3],
    "one class": lambda z: z[0, 0, 0],
    "a view of other classes": lambda z: z.view(-1, V - 1),
    "two caps": lambda z: z.tanh().tanh(),
    "softmax": lambda z: torch.softmax(z, -1),
    "log_softmax": lambda z: torch.nn.functional.log_softmax(z, dim=-1),
    "classes in the middle": lambda z: torch.nn.functional.cross_entropy(z, torch.zeros(B, V).long()),
    "smoothed by torch": lambda z: torch.nn.functional.cross_entropy(
        z.view(-1, V), torch.zeros(B * T).long(), label_smoothing=0.1
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_followed_is_refused(what: str) -> None:
    hidden, weight, bias, _ = problem()
    logits = HiddenLogits(hidden, Head(weight, bias), loss_of_hidden)
    with pytest.raises(TypeError, match="logits that are not computed in training"):
        REFUSED[what](logits)


def test_conversions_are_those_of_the_logits_and_not_of_the_loss() -> None:
    hidden, weight, bias, _ = (tensor.detach().bfloat16() for tensor in problem())
    logits = HiddenLogits(hidden, Head(weight, bias), loss_of_hidden)
    made = torch.nn.functional.linear(hidden, weight, bias)
    assert torch.equal(logits.logits(), made)
    assert torch.equal((logits.float() * 1.3).logits(), made.float() * 1.3)
    assert torch.equal((logits.to(torch.float64) / 1.3).logits(), made.double() / 1.3)
    target = torch.arange(B * T) % V
    losses = [torch.nn.functional.cross_entropy(z.view(-1, V), target) for z in (logits, logits.float())]
    assert torch.equal(*losses)
    assert losses[0].dtype == torch.float32


def test_positions_are_known_through_slices_and_masks() -> None:
    hidden, weight, bias, _ = problem()
    logits = HiddenLogits(hidden, Head(weight, bias), loss_of_hidden)
    mask = torch.tensor([[True, False, True, True], [False, False, True, True]])
    left = logits[..., :-1, :][mask].contiguous().view(-1, V)
    assert left.positions.flatten().tolist() == [0, 2, 3, 7, 8]
    assert torch.equal(left.hidden, hidden.view(-1, D)[left.positions.flatten()])
    assert left.count == B * T


def test_a_method_that_is_not_there_says_why() -> None:
    hidden, weight, bias, _ = problem()
    logits = HiddenLogits(hidden, Head(weight, bias), loss_of_hidden)
    with pytest.raises(AttributeError, match=r"got \.argmax of logits that are not computed in training"):
        logits.argmax(-1)
    assert repr(logits) == "HiddenLogits(shape=(2, 5, 7)): logits that were not computed"


def test_what_belongs_to_the_classes_is_brought_to_where_the_logits_are() -> None:
    options = {"table": make_table(V, k=2), "alpha": 0.1, "weight": torch.ones(V), "label_smoothing": 0.1}
    for prior in (torch.full((V,), 1 / V), np.full(V, 1 / V)):
        loss = LossOfLogits({**options, "prior": prior})
        assert loss(torch.randn(3, V), torch.arange(3)) > 0
        assert loss(torch.randn(3, V, device="meta"), torch.arange(3, device="meta")).is_meta
