"""Others that score sentences: pycocoevalcap, sacrebleu, and BLEU from operators of torch as TensorBLEU computes it."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.captions import Captions

ORDER = 4


def _by_number(captions: Captions) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    return dict(enumerate(captions.references)), {i: [text] for i, text in enumerate(captions.candidates[0])}


def coco_cider(captions: Captions) -> Tensor:
    """Return CIDEr-D of each candidate, of pycocoevalcap."""
    from pycocoevalcap.cider.cider import Cider

    return torch.as_tensor(Cider().compute_score(*_by_number(captions))[1])


def coco_bleu(captions: Captions) -> Tensor:
    """Return BLEU-4 of each candidate, of pycocoevalcap."""
    from pycocoevalcap.bleu.bleu import Bleu

    return torch.tensor(Bleu(ORDER).compute_score(*_by_number(captions), verbose=0)[1][-1], dtype=torch.float64)


def coco_rouge(captions: Captions) -> Tensor:
    """Return ROUGE-L of each candidate, of pycocoevalcap."""
    from pycocoevalcap.rouge.rouge import Rouge

    return torch.as_tensor(Rouge().compute_score(*_by_number(captions))[1])


def sacrebleu(captions: Captions) -> Tensor:
    """Return sentence BLEU-4 of each candidate, of sacrebleu."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize="none", effective_order=True, force=True)
    pairs = zip(captions.candidates[0], captions.references, strict=True)
    return torch.tensor([metric.sentence_score(*pair).score / 100 for pair in pairs], dtype=torch.float64)


def unique_ngrams_bleu(candidates: Tensor, lengths: Tensor, references: Tensor, reference_lengths: Tensor) -> Tensor:
    """Return BLEU-4 with 1 added at every order, from the batch's distinct n-grams: the approach of TensorBLEU.

    The n-grams of all sentences are laid out by ``unfold`` and numbered by ``unique``; ``bincount`` counts them, so a
    sentence has as many counts as the batch has distinct n-grams.

    Args:
        candidates: ``(C, T)`` ids.
        lengths: ``(C,)``.
        references: ``(C, R, T)`` ids.
        reference_lengths: ``(C, R)``.

    Source: arXiv 2510.05485.
    """
    count, num_references = reference_lengths.shape
    tokens = torch.cat((candidates.unsqueeze(1), references), 1)  # (C, 1 + R, T)
    all_lengths = torch.cat((lengths.unsqueeze(1), reference_lengths), 1)
    score = torch.zeros(count, dtype=torch.float64, device=tokens.device)
    for n in range(1, ORDER + 1):
        totals = (all_lengths - n + 1).clamp(min=0)  # (C, 1 + R)
        ngrams = tokens.unfold(2, n, 1)  # (C, 1 + R, T - n + 1, n)
        distinct, numbers = torch.unique(ngrams.flatten(0, 2), dim=0, return_inverse=True)
        exists = torch.arange(ngrams.shape[2], device=tokens.device) < totals.unsqueeze(-1)
        sentence = torch.arange(count * (1 + num_references), device=tokens.device).view(count, -1, 1)
        slots = sentence * len(distinct) + numbers.view(exists.shape)
        size = count * (1 + num_references) * len(distinct)
        counts = torch.bincount(slots.flatten(), exists.flatten().float(), size).view(count, -1, len(distinct))
        matches = torch.minimum(counts[:, 0], counts[:, 1:].amax(1)).sum(-1, dtype=torch.float64)
        score += ((matches + 1) / (totals[:, 0] + 1)).log() / ORDER
    # The closest reference, the shorter one of two.
    distance = 2 * (reference_lengths - lengths.unsqueeze(1)).abs() + (reference_lengths > lengths.unsqueeze(1))
    closest = reference_lengths.gather(1, distance.argmin(1, keepdim=True)).squeeze(1)
    return (score + (1 - closest / lengths.double()).clamp(max=0)).exp()
