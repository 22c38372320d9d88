"""Megatron-Core: any loss of smoothloss on logits whose classes are split over the tensor-parallel group.

In the place of the model's own loss, once it is built::

    from smoothloss.integrations.megatron import language_model_loss

    language_model_loss(model, table=table, alpha=0.3)

or call by call, in the place of ``megatron.core.tensor_parallel.vocab_parallel_cross_entropy``, whose signature
`vocab_parallel_cross_entropy` has. Padded classes are classes, as they are in Megatron.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor

from smoothloss import functional as F
from smoothloss._validation import check_integer, check_number
from smoothloss.integrations._loss import LossOfLogits

__all__ = ["label_smoothing_of", "language_model_loss", "vocab_parallel_cross_entropy"]


def label_smoothing_of(alpha: float, num_classes: int) -> float:
    """Return the `label_smoothing` of torch, and of smoothloss, that NeMo's and Megatron's `alpha` stands for.

    NeMo takes `alpha` from the true class and spreads it over the V - 1 others; torch spreads its own over all V::

        (1 - alpha) delta(y) + alpha / (V - 1) sum_{v != y} delta(v)  =  (1 - eps) delta(y) + eps / V sum_v delta(v)
        eps = alpha V / (V - 1)

    Args:
        alpha: in [0, (V - 1) / V].
        num_classes: V of all processes together, at least 2.

    Raises:
        TypeError, ValueError: naming the argument, what was got and what was expected.

    Source: NVIDIA NeMo, ``SmoothedCrossEntropyLoss``.
    """
    num_classes = check_integer(num_classes, "num_classes", 2)
    alpha = check_number(alpha, "alpha", 0.0, (num_classes - 1) / num_classes)
    return min(alpha * num_classes / (num_classes - 1), 1.0)


def vocab_parallel_cross_entropy(
    vocab_parallel_logits: Tensor, target: Tensor, label_smoothing: float = 0.0, tp_group: Any = None, **options: Any
) -> Tensor:
    """Return the loss of each token, as Megatron's function of this name, whose signature it has.

    Smoothed labels are spread over the classes of all processes: the loss and its gradient do not depend on how many
    there are. A target of -100 has loss 0 and no gradient.

    Args:
        vocab_parallel_logits: ``(..., V_r)``, the same number of classes on each process.
        target: ``(...)`` class numbers.
        label_smoothing: NeMo's, see `label_smoothing_of`.
        tp_group: the processes; None: Megatron's tensor-parallel group.
        options: of `smoothloss.functional.cross_entropy`.
    """
    if tp_group is None:
        from megatron.core.parallel_state import get_tensor_model_parallel_group

        tp_group = get_tensor_model_parallel_group()
    classes = vocab_parallel_logits.shape[-1] * dist.get_world_size(tp_group)
    smoothing = label_smoothing_of(label_smoothing, classes) if label_smoothing else 0.0
    given: dict[str, Any] = {**options, "reduction": "none", "label_smoothing": smoothing, "group": tp_group}
    return F.cross_entropy(vocab_parallel_logits, target, **given)


def language_model_loss(model: Any, **options: Any) -> None:
    """Make ``model.compute_language_model_loss`` a loss of smoothloss, of ``labels (b, s)`` and ``logits (s, b, V_r)``.

    Args:
        model: a ``LanguageModule`` of Megatron-Core, such as ``GPTModel``, with a split head
            (``parallel_output=True``).
        options: of `smoothloss.functional.cross_entropy`: a table, `label_smoothing` (torch's, see
            `label_smoothing_of`), class weights, and so on. Not `reduction`: Megatron masks and sums.

    Raises:
        TypeError, ValueError: an option that there is not, or out of range.
    """
    loss = LossOfLogits(options)
    collection = getattr(model, "pg_collection", None)
    group = model.tp_group if collection is None else collection.tp

    def compute_language_model_loss(labels: Tensor, logits: Tensor) -> Tensor:
        return loss(logits, labels.transpose(0, 1), reduction="none", group=group).transpose(0, 1).contiguous()

    model.compute_language_model_loss = compute_language_model_loss
