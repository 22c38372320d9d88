"""Several models that write one text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from smoothloss_trainer.tasks import SequenceModel, State


class Ensemble(nn.Module):
    """The mixture of M models over one vocabulary, for beam search and sampling.

        log p(w | history) = log(1/M sum_m softmax(logits_m)_w)

    Probabilities are averaged, not their logarithms, as fairseq's ensembles do: one model that finds a word impossible
    does not forbid it. Memory and state are the tuples of the members'.

    Args:
        models: Models that read the same sources and share the target vocabulary.

    Raises:
        ValueError: when there is none, or the sizes of their vocabularies differ.
    """

    def __init__(self, models: Sequence[SequenceModel]) -> None:
        super().__init__()
        sizes = [model.classifier.out_features for model in models]
        if len(set(sizes)) != 1:
            raise ValueError(f"models must be one or more with vocabularies of one size, got sizes {sizes}")
        self.models = nn.ModuleList(models)

    def encode(self, *source: Tensor) -> State:
        """The memories of all models for a batch's source tensors."""
        return tuple(model.encode(*source) for model in self.models)  # type: ignore[operator]

    def initial_state(self, memory: State) -> State:
        """The states of all models before the first token."""
        pairs = zip(self.models, memory, strict=True)
        return tuple(model.initial_state(part) for model, part in pairs)  # type: ignore[operator]

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """The mixture's log-probabilities (N, V) and the next states after reading ``tokens`` (N,)."""
        pairs = zip(self.models, state, strict=True)
        logits, states = zip(*(model.step(tokens, part) for model, part in pairs), strict=True)  # type: ignore[operator]
        log_probs = torch.stack([torch.log_softmax(each.float(), -1) for each in logits])
        return log_probs.logsumexp(0) - math.log(len(self.models)), states
