"""Scores of generated text."""

from __future__ import annotations

from collections.abc import Sequence


def corpus_bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float | str]:
    """``{"bleu": 0..100, "bleu_signature": ...}`` of tokenised text by sacrebleu, its own tokeniser off.

    Args:
        candidates: One line of tokens joined by spaces per input.
        references: One or more lists of reference lines, each as long as ``candidates``.
    """
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="none", force=True)
    score = metric.corpus_score(list(candidates), [list(lines) for lines in references])
    return {"bleu": float(score.score), "bleu_signature": str(metric.get_signature())}


def caption_scores(candidates: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    """``{"bleu_1": ..., "bleu_4": ..., "cider": ...}`` by coco-caption's Python scorers, times 100 as in papers.

    Args:
        candidates: Tokenised caption by image id.
        references: Tokenised reference captions of the same images.

    Raises:
        ImportError: without the extra ``[caption]``.
        ValueError: when the ids differ or an image has no reference.
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
    except ImportError:
        raise ImportError("caption metrics need pycocoevalcap: pip install 'smoothloss[caption]'") from None
    if candidates.keys() != references.keys():
        odd = sorted(candidates.keys() ^ references.keys())
        raise ValueError(f"candidates and references must have the same ids; only one has {', '.join(odd[:3])}")
    empty = [key for key, captions in references.items() if not captions]
    if empty:
        raise ValueError(f"references must have a caption for each id, got none for {empty[0]}")
    results = {key: [caption] for key, caption in candidates.items()}
    truths = {key: list(references[key]) for key in candidates}
    bleu, _ = Bleu(4).compute_score(truths, results, verbose=0)
    cider, _ = Cider().compute_score(truths, results)
    scores = {f"bleu_{n}": 100.0 * float(value) for n, value in enumerate(bleu, 1)}
    return {**scores, "cider": 100.0 * float(cider)}
