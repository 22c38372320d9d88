"""The probability of a sequence under edit scripts: the sum over all scripts that give it, by dynamic programming."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from smoothloss.sampling.samples import Sentences

# Stands beyond the end of a sentence, where nothing may match.
_NO_TOKEN = torch.iinfo(torch.int64).min
# Rows of the table between two rescalings, so that nothing underflows.
_RESCALE_EVERY = 8


class Edits(NamedTuple):
    """What may happen to each token of the ground truths, and the weight that a script pays for it.

    Attributes:
        tokens: ``(B, T)`` int64; beyond the end no token, which nothing matches.
        substitution: ``(B, T)``, the weight of each substitute; 0 where the token must stay.
        deletion: ``(B, T)``, the same; 1 beyond the end, so that rows there change nothing.
        insertion: The weight of each inserted token.
    """

    tokens: Tensor
    substitution: Tensor
    deletion: Tensor
    insertion: float

    @classmethod
    def of(cls, sentences: Sentences, choices: Tensor, odds: Tensor, insertion: float) -> Edits:
        """Return the edits of ground truths.

        Args:
            sentences: The ground truths.
            choices: ``(B, T)``, how many choices there are to replace a token, deletion included.
            odds: ``(B,)``, the weight of all these together.
            insertion: The weight of each inserted token.
        """
        weight = (odds[:, None] / choices).where(sentences.replaceable, 0.0)
        tokens = sentences.target.to(torch.int64).where(sentences.within, _NO_TOKEN)
        return cls(tokens, weight, weight.where(sentences.within, 1.0), insertion)


def log_weight(edits: Edits, tokens: Tensor, from_pool: Tensor, lengths: Tensor, max_insertions: int) -> Tensor:
    """``log sum over scripts of exp(-edits / tau)`` of each sequence, in float64.

    Args:
        edits: What may happen to the ground truths.
        tokens: ``(L, B, T + K)`` int64 sequences.
        from_pool: ``(L, B, T + K)`` bool, the words that are in the pool of their sentence.
        lengths: ``(L, B)``, the words of each sequence.
        max_insertions: K.

    Returns:
        ``(L, B)``.
    """
    (num_samples, batch, _), length = tokens.shape, edits.tokens.shape[1]
    inserted = torch.arange(max_insertions + 1, device=tokens.device)[:, None]
    # A cell of the table: so many inserted and so many other words so far. Cells first, samples last.
    words_so_far = inserted + torch.arange(length + 1, device=tokens.device)
    words, pooled = tokens.permute(2, 0, 1), from_pool.permute(2, 0, 1).double()
    next_word, may_substitute = words[words_so_far[:, :-1]], pooled[words_so_far[:, :-1]]
    insertion = pooled[words_so_far[:-1]] * edits.insertion
    original, substitution, deletion = (
        values.T[:, None].expand(-1, num_samples, -1).contiguous()
        for values in (edits.tokens, edits.substitution, edits.deletion)
    )
    # The weights of all beginnings of scripts. Behind an insertion there may only be a token that is kept, or the end:
    # `settled` are those that do not end with one.
    settled = pooled.new_zeros((*words_so_far.shape, num_samples, batch))
    settled[0, 0] = 1.0
    weight, log_scale = _with_insertions(settled[:, :1], insertion[:, :1]), settled.new_zeros(lengths.shape)
    for t in range(length):
        replaced = settled[:, : t + 1] * substitution[t]
        replaced *= may_substitute[:, : t + 1]
        moved = torch.where(next_word[:, : t + 1] == original[t], weight, replaced)
        reached = settled[:, : t + 2]  # no more other words than originals
        reached *= deletion[t]
        reached[:, 1:] += moved
        if t % _RESCALE_EVERY == _RESCALE_EVERY - 1:
            scale = reached.amax(dim=(0, 1))
            reached /= scale
            log_scale += scale.log()
        weight = _with_insertions(reached, insertion[:, : t + 2])
    complete = words_so_far[:, :, None, None] == lengths
    return weight.where(complete, 0.0).sum(dim=(0, 1)).log() + log_scale


def _with_insertions(settled: Tensor, insertion: Tensor) -> Tensor:
    """Let any number of insertions follow; ``(K + 1, R, L, B)`` and ``(K, R, L, B)``."""
    weight = settled.clone()
    for k in range(insertion.shape[0]):
        weight[k + 1].addcmul_(weight[k], insertion[k])
    return weight
