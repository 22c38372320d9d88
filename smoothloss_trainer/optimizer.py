"""The optimizer and its learning rates."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from smoothloss_trainer.config import OptimizerConfig


def build_optimizer(
    parameters: list[torch.nn.Parameter], config: OptimizerConfig, device: torch.device, *, recorded: bool = False
) -> torch.optim.Adam:
    """Return Adam, or AdamW where the recipe's ``optimizer:`` section has a weight decay.

    ``recorded``: for steps in a CUDA graph, which reads its learning rate from the device.
    """
    kind = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
    first, second = config.betas
    fused = device.type in ("cpu", "cuda")
    rate = torch.tensor(config.lr, device=device) if recorded else config.lr
    how = {"fused": fused, "capturable": recorded}
    return kind(parameters, rate, (first, second), config.eps, weight_decay=config.weight_decay, **how)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the steps from now on have this learning rate."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def learning_rate(config: OptimizerConfig, epoch: int, step: int = 0, total_steps: int = 1) -> float:
    r"""The learning rate of a step.

    During the first ``warmup_steps`` steps it is ``lr * (step + 1) / warmup_steps``. From then on, with ``t`` steps
    done since and ``T`` to do in all:

    * ``step``: ``lr * decay ** n``, n the number of decays up to this epoch;
    * ``cosine``: ``lr * (1 + cos(pi t / T)) / 2`` (Loshchilov and Hutter 2017, without restarts);
    * ``inverse_sqrt``: ``lr * sqrt(warmup_steps / step)`` (Vaswani et al. 2017).

    Args:
        config: The recipe's ``optimizer:`` section.
        epoch: Counted from 0.
        step: Steps done before this one.
        total_steps: Steps that the whole training has.
    """
    warmup = config.warmup_steps
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "cosine":
        share = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return config.lr * 0.5 * (1.0 + math.cos(math.pi * share))
    if config.schedule == "inverse_sqrt":
        return config.lr * math.sqrt(max(1, warmup) / max(1, warmup, step))
    if epoch < config.decay_start:
        return config.lr
    return config.lr * config.decay ** ((epoch - config.decay_start) // config.decay_every + 1)
