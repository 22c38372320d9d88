"""TRL: supervised fine-tuning with any loss of smoothloss, and distillation from a teacher's K likeliest classes.

TRL's trainers make their losses themselves, past the model's. Mixed in before them, these classes lead them back to
what `smoothloss.integrations.transformers.without_logits` makes of the model::

    from smoothloss.integrations.trl import OwnLoss

    class Trainer(OwnLoss, trl.SFTTrainer):
        pass

    Trainer(model, args=config, train_dataset=data, loss_options={"table": table, "alpha": 0.3}).train()

The trainers' own measures of entropy and accuracy, which need every logit, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from smoothloss.distillation import Teacher
from smoothloss.integrations._loss import columns_of
from smoothloss.integrations.transformers import without_logits

__all__ = ["OwnLoss", "TopKTeacher"]


class OwnLoss:
    """Mixin for ``trl.SFTTrainer``: the loss is the model's own, made without logits.

    Args:
        loss_options: of `without_logits`.
        arguments, keywords: of the trainer. Not ``compute_loss_func`` and ``label_smoothing_factor``: `loss_options`
            has `label_smoothing`.
    """

    def __init__(self, *arguments: Any, loss_options: Mapping[str, Any] | None = None, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        without_logits(self.model, **self._options(dict(loss_options or {})))  # type: ignore[attr-defined]

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        return given

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return ``model(**inputs).loss``, as transformers' Trainer does."""
        from transformers import Trainer

        inputs = {**inputs, "use_cache": False}
        return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)


class TopKTeacher(OwnLoss):
    """Mixin for ``trl.experimental.gkd.GKDTrainer``: its divergence, of the teacher's K likeliest classes and the rest.

    The divergence is that of ``GKDConfig.beta``: KL(teacher || student) at 0, KL(student || teacher) at 1, and the
    generalised Jensen-Shannon divergence between. All classes beyond the K likeliest count as one more class.

    Args:
        teacher_k: K. With all V classes the loss is that of the trainer.
        loss_options: of `without_logits`; `teacher_share` and `label_smoothing` where labels have a share, too.
        arguments, keywords: of the trainer.
    """

    def __init__(self, *arguments: Any, teacher_k: int = 64, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.teacher_k = teacher_k

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        own = {"divergence": "jensen_shannon", "beta": self.beta}  # type: ignore[attr-defined]
        return {**given, "teacher_options": {**own, **given.get("teacher_options", {})}}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the divergence of the student from what the teacher says of the same text."""
        batch = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        teacher: Any = self.teacher_model  # type: ignore[attr-defined]
        teacher.eval()
        with torch.no_grad():
            told = Teacher.from_logits(teacher(**batch).logits, self.teacher_k)
        batch |= {"labels": inputs["labels"], **columns_of(told)}
        return super().compute_loss(model, batch, return_outputs, num_items_in_batch)
