"""What the adapters make of logits, given or hidden: the loss of labels, and of a teacher beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from smoothloss import distillation, nn
from smoothloss import functional as F
from smoothloss._prior import check_prior
from smoothloss._validation import check_number
from smoothloss.distillation import Teacher
from smoothloss.integrations._hidden_logits import HiddenLogits

TEACHER_COLUMNS = ("teacher_indices", "teacher_log_probs", "teacher_log_rest")
_OF_THE_TRAINER = ("reduction", "ignore_index")
_OF_THE_MODEL = ("logit_scale", "softcap")
_SHARED: tuple[str, ...] = ("chunk_bytes", "memory", "impl")
_OF_THE_TEACHER = ("divergence", "beta", "temperature", "missing")


class LossOfLogits:
    """`smoothloss.functional.cross_entropy` with its options, checked when they are given."""

    function: Callable[..., Tensor] = staticmethod(F.cross_entropy)
    module: Callable[..., object] = nn.CrossEntropyLoss
    others_decide: tuple[str, ...] = _OF_THE_TRAINER

    def __init__(self, options: Mapping[str, Any]) -> None:
        for name in self.others_decide:
            if name in options:
                raise TypeError(f"{name}: got {options[name]!r}, expected none: the trainer and the model decide it")
        type(self).module(**options)
        self.options = dict(options)
        if self.options.get("prior") is not None:  # which may be a NumPy array
            self.options["prior"] = check_prior(self.options["prior"])

    def __call__(self, input: Tensor, *others: Tensor, **more: Any) -> Tensor:
        """Return the loss; a table, weights of classes and a prior are brought to where `input` is."""
        for name in ("table", "weight", "prior"):
            value = self.options.get(name)
            if value is not None and (value.indices if name == "table" else value).device != input.device:
                self.options[name] = value.to(input.device)
        return self.function(input, *others, **self.options, **more)


class LossOfHidden(LossOfLogits):
    """`smoothloss.functional.linear_cross_entropy` likewise, and `smoothloss.distillation.linear_loss` beside it."""

    function = staticmethod(F.linear_cross_entropy)
    module = nn.LinearCrossEntropyLoss
    others_decide = _OF_THE_TRAINER + _OF_THE_MODEL

    def __init__(self, options: Mapping[str, Any], share: float, teacher_options: Mapping[str, Any] | None) -> None:
        super().__init__(options)
        self.share, self.teacher_options = check_number(share, "teacher_share", 0.0, 1.0), dict(teacher_options or {})
        for name in set(self.teacher_options).difference(_OF_THE_TEACHER):
            raise TypeError(f"teacher_options: got {name!r}, expected {', '.join(map(repr, _OF_THE_TEACHER))}")
        distillation.LinearDistillationLoss(**self.teacher_options)

    def of(
        self, logits: HiddenLogits, target: Tensor, ignore_index: int, reduction: str, teacher: Teacher | None
    ) -> Tensor:
        """Return the loss, "sum" or "mean" over the positions that have a label."""
        head = logits.head
        model = {"linear_bias": head.bias, "logit_scale": head.logit_scale, "softcap": head.after}
        labels = {"ignore_index": ignore_index, "reduction": reduction, **model}
        if teacher is None or not self.share:
            return self(logits.hidden, head.weight, target, **labels)
        told, counts = _rows(teacher, logits), target != ignore_index
        how: dict[str, Any] = {name: self.options[name] for name in _SHARED if name in self.options}
        how |= self.teacher_options | model
        weight = counts.to(told.log_probs.dtype)
        loss = self.share * distillation.linear_loss(
            logits.hidden, head.weight, told, weight=weight, reduction="sum", **how
        )
        if self.share < 1:
            loss = loss + (1 - self.share) * self(logits.hidden, head.weight, target, **labels | {"reduction": "sum"})
        return loss / counts.sum() if reduction == "mean" else loss


def take_teacher(batch: dict[str, Any]) -> Teacher | None:
    """Take a teacher's columns out of a batch."""
    indices, log_probs, log_rest = (batch.pop(name, None) for name in TEACHER_COLUMNS)
    if indices is None and log_probs is None and log_rest is None:
        return None
    if indices is None or log_probs is None:
        raise ValueError(f"batch: got a part of a teacher, expected {TEACHER_COLUMNS[0]} and {TEACHER_COLUMNS[1]}")
    return Teacher(indices, log_probs, log_rest)


def columns_of(teacher: Teacher) -> dict[str, Tensor]:
    """Return a teacher's columns."""
    values = (teacher.indices, teacher.log_probs, teacher.log_rest)
    return {name: value for name, value in zip(TEACHER_COLUMNS, values, strict=True) if value is not None}


def _rows(teacher: Teacher, logits: HiddenLogits) -> Teacher:
    """Return what a teacher says of the positions that are left, in their order."""
    indices, log_probs = (tensor.flatten(0, -2) for tensor in (teacher.indices, teacher.log_probs))
    if len(indices) != logits.count:
        raise ValueError(
            f"teacher_indices: got shape {tuple(teacher.indices.shape)}, expected (B, T, K) with B * T ="
            f" {logits.count}, the positions that the model has logits of"
        )
    rows = logits.positions.squeeze(-1)
    log_rest = None if teacher.log_rest is None else teacher.log_rest.flatten()[rows]
    return Teacher(indices[rows], log_probs[rows], log_rest)
