"""What goes into a search and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from smoothloss_trainer.tasks import State


class Stepper(Protocol):
    """What the search needs of a model."""

    def initial_state(self, memory: State) -> State:
        """The decoder's state before the first token."""

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits (N, V) and the next state after reading ``tokens`` (N,)."""


@dataclass(frozen=True)
class Hypothesis:
    """A finished output: its tokens without EOS, and the score it is ranked by."""

    tokens: list[int]
    score: float
