"""Rewards of sampled sequences, on token ids: batched, in native code, on the device where the ids are.

::

    references = References(token_ids)                  # token_ids[b]: the references of input b; packed once
    cider = Cider(references)                           # document frequencies, counted once
    batch = references.select(inputs)                   # those of a batch's inputs, (B,)
    scores = cider(samples.tokens, lengths, batch)      # (L, B)
    sentence_bleu(samples.tokens, lengths, batch, smoothing="add-k-all")

All are functions of ``(candidates, lengths, references)``; larger is better. No gradient flows through them.
"""

from smoothloss.rewards.alignment import edit_distance, hamming, rouge_l
from smoothloss.rewards.bleu import bleu_statistics, corpus_bleu, sentence_bleu
from smoothloss.rewards.cider import Cider
from smoothloss.rewards.references import References

__all__ = [
    "Cider",
    "References",
    "bleu_statistics",
    "corpus_bleu",
    "edit_distance",
    "hamming",
    "rouge_l",
    "sentence_bleu",
]
