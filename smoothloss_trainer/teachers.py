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

from smoothloss.targets import Target
from smoothloss_trainer.predictions import likeliest, of_mass
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
    def states(self, read: Callable[[SequenceModel], Tensor]) -> tuple[Tensor, ...]:
        """The hidden states of each, which ``read`` gets of a model."""
        return tuple(read(model) for model in self.models)

    @torch.no_grad()
    def target(self, states: Sequence[Tensor], mass: Tensor) -> Target:
        """What they predict at each position.

        Args:
            states: ``(..., D)`` of each model, which may differ in D.
            mass: ``(...)`` of the target at each position.
        """
        logits, *others = (model.classifier(own) for model, own in zip(self.models, states, strict=True))
        if others:  # log-probabilities are logits, too
            logits = torch.log_softmax(logits, -1)
            for other in others:
                logits = torch.logaddexp(logits, torch.log_softmax(other, -1))
            logits = logits - math.log(len(self.models))
        return of_mass(*likeliest(logits, self.classes), mass)
