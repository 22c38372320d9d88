"""Consistency of two passes: each with dropout of its own, and each a target of the other's (R-Drop).

Source: Liang et al. 2021, "R-Drop: Regularized Dropout for Neural Networks" (arXiv 2106.14448). There both passes of
the symmetric divergence get a gradient; here a pass is a target, sparse and constant, so that the loss stays one
cross-entropy.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from smoothloss.targets import Target
from smoothloss_trainer.predictions import Prediction
from smoothloss_trainer.tasks import Batch, select_rows


def twice(batch: Batch) -> Batch:
    """The batch with all its rows, and what each of them is read from, a second time after them."""
    rows = _twice(torch.arange(len(batch.target), device=batch.target.device))
    inputs = _twice(torch.arange(len(batch.source[0]), device=batch.target.device))
    index = batch.source_index
    return replace(
        batch,
        source=select_rows(batch.source, inputs),
        target=batch.target[rows],
        lengths=batch.lengths[rows],
        source_index=None if index is None else torch.cat((index, index + len(batch.source[0]))),
        references=None if batch.references is None else batch.references[rows],
        inputs=None if batch.inputs is None else batch.inputs[rows],
    )


def other_pass(logits: Tensor, mass: Tensor, classes: int) -> Target:
    """What the other pass predicts at each position.

    Args:
        logits: ``(..., B, T, V)`` of a batch that :func:`twice` made.
        mass: ``(..., B, T)`` of the target.
        classes: How many of the likeliest are told apart; what the others have is spread evenly.
    """
    return Prediction.of(logits, classes).exchanged().of_mass(mass)


def _twice(index: Tensor) -> Tensor:
    return torch.cat((index, index))
