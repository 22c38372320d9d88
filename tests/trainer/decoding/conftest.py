"""A model without parameters whose every output is known, and the enumeration of all its outputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from smoothloss_trainer.tasks import State
from smoothloss_trainer.vocabulary import BOS, EOS, PAD


class _State(NamedTuple):
    source: Tensor  # (B,) number of the input
    history: Tensor  # (B,) hash of the tokens so far


class TableModel(nn.Module):
    """Random logits for every (input, history): nothing is Markov, so mixed-up states show."""

    def __init__(self, vocabulary: int, sharpness: float = 2.0, seed: int = 0) -> None:
        super().__init__()
        self.vocabulary, self.sharpness, self.seed = vocabulary, sharpness, seed
        self.classifier = nn.Linear(1, vocabulary)

    def _logits(self, source: int, history: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + source * 7919 + history)
        return self.sharpness * torch.randn(self.vocabulary, generator=generator)

    def log_prob(self, source: int, words: tuple[int, ...]) -> Tensor:
        """Log-probabilities (V,) of what follows BOS and these words."""
        history = 0
        for token in (BOS, *words):
            history = (history * self.vocabulary + token) % 100_003
        return self._logits(source, history).log_softmax(-1)

    def encode(self, source: Tensor) -> State:
        return source

    def initial_state(self, memory: Tensor) -> State:
        return _State(memory, torch.zeros_like(memory))

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        history = (state.history * self.vocabulary + tokens) % 100_003
        rows = [self._logits(s, h) for s, h in zip(state.source.tolist(), history.tolist(), strict=True)]
        return torch.stack(rows), _State(state.source, history)


def brute_force(
    log_prob: Callable[[tuple[int, ...]], Tensor],
    vocabulary: int,
    max_length: int,
    penalty: float = 0.0,
    allowed: Callable[[tuple[int, ...]], bool] = lambda words: True,
) -> list[tuple[float, list[int]]]:
    """Every allowed sequence of at most `max_length` words, with the score of the definition, best first."""
    words = [token for token in range(vocabulary) if token not in (PAD, BOS, EOS)]
    found = []
    for length in range(max_length + 1):
        for sequence in filter(allowed, itertools.product(words, repeat=length)):
            tokens = (*sequence, EOS)
            score = sum(float(log_prob(tokens[:place])[token]) for place, token in enumerate(tokens))
            found.append((score / len(tokens) ** penalty, list(sequence)))
    return sorted(found, reverse=True)


@pytest.fixture
def table_model() -> type[TableModel]:
    return TableModel


@pytest.fixture
def enumerate_all() -> Any:
    return brute_force
