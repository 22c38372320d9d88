"""BLEU on token ids: of sentences, as a reward, and of a corpus, from the same counts."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from smoothloss import _compiled as compiled
from smoothloss._validation import check_flag, check_integer, check_number, check_tensor
from smoothloss.rewards._candidates import Candidates, Problem, problem
from smoothloss.rewards.references import References

Smoothing = Literal["none", "floor", "add-k", "exp", "add-k-all", "coco"]
_DEFAULT_K = {"floor": 0.1, "add-k": 1.0, "add-k-all": 1.0}
_MAX_ORDER = 8  # csrc/ngram/arguments.h


def sentence_bleu(
    candidates: Candidates,
    lengths: Tensor | None,
    references: References,
    *,
    n: int = 4,
    smoothing: Smoothing = "add-k",
    k: float | None = None,
    effective_order: bool = True,
) -> Tensor:
    r"""``BP * exp(sum_i log(matches_i / total_i) / n)``, i = 1..n, of each candidate against its input's references.

    ``matches_i`` are the candidate's i-grams that a reference has, each counted at most as often as in the reference
    that has it most often; ``total_i`` all its i-grams; ``BP = exp(min(0, 1 - r / c))`` for c tokens, r the length of
    the reference closest to c (the shorter one of two). The smoothings, with their default ``k``:

    * ``"none"``, ``"floor"`` (0.1), ``"add-k"`` (1; from the bigrams on), ``"exp"``: sacrebleu's. A candidate without
      a single match has 0.
    * ``"add-k-all"`` (1): ``(matches_i + k) / (total_i + k)`` at every order, the reward of Elbayad et al.
    * ``"coco"``: the tiny constants of coco-caption in place of a smoothing. Its single-candidate score takes the
      *average* length of the references, a quirk that this one does not share; among several candidates it takes the
      closest, as here.

    Args:
        candidates: ``(B, T)`` or ``(L, B, T)`` int64 or int32 token ids, or B lists of ids. EOS is no part of them.
        lengths: ``(B)`` or ``(L, B)`` tokens of each, <= T; None: all T, or the lists' own.
        references: of the B inputs, on the same device.
        n: the longest n-grams, 1 to 8.
        smoothing: see above.
        k: the smoothing's constant, >= 0; None for its default.
        effective_order: with sacrebleu's smoothings: orders that the candidate is too short for are left out, as
            sacrebleu does for sentences; otherwise they make it 0.

    Returns:
        ``(B)`` or ``(L, B)`` float64 in [0, 1] (sacrebleu's are times 100); 0 where there is no reference.

    Raises:
        TypeError, ValueError: an argument of the wrong type or shape, or out of its range.
        IndexError: a token id < 0 or >= 2^31 - 1 within a candidate's length (on the CPU).

    Source: Papineni et al. 2002; Post 2018 (sacrebleu); Chen and Cherry 2014 (smoothings).
    """
    n = _check(n, smoothing)
    if k is not None and smoothing not in _DEFAULT_K:
        raise ValueError(f"k: got {k} for smoothing={smoothing!r}, which has no constant; expected None")
    constant = _DEFAULT_K.get(smoothing, 0.0) if k is None else check_number(k, "k", 0.0)
    effective_order = check_flag(effective_order, "effective_order")
    scored = problem(candidates, lengths, references)
    scores = scored.empty()
    _run(scored, n, smoothing, constant, effective_order, scores, None)
    return scored.result(scores)


def bleu_statistics(candidates: Candidates, lengths: Tensor | None, references: References, *, n: int = 4) -> Tensor:
    """``[c, r, matches_1..n, total_1..n]`` of each candidate: what BLEU is made of, and what adds up over a corpus.

    Args:
        candidates, lengths, references, n: as in `sentence_bleu`.

    Returns:
        ``(..., 2 + 2 n)`` int64.

    Raises: as `sentence_bleu`.
    """
    n = _check(n, "none")
    scored = problem(candidates, lengths, references)
    statistics = scored.empty(2 + 2 * n, dtype=torch.int64)
    _run(scored, n, "none", 0.0, False, None, statistics)
    return scored.result(statistics)


def corpus_bleu(statistics: Tensor, *, smoothing: Literal["exp", "coco"] = "exp") -> Tensor:
    """BLEU-1 to BLEU-n of a corpus from the `bleu_statistics` of its sentences.

    Args:
        statistics: ``(N, ..., 2 + 2 n)`` of N sentences, or of N parts of the corpus; they are summed over N. With more
            dimensions that many corpora.
        smoothing: ``"exp"`` as sacrebleu's corpus score has it (an order without a match counts as a half, a quarter,
            ... match), or ``"coco"`` as coco-caption has it.

    Returns:
        ``(..., n)`` float64 in [0, 1].

    Raises:
        TypeError: `statistics` is no tensor.
        ValueError: it has another shape, or `smoothing` is another one.
    """
    check_tensor(statistics, "statistics")
    if statistics.dim() < 2 or statistics.shape[-1] < 4 or statistics.shape[-1] % 2:
        raise ValueError(f"statistics: got shape {tuple(statistics.shape)}, expected (N, ..., 2 + 2 n)")
    if smoothing not in ("exp", "coco"):
        raise ValueError(f"smoothing: got {smoothing!r}, expected 'exp' or 'coco'")
    n = statistics.shape[-1] // 2 - 1
    length, reference_length, matches, totals = statistics.sum(0).double().split([1, 1, n, n], dim=-1)
    scored = (matches[..., :1] > 0) & (totals > 0)
    if smoothing == "coco":
        length, reference_length, matches, totals = (
            length + 1e-15,
            reference_length + 1e-9,
            matches + 1e-15,
            totals + 1e-9,
        )
    else:
        missed = (matches == 0) & (totals > 0)
        matches = torch.where(missed, 0.5 ** missed.cumsum(-1), matches)
    penalty = (1 - reference_length / length).clamp(max=0).exp()
    orders = torch.arange(1, n + 1, dtype=torch.float64, device=statistics.device)
    bleu = penalty * (matches / totals).log().cumsum(-1).div(orders).exp()
    # Neither a corpus without a match nor one that is too short for an order has a score.
    return bleu if smoothing == "coco" else torch.where(scored, bleu, 0.0)


def _check(n: int, smoothing: str) -> int:
    """Return n as an int; raise where it, or the smoothing, is out of its range."""
    if smoothing not in get_args(Smoothing):
        raise ValueError(f"smoothing: got {smoothing!r}, expected one of {', '.join(map(repr, get_args(Smoothing)))}")
    return check_integer(n, "n", 1, _MAX_ORDER)


def _run(
    scored: Problem, n: int, smoothing: Smoothing, k: float, effective_order: bool, scores: Tensor | None,
    statistics: Tensor | None,
) -> None:  # fmt: skip
    compiled.call(
        "sentence_bleu",
        scored.tokens,
        scored.candidates(),
        scored.references.arguments(),
        n,
        get_args(Smoothing).index(smoothing),
        k,
        effective_order,
        0 if scores is None else scores.data_ptr(),
        0 if statistics is None else statistics.data_ptr(),
    )
