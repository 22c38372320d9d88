"""Sampling sequences around a ground truth, and the weights that turn the samples into another distribution's."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch

# Sorts behind every token id, so that a row of a pool is its tokens and then padding.
_NO_TOKEN = torch.iinfo(torch.int64).max


class Samples(NamedTuple):
    """L sequences for each of B ground truths.

    Attributes:
        tokens: ``(L, B, T)`` in the ground truth's dtype; equal to it wherever nothing was replaced.
        distance: ``(L, B)`` int64, the distance between sample and ground truth.
        log_prob: ``(L, B)`` float32, ``log q(sample | ground truth)``.
    """

    tokens: torch.Tensor
    distance: torch.Tensor
    log_prob: torch.Tensor


class Substitutes:
    """Sorted sets of tokens, one for each sentence or one for all, to draw substitutes from uniformly.

    What a pool hands to a sampler: how many substitutes there are for each token, and draws of them. A token is never
    its own substitute.

    Attributes:
        tokens: ``(B or 1, W)`` int64, each row ascending, without repeats, then padding that is no token id.
        size: ``(B or 1,)`` int64, the tokens in each row.
    """

    def __init__(self, tokens: torch.Tensor, keep: torch.Tensor | None = None) -> None:
        """Sorts ``tokens (B or 1, W)``, leaving out repeats and what ``keep`` (same shape, bool) does not want."""
        tokens = tokens.to(torch.int64)
        if keep is not None:
            tokens = tokens.masked_fill(~keep, _NO_TOKEN)
        # At least one column, so that an empty pool needs no path of its own.
        tokens = torch.cat([tokens, tokens.new_full((tokens.shape[0], 1), _NO_TOKEN)], dim=-1).sort(dim=-1).values
        repeated = tokens[:, 1:] == tokens[:, :-1]
        tokens[:, 1:] = tokens[:, 1:].masked_fill(repeated, _NO_TOKEN)
        self.tokens = tokens.sort(dim=-1).values
        self.size = (self.tokens != _NO_TOKEN).sum(dim=-1)

    def count(self, target: torch.Tensor) -> torch.Tensor:
        """``(B, T)`` tokens -> ``(B, T)`` int64, the tokens of the sentence's pool other than the token itself."""
        return self.size[:, None] - self._find(target)[1].to(torch.int64)

    def draw(self, target: torch.Tensor, num_samples: int, generator: torch.Generator | None) -> torch.Tensor:
        """``(B, T)`` tokens -> ``(L, B, T)`` int64 draws, each uniform over the :meth:`count` substitutes.

        Where there is none, the draw is no token and must not be used.
        """
        batch, length = target.shape
        rank, inside = self._find(target)
        count = self.size[:, None] - inside.to(torch.int64)
        # 63 random bits: the bias of the remainder is below V / 2^63.
        bits = torch.randint(_NO_TOKEN, (num_samples, batch, length), generator=generator, device=target.device)
        place = bits % count.clamp(min=1)
        # Counting the pool's tokens without the original: the places from its rank on move by one.
        place = place + (inside & (place >= rank)).to(torch.int64)
        place = place.permute(1, 0, 2).reshape(batch, num_samples * length)
        drawn = self.tokens.expand(batch, -1).gather(1, place)
        return drawn.view(batch, num_samples, length).permute(1, 0, 2)

    def _find(self, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where each token of ``(B, T)`` is, or would be, in its sentence's row, and whether it is there."""
        target = target.to(torch.int64)
        tokens = self.tokens.expand(target.shape[0], -1).contiguous() if self.tokens.shape[0] > 1 else self.tokens
        flat = target.reshape(tokens.shape[0], -1) if tokens.shape[0] == 1 else target
        # Token ids are below the padding, so that the rank is always a column.
        rank = torch.searchsorted(tokens, flat.contiguous())
        inside = tokens.gather(1, rank) == flat
        return rank.view(target.shape), inside.view(target.shape)


class Pool(ABC):
    """The tokens that may take a token's place (V_sub, section 3.2 of the paper).

    Args:
        exclude: Token ids that are never drawn and never replaced: PAD, BOS, EOS, UNK.
    """

    def __init__(self, exclude: Iterable[int] = ()) -> None:
        self.exclude = tuple(sorted(set(exclude)))
        for token in self.exclude:
            if isinstance(token, bool) or not isinstance(token, int):
                raise TypeError(f"exclude: got {token!r} ({type(token).__name__}), expected integer token ids")
            if token < 0:
                raise ValueError(f"exclude: got token {token}, expected token ids >= 0")
        self._excluded: dict[torch.device, Substitutes] = {}

    def is_excluded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Which of ``(B, T)`` tokens may neither be drawn nor replaced: the excluded ones and negative ids."""
        if tokens.device not in self._excluded:
            # Once for each device: building it from a list waits for the device.
            self._excluded[tokens.device] = Substitutes(torch.tensor([self.exclude], device=tokens.device))
        return self._excluded[tokens.device]._find(tokens)[1] | (tokens < 0)

    @abstractmethod
    def substitutes(
        self, target: torch.Tensor, replaceable: torch.Tensor, references: torch.Tensor | None
    ) -> Substitutes:
        """The pool of each sentence.

        Args:
            target: ``(B, T)`` ground truths.
            replaceable: ``(B, T)`` bool, the positions within a sentence whose token is not excluded.
            references: ``(B, R)`` token ids, negative in padding, or None.
        """


class VocabularyPool(Pool):
    """All tokens ``0 <= token < size`` that are not excluded: one pool for everything.

    Args:
        size: V, the size of the vocabulary.
        exclude: Token ids that are never drawn and never replaced.
    """

    def __init__(self, size: int, exclude: Iterable[int] = ()) -> None:
        super().__init__(exclude)
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"size: got {size!r} ({type(size).__name__}), expected an integer")
        if size < 1:
            raise ValueError(f"size: got {size}, expected at least 1")
        if self.exclude and self.exclude[-1] >= size:
            raise ValueError(f"exclude: got token {self.exclude[-1]}, expected 0 <= token < {size}")
        self.size = size
        self._pools: dict[torch.device, Substitutes] = {}

    def substitutes(
        self, target: torch.Tensor, replaceable: torch.Tensor, references: torch.Tensor | None
    ) -> Substitutes:
        """The vocabulary without the excluded tokens, the same for every sentence."""
        if target.device not in self._pools:
            tokens = torch.arange(self.size, device=target.device)[None]
            self._pools[target.device] = Substitutes(tokens, ~self.is_excluded(tokens))
        return self._pools[target.device]


class BatchPool(Pool):
    """The tokens of all ground truths of the mini-batch (V_batch)."""

    def substitutes(
        self, target: torch.Tensor, replaceable: torch.Tensor, references: torch.Tensor | None
    ) -> Substitutes:
        """The distinct replaceable tokens of the batch, the same for every sentence."""
        return Substitutes(target.reshape(1, -1), replaceable.reshape(1, -1))


class ReferencePool(Pool):
    """The tokens of all ground truths of the same input (V_refs), given to the sampler as ``references``."""

    def substitutes(
        self, target: torch.Tensor, replaceable: torch.Tensor, references: torch.Tensor | None
    ) -> Substitutes:
        """The distinct tokens of each row of ``references`` that are not excluded."""
        if references is None:
            raise ValueError("references: got None, expected a (B, R) tensor of token ids for a ReferencePool")
        return Substitutes(references, ~self.is_excluded(references))


class HammingSampler:
    r"""Samples ``y`` with ``q(y | y*) ∝ exp(-hamming(y, y*) / tau)`` over substitutions from a pool.

    Position t with ``n_t`` substitutes (tokens of the pool other than ``y*_t``) is replaced with probability
    ``n_t e^{-1/tau} / (1 + n_t e^{-1/tau})``, by each of them alike, independently of the other positions. That is
    exactly the stratified sampler of Appendix A: the distance is distributed as
    ``p(d) = C(T, d) (v - 1)^d e^{-d/tau} / Z`` for a pool of v tokens that ``y*`` is part of. The log-probability is
    ``-d / tau - sum_t log(1 + n_t e^{-1/tau})``.

    A sentence has its own length. Beyond it, and where the ground truth is negative (``ignore_index``) or excluded
    by the pool, nothing is replaced; a pool without a substitute replaces nothing.

    Args:
        tau: Temperature, > 0. Norouzi's is another scale: ``tau = tau_norouzi / (1 + ln(v - 1))``.
        pool: :class:`VocabularyPool`, :class:`BatchPool` or :class:`ReferencePool`.

    Raises:
        TypeError: ``pool`` is no pool.
        ValueError: ``tau`` is not a finite number > 0.
    """

    def __init__(self, tau: float, pool: Pool) -> None:
        if not 0 < tau < math.inf:
            raise ValueError(f"tau: got {tau}, expected a finite number > 0")
        if not isinstance(pool, Pool):
            raise TypeError(f"pool: got {type(pool).__name__}, expected a VocabularyPool, BatchPool or ReferencePool")
        self.tau = float(tau)
        self.pool = pool

    def __call__(
        self,
        target: torch.Tensor,
        lengths: torch.Tensor | None,
        num_samples: int,
        generator: torch.Generator | None = None,
        references: torch.Tensor | None = None,
    ) -> Samples:
        """Draws L samples for each of B sentences, on the tensors' device and without waiting for it.

        Args:
            target: ``(B, T)`` integer ground truths.
            lengths: ``(B,)`` integer lengths; None stands for T.
            num_samples: L, >= 1.
            generator: Random numbers of the target's device; the same seed gives the same samples.
            references: ``(B, R)`` integer token ids, padded by negative ids; only for :class:`ReferencePool`.

        Raises:
            TypeError: A tensor is not of integers, or ``num_samples`` no integer.
            ValueError: Shapes or devices do not fit, ``num_samples < 1``, or references are missing.
        """
        _check_sampling(target, lengths, num_samples, references)
        replaceable = ~self.pool.is_excluded(target)
        if lengths is not None:
            positions = torch.arange(target.shape[1], device=target.device)
            replaceable = replaceable & (positions < lengths[:, None])
        substitutes = self.pool.substitutes(target, replaceable, references)
        count = torch.where(replaceable, substitutes.count(target), 0)
        # log(n e^{-1/tau}); -inf, which means never, without substitutes.
        log_odds = count.double().log() - 1 / self.tau
        shape = (num_samples, *target.shape)
        coins = torch.rand(shape, dtype=torch.float64, device=target.device, generator=generator)
        replaced = coins < log_odds.sigmoid()
        drawn = substitutes.draw(target, num_samples, generator)
        distance = replaced.sum(dim=-1)
        log_normalizer = torch.nn.functional.softplus(log_odds).sum(dim=-1)
        return Samples(
            tokens=torch.where(replaced, drawn.to(target.dtype), target),
            distance=distance,
            log_prob=(-distance.double() / self.tau - log_normalizer).float(),
        )

    def __repr__(self) -> str:
        return f"HammingSampler(tau={self.tau:g}, pool={type(self.pool).__name__}(exclude={self.pool.exclude}))"


def importance_weights(
    scores: torch.Tensor,
    log_prob: torch.Tensor,
    *,
    tau: float,
    normalize: Literal["samples", "batch"] = "samples",
    clip: float | None = None,
) -> torch.Tensor:
    """``softmax(scores / tau - log_prob, dim=0)``: weights of samples of q for ``r(y) ∝ exp(score(y) / tau)``.

    Args:
        scores: ``(L, B)`` floating point rewards of the samples.
        log_prob: ``(L, B)`` floating point ``log q`` of the samples.
        tau: Temperature of the rewards, > 0.
        normalize: ``"samples"``: the weights of each input sum to one over its L samples (Eq. 11). ``"batch"``: they
            are divided by the mini-batch's mean instead, so that their sums over L average to one over the batch.
            That is what gives L = 1 a meaning, and what the authors ran.
        clip: Upper bound of the scores, applied first. The authors clip CIDEr at 1.

    Returns:
        ``(L, B)`` float32, or float64 when an input is. Computed in log space.

    Raises:
        TypeError: An input is not floating point.
        ValueError: Shapes differ or are not ``(L, B)``, or an option is out of its range.
    """
    for name, tensor in (("scores", scores), ("log_prob", log_prob)):
        if not tensor.dtype.is_floating_point:
            raise TypeError(f"{name}: got dtype {tensor.dtype}, expected a floating point type")
    if scores.dim() != 2 or scores.shape != log_prob.shape:
        raise ValueError(
            f"scores, log_prob: got shapes {tuple(scores.shape)} and {tuple(log_prob.shape)}, expected (L, B) for both"
        )
    if not 0 < tau < math.inf:
        raise ValueError(f"tau: got {tau}, expected a finite number > 0")
    if normalize not in ("samples", "batch"):
        raise ValueError(f"normalize: got {normalize!r}, expected 'samples' or 'batch'")
    if clip is not None and math.isnan(clip):
        raise ValueError("clip: got nan, expected a number or None")
    dtype = torch.promote_types(torch.promote_types(scores.dtype, log_prob.dtype), torch.float32)
    scores, log_prob = scores.to(dtype), log_prob.to(dtype)
    if clip is not None:
        scores = scores.clamp(max=clip)
    log_weights = scores / tau - log_prob
    if normalize == "samples":
        return log_weights.softmax(dim=0)
    return log_weights.flatten().softmax(dim=0).view_as(log_weights) * log_weights.shape[1]


def effective_sample_size(weights: torch.Tensor) -> torch.Tensor:
    """``weights.sum(0) ** 2 / (weights ** 2).sum(0)``: L for equal weights, 1 when a single sample has them all.

    Args:
        weights: ``(L, B)`` floating point, >= 0; any scale.

    Returns:
        ``(B,)``; 0 where all weights are 0.

    Raises:
        ValueError: ``weights`` is not 2-D.
    """
    if weights.dim() != 2:
        raise ValueError(f"weights: got shape {tuple(weights.shape)}, expected (L, B)")
    # Scaled by the largest weight, so that no square underflows.
    largest = torch.linalg.vector_norm(weights, ord=math.inf, dim=0) if weights.numel() else weights.sum(dim=0)
    scaled = weights / torch.where(largest > 0, largest, 1.0)
    return scaled.sum(dim=0).square() / scaled.square().sum(dim=0).clamp(min=1.0)


def _check_sampling(
    target: torch.Tensor, lengths: torch.Tensor | None, num_samples: int, references: torch.Tensor | None
) -> None:
    if target.dim() != 2:
        raise ValueError(f"target: got shape {tuple(target.shape)}, expected (B, T)")
    batch = target.shape[0]
    for name, tensor in (("target", target), ("lengths", lengths), ("references", references)):
        if tensor is None:
            continue
        if tensor.dtype not in (torch.int64, torch.int32, torch.int16):
            raise TypeError(f"{name}: got dtype {tensor.dtype}, expected int64, int32 or int16")
        if tensor.device != target.device:
            raise ValueError(f"{name}: got device {tensor.device}, expected the target's, {target.device}")
    if lengths is not None and lengths.shape != (batch,):
        raise ValueError(f"lengths: got shape {tuple(lengths.shape)}, expected ({batch},)")
    if references is not None and (references.dim() != 2 or references.shape[0] != batch):
        raise ValueError(f"references: got shape {tuple(references.shape)}, expected ({batch}, R)")
    if isinstance(num_samples, bool) or not isinstance(num_samples, int):
        raise TypeError(f"num_samples: got {num_samples!r} ({type(num_samples).__name__}), expected an integer")
    if num_samples < 1:
        raise ValueError(f"num_samples: got {num_samples}, expected at least 1")
