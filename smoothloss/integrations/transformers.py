"""Hugging Face transformers: its Trainer with any loss of smoothloss, with logits or without.

`trainer_loss` is the Trainer's ``compute_loss_func``, and leaves the model and its logits as they are::

    from smoothloss.integrations.transformers import trainer_loss

    Trainer(model, arguments, train_dataset=data, compute_loss_func=trainer_loss(model, label_smoothing=0.1)).train()

`without_logits` changes what ``model(..., labels=labels).loss`` is, in any trainer: it comes from the hidden states and
the head's weight, and in training the logits never exist::

    from smoothloss.integrations.transformers import without_logits

    without_logits(model, table=table, alpha=0.3)
    Trainer(model, arguments, train_dataset=data).train()

Without options both give the model's own loss. A teacher's columns in the batch are the business of the second, see
`smoothloss.integrations.teacher`.
"""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from smoothloss.integrations._hidden_logits import Head, HiddenLogits
from smoothloss.integrations._loss import TEACHER_COLUMNS, LossOfHidden, LossOfLogits, take_teacher

__all__ = ["trainer_loss", "without_logits"]


def trainer_loss(model: Any, *, shift_labels: bool | None = None, **options: Any) -> Callable[..., Tensor]:
    """Return a ``compute_loss_func`` for ``transformers.Trainer``.

    As the Trainer's own losses do it: labels are those of the next position for a model that is causal, -100 is
    ignored, and the sum is divided by `num_items_in_batch`, which counts all batches of a step in all processes. What
    the model adds for the balance of its experts is added.

    Args:
        model: The model of the Trainer, PEFT's too; it is only asked what kind it is.
        shift_labels: whether a position is to predict the label of the next one; None: as the Trainer takes it. The
            decoders of Bart and its kin alone (``BartForCausalLM``) leave that to the labels in their own loss: False.
        options: those of `smoothloss.functional.cross_entropy`, but `reduction` and `ignore_index`; label smoothing is
            `label_smoothing`, not ``TrainingArguments.label_smoothing_factor``.

    Raises:
        TypeError, ValueError: an option that is none, or is out of range.
    """
    loss_of, base = LossOfLogits(options), base_model(model)
    is_causal = shifts_labels(base) if shift_labels is None else shift_labels

    def compute_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        if is_causal:
            labels = torch.nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]
        kind = "mean" if num_items_in_batch is None else "sum"
        loss = loss_of(logits, labels.to(logits.device), reduction=kind)
        if num_items_in_batch is not None:
            loss = _divided(loss, num_items_in_batch)
        balance = outputs.get("aux_loss") if isinstance(outputs, dict) else None
        return loss if balance is None else loss + _weight_of_balance(base) * balance.to(loss.device)

    return compute_loss


def without_logits(
    model: Any, *, teacher_share: float = 1.0, teacher_options: Mapping[str, Any] | None = None, **options: Any
) -> None:
    """Let a model make its loss of hidden states: from here on ``model(..., labels=labels)`` holds no logits.

    The model's own forward runs, up to its head and from there on: it shifts labels, divides by `num_items_in_batch`
    and scales and caps its logits as ever. In training ``outputs.logits`` stands for what was not computed; in
    evaluation the loss is made in the same way and the logits are there. Without labels, as in generation, nothing is
    changed. Nor are the parameters, their names, and what ``save_pretrained`` writes.

    Causal, masked and sequence-to-sequence models whose head is a ``torch.nn.Linear`` can be had, tied or not, PEFT's
    too where no adapter is on the head. Labels must be given to the model: leave ``label_smoothing_factor`` and
    ``compute_loss_func`` of the Trainer alone. ``torch.nn.DataParallel`` is not followed.

    A model that does not look at the `num_items_in_batch` which the Trainer passes, such as T5, would see its gradients
    grow with the batches of a step; here it is divided by that number like all others.

    Args:
        model: A model of transformers, or of PEFT around one.
        teacher_share: the teacher's share of the loss where the batch has its columns, the labels' being the rest.
        teacher_options: `divergence`, `beta`, `temperature` and `missing` of `smoothloss.distillation.linear_loss`.
        options: those of `smoothloss.functional.linear_cross_entropy`, but `reduction`, `ignore_index`, `logit_scale`
            and `softcap`, which are the model's.

    Raises:
        TypeError: the model has no head that is a linear layer alone; an option that is none.
        ValueError: an option out of range.
        RuntimeError: at the first forward, when the model's loss is not a cross-entropy of its head's output.
    """
    base, loss_of = base_model(model), LossOfHidden(options, teacher_share, teacher_options)
    _head(base)
    own = getattr(base.forward, "__func__", base.forward)
    bound = own is not base.forward
    own = getattr(own, "_with_logits", own)  # called a second time, it replaces what it did the first time
    signature = inspect.signature(own)
    takes_more = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in signature.parameters.values())

    @torch.compiler.disable(recursive=False)  # type: ignore[untyped-decorator]
    def forward(self: Any, *args: Any, **batch: Any) -> Any:
        given, teacher = (self, *args) if bound else args, take_teacher(batch)
        num_items = (batch.get if takes_more else batch.pop)("num_items_in_batch", None)
        if signature.bind_partial(*given, **batch).arguments.get("labels") is None:
            if teacher is not None:
                raise ValueError("labels: got none beside a teacher, expected them to say which positions count")
            return own(*given, **batch)
        with _unmade(_head(self), loss_of, num_items, teacher) as losses:
            outputs = own(*given, **batch)
        if not losses:
            raise RuntimeError(f"model: got {type(self).__name__}, whose loss is no cross-entropy of its head's output")
        return outputs if self.training else _with_logits(outputs)

    forward.__signature__ = _and_columns(signature)
    forward._with_logits = own
    base.forward = types.MethodType(forward, base)


def base_model(model: Any) -> Any:
    """Return the model that PEFT's wraps, or the model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def shifts_labels(model: Any) -> bool:
    """Tell whether the model's own loss is that of the next position."""
    from transformers.loss.loss_utils import ForCausalLMLoss

    config = getattr(model, "config", None)
    return getattr(model, "loss_function", None) is ForCausalLMLoss and not getattr(config, "is_encoder_decoder", False)


def _weight_of_balance(model: Any) -> float:
    """Return the factor of what a mixture of experts adds to its loss."""
    for owner in (model, model.config.get_text_config()):
        for name in ("router_aux_loss_coef", "aux_loss_coef"):
            if hasattr(owner, name):
                return float(getattr(owner, name))
    raise TypeError(f"model: got {type(model).__name__} with an aux_loss, expected it to have router_aux_loss_coef")


def _head(model: Any) -> torch.nn.Linear:
    """Return the layer that makes the logits."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if type(head) is torch.nn.Linear:
        return head
    is_adapted = hasattr(head, "base_layer") or hasattr(head, "modules_to_save")
    reason = ": its logits are no product with one weight; leave the head out of the adapter's target_modules and"
    raise TypeError(
        f"model: got {type(model).__name__} with the head {type(head).__name__}, expected a torch.nn.Linear"
        + (f"{reason} modules_to_save, or take trainer_loss" if is_adapted else ", or take trainer_loss")
    )


def _and_columns(signature: inspect.Signature) -> inspect.Signature:
    """Return the signature with a teacher's columns, so that the Trainer does not take them for unused."""
    parameters = list(signature.parameters.values())
    columns = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in TEACHER_COLUMNS]
    at = len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
    return signature.replace(parameters=[*parameters[:at], *columns, *parameters[at:]])


@contextlib.contextmanager
def _unmade(head: torch.nn.Linear, loss_of: LossOfHidden, num_items: Any, teacher: Any) -> Iterator[list[Tensor]]:
    """Let a head return hidden logits, and collect the losses that are made of them."""
    losses: list[Tensor] = []

    def loss(logits: HiddenLogits, target: Tensor, ignore_index: int, reduction: str) -> Tensor:
        own_mean = reduction == "mean" and num_items is not None
        value = loss_of.of(logits, target, ignore_index, "sum" if own_mean else reduction, teacher)
        losses.append(_divided(value, num_items) if own_mean else value)
        return losses[-1]

    def forward(input: Tensor) -> Any:
        return HiddenLogits(input, Head(head.weight, head.bias), loss)

    before = head.__dict__.get("forward")  # of accelerate, for example
    head.forward = forward  # type: ignore[method-assign]
    try:
        yield losses
    finally:
        del head.forward
        if before is not None:
            head.forward = before  # type: ignore[method-assign]


def _divided(total: Tensor, count: Tensor | int) -> Tensor:
    return total / torch.as_tensor(count, device=total.device)


def _with_logits(outputs: Any) -> Any:
    """Return a model's outputs with logits in the place of hidden ones."""
    if not isinstance(outputs, dict):
        return type(outputs)(part.logits() if isinstance(part, HiddenLogits) else part for part in outputs)
    for name, part in outputs.items():
        if isinstance(part, HiddenLogits):
            outputs[name] = part.logits()
    return outputs
