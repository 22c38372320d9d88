"""Trained models whose predictions are a target of another's.

Sources: Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531); Kim and Rush
2016, "Sequence-Level Knowledge Distillation" (arXiv 1606.07947), whose word-level distillation this is; Furlanello et
al. 2018, "Born Again Neural Networks" (arXiv 1805.04770), where teacher and student are of one size.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import save
from torch import Tensor

from smoothloss_trainer.predictions import Prediction
from smoothloss_trainer.tasks import SequenceModel


@dataclass(frozen=True)
class Teachers:
    """The mean of what some models predict.

    Args:
        models: One or more over one vocabulary, in evaluation mode.
        classes: How many of the likeliest classes are told apart; what the others have is spread evenly.
    """

    models: Sequence[SequenceModel]
    classes: int

    def to(self, device: torch.device, dtype: torch.dtype) -> Teachers:
        """The same models there, as constants."""
        return Teachers([model.to(device, dtype).requires_grad_(False) for model in self.models], self.classes)

    def fingerprint(self) -> str:
        """The sha256 of their weights, in hexadecimal."""
        digest = hashlib.sha256()
        for model in self.models:
            tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
            digest.update(save(tensors))
        return digest.hexdigest()

    @torch.no_grad()
    def predict(self, read: Callable[[SequenceModel], Tensor]) -> Prediction:
        """What they predict from the hidden states ``(..., D)`` that ``read`` gets of a model."""
        logits, *others = (model.classifier(read(model)) for model in self.models)
        if others:  # log-probabilities are logits, too
            logits = torch.log_softmax(logits, -1)
            for other in others:
                logits = torch.logaddexp(logits, torch.log_softmax(other, -1))
            logits = logits - math.log(len(self.models))
        return Prediction.of(logits, self.classes)
