"""Gradients that are differentiated in turn, in all of torch's ways: right, or refused, never silently wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import smoothloss.functional as F
from smoothloss import distillation
from smoothloss.distillation import Teacher
from smoothloss.ops.transforms import DOUBLE_BACKWARD

Loss = Callable[[Tensor, str], Tensor]
V, D = 6, 4
Y = torch.tensor([1, 2, 3])
GENERATOR = torch.Generator().manual_seed(0)
HIDDEN, WEIGHT, LOGITS = (
    torch.randn(n, d, generator=GENERATOR, dtype=torch.float64) for n, d in ((3, D), (V, D), (3, V))
)
TEACHER = Teacher.from_logits(LOGITS, 2)
DIVERGENCE = {"divergence": "jensen_shannon", "missing": "uniform", "reduction": "none"}


def _on_logits(loss: Callable[..., Tensor]) -> Loss:
    return lambda hidden, impl: loss(hidden @ WEIGHT.T, impl=impl)


LOSSES: dict[str, Loss] = {
    "mean": _on_logits(lambda z, **how: F.cross_entropy(z, Y, **how)[None]),
    "none": _on_logits(lambda z, **how: F.cross_entropy(z, Y, reduction="none", **how)),
    "statistics": _on_logits(lambda z, **how: F.token_statistics(z, TEACHER.indices, **how).entropy),
    "divergence": _on_logits(lambda z, **how: distillation.loss(z, TEACHER, **DIVERGENCE, **how)),
    "linear, fast": lambda h, impl: F.linear_cross_entropy(h, WEIGHT, Y, impl=impl)[None],
    "linear, low": lambda h, impl: F.linear_cross_entropy(h, WEIGHT, Y, memory="low", impl=impl)[None],
    "linear, none": lambda h, impl: F.linear_cross_entropy(h, WEIGHT, Y, reduction="none", impl=impl),
    "linear statistics": lambda h, impl: F.linear_token_statistics(h, WEIGHT, TEACHER.indices, impl=impl).entropy,
    "linear divergence": lambda h, impl: distillation.linear_loss(h, WEIGHT, TEACHER, **DIVERGENCE, impl=impl),
}


class Subclass(Tensor):
    """What is_eager does not know."""


def leaf() -> Tensor:
    return HIDDEN.clone().requires_grad_()


def _penalty(gradient: Callable[[Tensor], Tensor], x: Tensor | None = None) -> Tensor:
    x = leaf() if x is None else x
    return torch.autograd.grad(gradient(x).pow(2).sum(), x)[0]


def plain(loss: Loss, impl: str) -> Tensor:
    return _penalty(lambda x: torch.autograd.grad(loss(x, impl).sum(), x, create_graph=True)[0])


def of_a_subclass(loss: Loss, impl: str) -> Tensor:
    x = HIDDEN.clone().as_subclass(Subclass).requires_grad_()
    return _penalty(lambda x: torch.autograd.grad(loss(x, impl).sum(), x, create_graph=True)[0], x).as_subclass(Tensor)


def func_grad(loss: Loss, impl: str) -> Tensor:
    return _penalty(torch.func.grad(lambda x: loss(x, impl).sum()))


def nested_func_grad(loss: Loss, impl: str) -> Tensor:
    return torch.func.grad(lambda x: torch.func.grad(lambda x: loss(x, impl).sum())(x).pow(2).sum())(HIDDEN)


def vjp(loss: Loss, impl: str) -> Tensor:
    def gradient(x: Tensor) -> Tensor:
        value, pull = torch.func.vjp(lambda x: loss(x, impl), x)
        return pull(torch.ones_like(value))[0]

    return _penalty(gradient)


def several_at_once(loss: Loss, impl: str) -> Tensor:
    def jacobian(x: Tensor) -> Tensor:
        value = loss(x, impl)
        basis = torch.eye(len(value), dtype=value.dtype)
        return torch.autograd.grad(value, x, basis, is_grads_batched=True, create_graph=True)[0]

    return _penalty(jacobian)


def vectorized(loss: Loss, impl: str) -> Tensor:
    jacobian = torch.autograd.functional.jacobian
    return _penalty(lambda x: jacobian(lambda x: loss(x, impl), x, create_graph=True, vectorize=True))


BATCHED = (several_at_once, vectorized)  # whose penalty is that of the Jacobian, not of its sum


@pytest.mark.parametrize("impl", ["native", "auto"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("way", [plain, of_a_subclass, func_grad, nested_func_grad, vjp, *BATCHED])
def test_a_second_derivative_is_right_or_refused(way: Callable[[Loss, str], Tensor], name: str, impl: str) -> None:
    loss = LOSSES[name]
    expected = (several_at_once if way in BATCHED else plain)(loss, "reference")
    assert expected.norm() > 1e-3
    try:
        got = way(loss, impl)
    except RuntimeError as error:
        assert str(error) == DOUBLE_BACKWARD
    else:
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", LOSSES)
def test_the_reference_has_one_in_each_way(name: str) -> None:
    for way in (of_a_subclass, func_grad, nested_func_grad, vjp):
        torch.testing.assert_close(way(LOSSES[name], "reference"), plain(LOSSES[name], "reference"))
    torch.testing.assert_close(vectorized(LOSSES[name], "reference"), several_at_once(LOSSES[name], "reference"))
