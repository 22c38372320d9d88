"""What the samples of a sequence loss are worth: their rewards, and the weights that these give them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from smoothloss.rewards import Cider, References, edit_distance, hamming, rouge_l, sentence_bleu
from smoothloss.sampling import Samples, effective_sample_size, importance_weights
from smoothloss_trainer.config import RewardConfig
from smoothloss_trainer.tasks import Batch

Reward = Callable[[Tensor, Tensor, References], Tensor]


class SampleWeights:
    """``omega ∝ exp(min(r, clip) / tau) / q`` of a batch's samples (or without q), and what a log line says of them.

    Args:
        config: The recipe's ``loss.reward:`` section; its name is not ``none``.
        references: Those of every training input, on the training device; None for the constant reward, and where a
            sample's reference is its own ground truth.
        cider: The reward itself where it is CIDEr.
        device: Where training runs.

    Attributes:
        sums: ``(3,)`` float64 on the device, over the inputs since the last :meth:`reset`: their samples' mean reward,
            their number of effective samples, and how many inputs there were. With ``normalize: batch`` the second is
            the effective number in the batch, shared out evenly.
    """

    def __init__(
        self,
        config: RewardConfig,
        references: References | None,
        cider: Cider | None,
        device: torch.device,
    ) -> None:
        self.config, self.references = config, references
        self._reward = reward_function(config, cider) if config.reads_references else None
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)

    def __call__(self, samples: Samples, batch: Batch) -> Tensor:
        """``(L, B)`` weights of the samples of a batch."""
        scores = self.score(samples.tokens, samples.lengths, batch)
        config = self.config
        log_prob = samples.log_prob if config.divide_by_q else torch.zeros_like(samples.log_prob)
        weights = importance_weights(scores, log_prob, tau=config.tau, normalize=config.normalize, clip=config.clip)
        self._count(scores, weights)
        return weights

    def score(self, tokens: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
        """``(L, B)`` float64 rewards.

        Raises:
            ValueError: when the batch does not say which inputs it holds.
        """
        if self._reward is None:
            return torch.ones(tokens.shape[:2], dtype=torch.float64, device=tokens.device)
        if self.references is None:
            return self._reward(tokens, lengths, References.of_targets(batch.target, batch.lengths))
        if batch.inputs is None:
            raise ValueError("batch.inputs: got None, expected the numbers of the inputs, to find their references")
        return self._reward(tokens, lengths, self.references.select(batch.inputs))

    def _count(self, scores: Tensor, weights: Tensor) -> None:
        count, inputs = weights.shape
        together = self.config.normalize == "batch"
        effective = effective_sample_size(weights.view(-1, 1) if together else weights)
        number = torch.full_like(self.sums[0], inputs)
        self.sums += torch.stack((scores.sum() / count, effective.double().sum(), number))

    def means(self, total: Callable[[list[float]], list[float]] = list) -> dict[str, float]:
        """``{"reward": ..., "effective_samples": ...}``: means since :meth:`reset`. Waits for the device.

        Args:
            total: Sums numbers over the processes that train together.
        """
        reward, effective, count = total(self.sums.tolist())
        return {"reward": reward / max(count, 1.0), "effective_samples": effective / max(count, 1.0)}

    def reset(self) -> None:
        """Start the sums anew."""
        self.sums.zero_()

    def state(self) -> list[float]:
        """The sums as plain numbers; waits for the device."""
        return self.sums.tolist()

    def restore(self, sums: Sequence[float]) -> None:
        """Put back what :meth:`state` gave."""
        self.sums.copy_(torch.tensor(sums, dtype=torch.float64))


def reward_function(config: RewardConfig, cider: Cider | None) -> Reward:
    """The reward of this name, a function of candidates, their lengths and references.

    Raises:
        ValueError: for CIDEr without its document frequencies.
    """
    if config.name == "cider":
        if cider is None:
            raise ValueError("cider: got None, expected the document frequencies for the reward cider")
        return cider
    if config.name == "bleu":
        return partial(sentence_bleu, n=config.bleu_order, smoothing=config.bleu_smoothing)
    return {"hamming": hamming, "edit_distance": edit_distance, "rouge_l": rouge_l}[config.name]
