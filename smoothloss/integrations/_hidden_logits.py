"""Logits that are known by the hidden states and the head that would make them, and never made in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# What a loss makes of a model's head: logits, labels, and the arguments of torch's F.cross_entropy.
LossOfHidden = Callable[..., Tensor]


class Head(NamedTuple):
    """What follows the hidden states: ``after * tanh(before * (x @ weight.T + bias))``, or without tanh and `after`.

    Attributes:
        weight: ``(V, D)``.
        bias: ``(V,)``, or None.
        before: what the model multiplies its logits by.
        after: what it multiplies them by after tanh; None before there is a tanh.
        steps: what the model did to its logits, one after the other.
    """

    weight: Tensor
    bias: Tensor | None
    before: float = 1.0
    after: float | None = None
    steps: tuple[Callable[[Tensor], Tensor], ...] = ()

    @property
    def logit_scale(self) -> float:
        """The option `logit_scale` that makes the same logits, with `after` for the option `softcap`."""
        return self.before if self.after is None else self.before * self.after


class HiddenLogits:
    """Stands in for the logits ``(..., V)`` of a model while it makes its loss of them.

    A model scales, caps, shifts and flattens its logits and hands them to ``F.cross_entropy``. Each of these is
    followed here on the hidden states, and the cross-entropy is `loss` of them. What else a model may want of logits is
    a TypeError that names it.
    """

    def __init__(
        self,
        hidden: Tensor,
        head: Head,
        loss: LossOfHidden,
        positions: Tensor | None = None,
        count: int | None = None,
    ) -> None:
        """Hold hidden states ``(..., D)``, and the number of each position ``(..., 1)`` in the model's own order."""
        self.hidden, self.head, self._loss = hidden, head, loss
        if positions is None:
            positions = torch.arange(hidden.shape[:-1].numel(), device=hidden.device).reshape(*hidden.shape[:-1], 1)
        self.positions, self.count = positions, positions.numel() if count is None else count

    @property
    def shape(self) -> torch.Size:
        """That of the logits, ``(..., V)``."""
        return torch.Size((*self.hidden.shape[:-1], self.head.weight.shape[0]))

    @property
    def device(self) -> torch.device:
        """Where the hidden states are."""
        return self.hidden.device

    @property
    def dtype(self) -> torch.dtype:
        """That of the hidden states."""
        return self.hidden.dtype

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self.hidden.ndim

    def dim(self) -> int:
        """Return the number of dimensions."""
        return self.hidden.ndim

    def size(self, dim: int | None = None) -> torch.Size | int:
        """Return the shape, or one of its numbers."""
        return self.shape if dim is None else self.shape[dim]

    def logits(self) -> Tensor:
        """Return the logits after all, as a tensor."""
        head = self.head
        logits = torch.nn.functional.linear(self.hidden, head.weight, head.bias)
        for step in head.steps:
            logits = step(logits)
        return logits

    def float(self) -> HiddenLogits:
        """Follow a conversion to float32, in which the loss accumulates in any case."""
        return self.to(torch.float32)

    def contiguous(self) -> HiddenLogits:
        """Return the same."""
        return self

    def to(self, *args: Any, **kwargs: Any) -> HiddenLogits:
        """Follow a conversion; the loss is made where the head is, and accumulates in float32 at least."""
        head = self.head
        return self._followed_by(head._replace(steps=(*head.steps, lambda logits: logits.to(*args, **kwargs))))

    def view(self, *shape: Any) -> HiddenLogits:
        """Return other leading dimensions; the last stays V, or -1."""
        sizes = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        if not sizes or sizes[-1] not in (-1, self.shape[-1]):
            raise _refused(f"a view {tuple(sizes)}")
        return self._of(lambda tensor: tensor.reshape(*sizes[:-1], tensor.shape[-1]))

    reshape = view

    def __getitem__(self, key: Any) -> HiddenLogits:
        keys = key if isinstance(key, tuple) else (key,)
        whole = any(part is Ellipsis for part in keys) or len(keys) == self.ndim
        if whole and keys[-1] is not Ellipsis and keys[-1] != slice(None):
            raise _refused("some of the classes")
        return self._of(lambda tensor: tensor[key])

    def __mul__(self, factor: Any) -> HiddenLogits:
        return self._scaled(factor, lambda number: number, lambda logits: logits * factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> HiddenLogits:
        return self._scaled(divisor, lambda number: 1 / number, lambda logits: logits / divisor)

    def __add__(self, bias: Any) -> HiddenLogits:
        head, classes = self.head, self.shape[-1]
        is_bias = isinstance(bias, Tensor) and bias.numel() == classes and bias.shape[-1:] == (classes,)
        if not is_bias or head.before != 1.0 or head.after is not None:
            raise _refused("a sum with something else than a bias, such as a LoRA layer's output,")
        bias = bias.reshape(-1).to(head.weight.dtype)
        return self._followed_by(head._replace(bias=bias if head.bias is None else head.bias + bias))

    def tanh(self) -> HiddenLogits:
        """Follow a softcap's tanh."""
        head = self.head
        if head.after is not None:
            raise _refused("a second tanh")
        return self._followed_by(head._replace(after=1.0, steps=(*head.steps, torch.tanh)))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(_message(f".{name}"))

    def __repr__(self) -> str:
        return f"HiddenLogits(shape={tuple(self.shape)}): logits that were not computed"

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Follow torch's functions of logits."""
        if function is torch.tanh:
            return args[0].tanh()
        if function is torch.nn.functional.cross_entropy and isinstance(args[0], HiddenLogits):
            return args[0]._cross_entropy(*args[1:], **(kwargs or {}))
        raise _refused(getattr(function, "__name__", str(function)))

    def _cross_entropy(
        self, target: Tensor, weight: Any = None, size_average: Any = None, ignore_index: int = -100,
        reduce: Any = None, reduction: str = "mean", label_smoothing: Any = 0.0,
    ) -> Tensor:  # fmt: skip
        if self.ndim != 2 or weight is not None or label_smoothing or size_average is not None or reduce is not None:
            raise _refused("cross_entropy of more dimensions than (N, V), with weight or label_smoothing")
        return self._loss(self, target, ignore_index, reduction)

    def _scaled(self, number: Any, factor: Callable[[Any], Any], step: Callable[[Tensor], Tensor]) -> HiddenLogits:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not number > 0:
            raise _refused(f"a product with {number!r}")
        head = self.head._replace(steps=(*self.head.steps, step))
        if head.after is None:
            return self._followed_by(head._replace(before=head.before * factor(number)))
        return self._followed_by(head._replace(after=head.after * factor(number)))

    def _of(self, function: Callable[[Tensor], Tensor]) -> HiddenLogits:
        return HiddenLogits(function(self.hidden), self.head, self._loss, function(self.positions), self.count)

    def _followed_by(self, head: Head) -> HiddenLogits:
        return HiddenLogits(self.hidden, head, self._loss, self.positions, self.count)


def _message(what: str) -> str:
    return (
        f"logits: got {what} of logits that are not computed in training, expected a scale, a softcap, a bias and"
        " F.cross_entropy; take smoothloss.integrations.transformers.trainer_loss, which leaves the logits as they are"
    )


def _refused(what: str) -> TypeError:
    return TypeError(_message(what))
