"""Divergences as modules: options at construction, which checks them, tensors at the call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smoothloss._validation import check_group
from smoothloss.backends import Implementation
from smoothloss.distillation._known import Missing
from smoothloss.distillation.divergences import Divergence, check, check_memory, linear_loss, loss
from smoothloss.distillation.teacher import Teacher
from smoothloss.options import Memory


class _Distillation(torch.nn.Module):
    """What both have in common: named options, checked when they are given."""

    def __init__(self, options: dict[str, Any], group: Any) -> None:
        super().__init__()
        check(**options)
        check_group(group)
        self.options, self.group = options, group

    def extra_repr(self) -> str:
        """Name the options that were given."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items() if value is not None)


class DistillationLoss(_Distillation):
    """`distillation.loss` as a module.

    Args:
        divergence, beta, temperature, missing, logit_scale, softcap, reduction, impl, group: see `distillation.loss`.
    """

    def __init__(
        self,
        *,
        divergence: Divergence = "forward_kl",
        beta: float = 0.5,
        temperature: float = 1.0,
        missing: Missing = "bucket",
        logit_scale: float = 1.0,
        softcap: float | None = None,
        reduction: str = "mean",
        impl: Implementation = "auto",
        group: Any = None,
    ) -> None:
        super().__init__(
            {
                "divergence": divergence,
                "beta": beta,
                "temperature": temperature,
                "missing": missing,
                "logit_scale": logit_scale,
                "softcap": softcap,
                "reduction": reduction,
                "impl": impl,
            },
            group,
        )

    def forward(self, input: Tensor, teacher: Teacher, weight: Tensor | None = None) -> Tensor:
        """Return the loss of logits ``(..., V)`` against a teacher, with a weight for each position, ``(...)``."""
        return loss(input, teacher, weight=weight, group=self.group, **self.options)


class LinearDistillationLoss(_Distillation):
    """`distillation.linear_loss` as a module.

    Args:
        divergence, beta, temperature, missing, logit_scale, softcap, reduction, chunk_bytes, memory, impl, group: see
            `distillation.linear_loss`.
    """

    def __init__(
        self,
        *,
        divergence: Divergence = "forward_kl",
        beta: float = 0.5,
        temperature: float = 1.0,
        missing: Missing = "bucket",
        logit_scale: float = 1.0,
        softcap: float | None = None,
        reduction: str = "mean",
        chunk_bytes: int | None = None,
        memory: Memory = "fast",
        impl: Implementation = "auto",
        group: Any = None,
    ) -> None:
        super().__init__(
            {
                "divergence": divergence,
                "beta": beta,
                "temperature": temperature,
                "missing": missing,
                "logit_scale": logit_scale,
                "softcap": softcap,
                "reduction": reduction,
                "impl": impl,
            },
            group,
        )
        self.memory = {"chunk_bytes": check_memory(chunk_bytes, memory), "memory": memory}

    def forward(
        self, input: Tensor, linear_weight: Tensor, teacher: Teacher, linear_bias: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the loss of hidden states ``(..., D)`` and a classifier ``(V, D)``, ``(V,)``, against a teacher."""
        memory: dict[str, Any] = self.memory
        return linear_loss(
            input, linear_weight, teacher, linear_bias=linear_bias, weight=weight, group=self.group, **memory,
            **self.options,
        )  # fmt: skip
