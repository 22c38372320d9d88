"""Divergences as modules: options at construction, which checks them, tensors at the call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smoothloss._prior import check_prior_values
from smoothloss.distillation import options
from smoothloss.distillation.divergences import linear_loss, loss
from smoothloss.distillation.options import DivergenceOptions, LinearDivergenceOptions
from smoothloss.distillation.teacher import Teacher
from smoothloss.options import takes

if TYPE_CHECKING:
    from typing_extensions import Unpack


class _Distillation(torch.nn.Module):
    """What both have in common: named options, checked when they are given; the prior moves along."""

    prior: Tensor | None

    def __init__(self, given: DivergenceOptions, names: tuple[str, ...]) -> None:
        super().__init__()
        prior = options.check(given, names).options.prior
        if prior is not None:
            check_prior_values(prior)
        self.register_buffer("prior", prior)
        self.options: dict[str, Any] = {name: options.DEFAULTS[name] for name in names} | dict(given)
        del self.options["prior"]

    def extra_repr(self) -> str:
        """Name the options that are not None."""
        shown = [f"{name}={value!r}" for name, value in self.options.items() if value is not None]
        return ", ".join(shown if self.prior is None else [*shown, f"prior={tuple(self.prior.shape)}"])


class DistillationLoss(_Distillation):
    """`distillation.loss` as a module.

    Args:
        given: the options, see `smoothloss.distillation.options.DivergenceOptions`.
    """

    @takes(DivergenceOptions, options.DEFAULTS)
    def __init__(self, **given: Unpack[DivergenceOptions]) -> None:
        super().__init__(given, options.LOGITS)

    def forward(self, input: Tensor, teacher: Teacher, weight: Tensor | None = None) -> Tensor:
        """Return the loss of logits ``(..., V)`` against a teacher, with a weight for each position, ``(...)``."""
        return loss(input, teacher, weight=weight, prior=self.prior, **self.options)


class LinearDistillationLoss(_Distillation):
    """`distillation.linear_loss` as a module.

    Args:
        given: the options, see `smoothloss.distillation.options.LinearDivergenceOptions`.
    """

    @takes(LinearDivergenceOptions, options.DEFAULTS)
    def __init__(self, **given: Unpack[LinearDivergenceOptions]) -> None:
        super().__init__(given, options.LINEAR)

    def forward(
        self, input: Tensor, linear_weight: Tensor, teacher: Teacher, linear_bias: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the loss of hidden states ``(..., D)`` and a classifier ``(V, D)``, ``(V,)``, against a teacher."""
        return linear_loss(
            input, linear_weight, teacher, linear_bias=linear_bias, weight=weight, prior=self.prior, **self.options
        )
