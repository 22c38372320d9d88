"""Which tokens may come next."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smoothloss_trainer.vocabulary import BOS, EOS, PAD, UNK


@dataclass(frozen=True)
class Constraints:
    """What may be written. PAD and BOS never are, and EOS always may be.

    Args:
        max_length: Longest output, EOS not counted.
        suppress_unk: Never write UNK.
        no_repeat_ngram_size: No n-gram of this size may occur twice in an output; 0 allows repeats.

    Raises:
        ValueError: when a number is out of range.
    """

    max_length: int
    suppress_unk: bool = False
    no_repeat_ngram_size: int = 0

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {self.max_length}")
        if self.no_repeat_ngram_size < 0:
            raise ValueError(f"no_repeat_ngram_size must not be negative, got {self.no_repeat_ngram_size}")

    def apply(self, log_prob: Tensor, history: Tensor) -> Tensor:
        """``log_prob`` (N, V) with -inf for what may not follow ``history`` (N, t), which begins with BOS.

        The others keep their values: a hypothesis has the same score with and without constraints.
        """
        if history.shape[1] > self.max_length:
            ended = torch.full_like(log_prob, float("-inf"))
            ended[:, EOS] = log_prob[:, EOS]
            return ended
        allowed = log_prob.clone()
        for token in (PAD, BOS, UNK) if self.suppress_unk else (PAD, BOS):
            allowed[:, token] = float("-inf")
        if 0 < self.no_repeat_ngram_size <= history.shape[1]:
            allowed.scatter_(1, repeating_tokens(history, self.no_repeat_ngram_size), float("-inf"))
        return allowed


def repeating_tokens(history: Tensor, size: int) -> Tensor:
    """(N, t - size + 1) the tokens that would complete an n-gram of ``history`` (N, t) once more, and PAD elsewhere.

    The n-gram at each position is compared with the history's last ``size - 1`` tokens, all positions of all rows at
    once; PAD, which never may be written, stands for those that differ, so that every row has as many.
    """
    ngrams = history.unfold(1, size, 1)  # (N, t - size + 1, size)
    last = history[:, None, history.shape[1] - size + 1 :]
    return torch.where((ngrams[..., :-1] == last).all(-1), ngrams[..., -1], PAD)
