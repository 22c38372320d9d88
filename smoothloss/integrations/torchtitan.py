"""torchtitan: any loss of smoothloss in the place of its cross-entropy, with the classes split over the TP mesh or not.

In a trainer's configuration::

    from smoothloss.integrations.torchtitan import Loss

    config.loss = Loss.Config(options={"label_smoothing": 0.1})

or `cross_entropy_loss`, where a plain function of ``(pred, labels)`` is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from smoothloss.integrations._loss import LossOfLogits

__all__ = ["Loss", "cross_entropy_loss"]


def cross_entropy_loss(pred: Tensor, labels: Tensor, *, group: Any = None, **options: Any) -> Tensor:
    """Return the sum of the losses of all tokens, a plain tensor, the same on every process of the TP mesh.

    Args:
        pred: logits ``(..., V)``: a plain tensor, or a DTensor of the TP mesh with ``Shard(-1)``, any size of slices.
        labels: ``(...)``; -100 is ignored. A DTensor's local part is taken.
        group: the processes, where `pred` is a plain tensor and this process's slice of the classes.
        options: of `smoothloss.functional.cross_entropy`.
    """
    return _sum(LossOfLogits(options), pred, labels, group)


def _sum(loss: LossOfLogits, pred: Tensor, labels: Tensor, group: Any) -> Tensor:
    labels = labels.to_local() if hasattr(labels, "to_local") else labels
    return loss(pred, labels, reduction="sum", group=group)


class Loss:
    """A loss as torchtitan's trainer builds and calls it; `Loss.Config` takes its place in a configuration.

    Collectives of a compiled loss could not be seen: it runs in eager mode, whatever is compiled around it.
    """

    @dataclass(kw_only=True)
    class Config:
        """What the trainer builds the loss from.

        Attributes:
            options: of `smoothloss.functional.cross_entropy`, but `reduction` and `ignore_index`.
            group: returns the processes over which the classes are split where logits are plain tensors (the backend
                "spmd_types"); asked at every call. None: the logits say it.
        """

        options: Mapping[str, Any] = field(default_factory=dict)
        group: Callable[[], Any] | None = None

        def build(self, *, compile_config: Any = None) -> Loss:
            """Return the loss."""
            del compile_config
            return Loss(self)

    def __init__(self, config: Config) -> None:
        """Check the options."""
        self.loss, self.group = LossOfLogits(config.options), config.group

    def __call__(
        self, pred: Tensor, labels: Tensor, global_valid_tokens: Tensor | None = None, **others: Any
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of the losses, by the number of tokens where that is given; and no metrics."""
        del others
        total = _sum(self.loss, pred, labels, None if self.group is None else self.group())
        return total if global_valid_tokens is None else total / global_valid_tokens, {}
