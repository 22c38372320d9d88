"""Rewards that align a candidate with each reference: ROUGE-L, Hamming and edit distance."""

from __future__ import annotations

from torch import Tensor

from smoothloss import _compiled as compiled
from smoothloss._validation import check_number
from smoothloss.rewards._candidates import Candidates, problem
from smoothloss.rewards.references import References

_ROUGE_L, _HAMMING, _EDIT_DISTANCE = range(3)  # Alignment in csrc/ngram/arguments.h


def rouge_l(candidates: Candidates, lengths: Tensor | None, references: References, *, beta: float = 1.2) -> Tensor:
    """``(1 + beta^2) P R / (R + beta^2 P)`` with ``P = max_r LCS / c`` and ``R = max_r LCS / len(r)``.

    LCS is the length of the longest common subsequence of candidate and reference. As in coco-caption, the largest
    precision and the largest recall may come from different references.

    Args:
        candidates, lengths, references: as in `sentence_bleu`.
        beta: the weight of recall, > 0.

    Returns:
        ``(B)`` or ``(L, B)`` float64 in [0, 1]; 0 for an empty candidate and where there is no reference.

    Raises: as `sentence_bleu`.

    Source: Lin 2004; beta = 1.2 of coco-caption.
    """
    beta = check_number(beta, "beta", 0.0, open_low=True)
    return _align(candidates, lengths, references, _ROUGE_L, beta)


def hamming(candidates: Candidates, lengths: Tensor | None, references: References) -> Tensor:
    """``-min_r (#{t: c_t != r_t} + |len(c) - len(r)|)``: minus the Hamming distance to the nearest reference.

    Positions that only the longer one has are counted as different.

    Args:
        candidates, lengths, references: as in `sentence_bleu`.

    Returns:
        ``(B)`` or ``(L, B)`` float64 <= 0; ``-len(c)``, the distance to nothing, where there is no reference.

    Raises: as `sentence_bleu`.

    Source: the reward of section 3.2 of Elbayad et al. 2018; Norouzi et al. 2016.
    """
    return _align(candidates, lengths, references, _HAMMING)


def edit_distance(candidates: Candidates, lengths: Tensor | None, references: References) -> Tensor:
    """Minus the edit distance to the nearest reference: the fewest substitutions, insertions and deletions.

    Args:
        candidates, lengths, references: as in `sentence_bleu`.

    Returns:
        ``(B)`` or ``(L, B)`` float64 <= 0; ``-len(c)``, the distance to nothing, where there is no reference.

    Raises: as `sentence_bleu`.

    Source: Levenshtein 1966; the reward of Norouzi et al. 2016.
    """
    return _align(candidates, lengths, references, _EDIT_DISTANCE)


def _align(
    candidates: Candidates, lengths: Tensor | None, references: References, kind: int, beta: float = 0.0
) -> Tensor:
    scored = problem(candidates, lengths, references)
    scores, carries = scored.empty(), scored.scratch(-(-scored.tokens.shape[1] // 32))
    compiled.call(
        "alignment",
        scored.tokens,
        scored.candidates(),
        scored.references.arguments(),
        kind,
        beta,
        carries.data_ptr(),
        scores.data_ptr(),
    )
    return scored.result(scores)
