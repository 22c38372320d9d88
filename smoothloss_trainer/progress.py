"""Where a training run is."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Progress:
    """Where a run is. All of it goes into the checkpoint; sums are over all processes there.

    Args:
        epoch: Counted from 0.
        position: Batches of this epoch that are done.
        step: Steps done in all.
        seconds: Time spent training so far, validation included.
        loss_sum: Sum of the loss times target tokens since the last line of ``metrics.jsonl``.
        tokens: Target tokens since the last line, of this process.
        reward_sums: What :class:`~smoothloss_trainer.rewards.SampleWeights` summed up since the last line.
        rewarded: Over how many inputs.
        best: Best validation metric so far.
        stale: Validations since then.
        metric_lines: Lines of ``metrics.jsonl``.
        finished: Whether training is over.
    """

    epoch: int = 0
    position: int = 0
    step: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    tokens: int = 0
    reward_sums: list[float] = field(default_factory=lambda: [0.0, 0.0])
    rewarded: int = 0
    best: float | None = None
    stale: int = 0
    metric_lines: int = 0
    finished: bool = False
