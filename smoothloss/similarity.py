"""The token similarity table: which tokens share the probability of a ground-truth token, and how much each gets."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from smoothloss import _similarity_file, _similarity_inputs
from smoothloss._validation import check_integer, check_number, check_token_ids
from smoothloss.ops.similarity_rows import SimilarityScorer
from smoothloss.ops.transforms import is_eager

TailMode = Literal["uniform", "renormalize", "exact"]
# Float32 cosines err by about 1e-7, which a temperature magnifies: below this one rows are computed in float64.
_SMALL_TAU = 1e-2
_LARGEST = torch.finfo(torch.float64).max


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class SimilarityTable:
    r"""Sparse rows of ``R_y(v) = exp(r(v, y) / tau) / sum_v' exp(r(v', y) / tau)`` over a vocabulary of V tokens.

    ``r(v, y) = cos(e_v, e_y) - beta * min(f_v / f_y, f_y / f_v)`` with ``e`` the word vectors and ``f`` the term
    counts (Elbayad et al. 2018, Eq. 13 and 14). The row's own token takes part, with cosine 1 and penalty ``beta``.
    ``tau`` is on the full cosine: the authors' public code uses ``(1 + cos) / 2``, so its tau is half of this one.

    A row keeps its K largest entries; the normaliser is computed over the whole vocabulary, so the mass of all others
    is known exactly, and ``tail_mode`` says what becomes of it:

    * ``"uniform"``: it is spread evenly over the V - K tokens that are not kept. In the terms of the primitive
      ``tail = (1 - kept_mass) * V / (V - K)`` is a mass over all V tokens, and ``weights`` are the exact entries less
      ``tail / V``.
    * ``"renormalize"``: it is dropped; ``weights`` are the exact entries over their sum and ``tail`` is 0.
    * ``"exact"``: ``weights`` are the exact entries, ``tail`` is ``1 - kept_mass``, and the dense rows come from
      :meth:`rows`.

    In every mode ``weights.sum(-1) + tail == 1``. Excluded tokens (PAD, BOS, EOS, UNK) and tokens without a vector are
    nobody's neighbours, and their own row is the Dirac: index y, weight 1, tail 0.

    Build one with :meth:`from_embeddings` or :meth:`load`. The tensors are:

    Attributes:
        indices: ``(V, K)`` int32, by falling similarity; -1 is an empty slot.
        weights: ``(V, K)`` float32; 0 in empty slots.
        tail: ``(V,)`` float32, the mass that goes with ``weights``.
        kept_mass: ``(V,)`` float32, the exact mass of the K largest entries.
        unit_vectors: ``(V, d)`` float32, the word vectors at length 1; zeros for tokens without neighbours.
        log_normalizer: ``(V,)`` float64, ``log sum_v exp(r(v, y) / tau)``; inf for tokens without neighbours.
        has_neighbours: ``(V,)`` bool, false for the tokens whose row is the Dirac.
        counts: ``(V,)`` float64 term counts, or None.
        tau: The temperature.
        beta: The weight of the frequency penalty (rare-token promotion).
        tail_mode: ``"uniform"``, ``"renormalize"`` or ``"exact"``.
    """

    indices: torch.Tensor
    weights: torch.Tensor
    tail: torch.Tensor
    kept_mass: torch.Tensor
    unit_vectors: torch.Tensor
    log_normalizer: torch.Tensor
    has_neighbours: torch.Tensor
    counts: torch.Tensor | None
    tau: float
    beta: float
    tail_mode: TailMode

    @classmethod
    def from_embeddings(
        cls,
        vectors: torch.Tensor | np.ndarray[Any, Any],
        *,
        k: int,
        tau: float,
        beta: float = 0.0,
        counts: torch.Tensor | np.ndarray[Any, Any] | Sequence[float] | None = None,
        tail: TailMode = "uniform",
        exclude: Iterable[int] = (),
        device: torch.device | str | None = None,
    ) -> SimilarityTable:
        """Builds the table from word vectors, block by block: no ``(V, V)`` matrix is ever held.

        Args:
            vectors: ``(V, d)`` floating point. A row of zeros, or with a NaN in it, means that the token has no vector.
            k: Entries kept per row. Rows with fewer neighbours are padded by index -1, weight 0.
            tau: Temperature on the full cosine, > 0; with ``tail="exact"`` at least 1e-4, since the losses compute such
                rows in float32.
            beta: Weight of the frequency penalty, 0 to 1000; needs ``counts`` when > 0. ``beta = tau * kappa`` for the
                authors' ``promote_rarity`` kappa.
            counts: ``(V,)`` term counts, 0 or from 1e-20 to 1e30. The ratio of two zero counts is 1, that of a zero to
                another count 0.
            tail: What becomes of the mass that is not kept, see the class.
            exclude: Token ids that are nobody's neighbours and have none (special tokens).
            device: Where to build and keep the table; by default where ``vectors`` are.

        Raises:
            TypeError: ``vectors`` or ``counts`` are not numeric, or ``k`` or ``exclude`` no integers.
            ValueError: An argument is out of its range or of the wrong shape, or ``beta > 0`` without ``counts``.
        """
        vectors = _similarity_inputs.checked_vectors(vectors, device)
        num_tokens = vectors.shape[0]
        k = check_integer(k, "k", 1, 2**31 - 1)
        tau, beta = check_number(tau, "tau", finite=False), check_number(beta, "beta", finite=False)
        _similarity_file.check_settings(tau, beta, tail)
        if beta > 0 and counts is None:
            raise ValueError(f"counts: needed because beta is {beta} (> 0); expected a tensor of {num_tokens} counts")
        checked_counts = (
            None if counts is None else _similarity_inputs.checked_counts(counts, num_tokens, vectors.device)
        )
        unit_vectors, has_neighbours = _similarity_inputs.unit_vectors(
            vectors, check_token_ids(exclude, "exclude", num_tokens)
        )
        empty = cls(
            indices=torch.full((num_tokens, k), -1, dtype=torch.int32, device=vectors.device),
            weights=torch.zeros((num_tokens, k), dtype=torch.float32, device=vectors.device),
            tail=torch.zeros(num_tokens, dtype=torch.float32, device=vectors.device),
            kept_mass=torch.ones(num_tokens, dtype=torch.float32, device=vectors.device),
            unit_vectors=unit_vectors,
            log_normalizer=torch.full((num_tokens,), math.inf, dtype=torch.float64, device=vectors.device),
            has_neighbours=has_neighbours,
            counts=checked_counts,
            tau=tau,
            beta=beta,
            tail_mode=tail,
        )
        _fill_rows(empty)
        return empty

    @property
    def num_tokens(self) -> int:
        """V, the size of the vocabulary."""
        return self.indices.shape[0]

    @property
    def num_neighbours(self) -> int:
        """K, the entries stored per row."""
        return self.indices.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the table's tensors are."""
        return self.indices.device

    @property
    def total_kept_mass(self) -> float:
        """``sum_y f_y kept_mass_y / sum_y f_y`` over the tokens that have neighbours; a plain mean without counts."""
        frequency = self.has_neighbours.double()
        if self.counts is not None:
            frequency = frequency * self.counts
        total = frequency.sum()
        return float((frequency * self.kept_mass).sum() / total) if total > 0 else 1.0

    def row(self, token: int) -> tuple[torch.Tensor, torch.Tensor, float]:
        """The stored row of one token: ``indices[token], weights[token], tail[token]`` without the empty slots.

        Returns:
            Indices ``(S,)`` int64 and weights ``(S,)`` float32 by falling weight, and the tail's mass.

        Raises:
            TypeError: ``token`` is no integer.
            IndexError: ``token`` is not in ``[0, V)``.
        """
        token = check_integer(token, "token")
        if not 0 <= token < self.num_tokens:
            raise IndexError(f"token: got {token}, expected 0 <= token < {self.num_tokens}")
        used = self.indices[token] >= 0
        return self.indices[token][used].long(), self.weights[token][used], float(self.tail[token])

    def rows(self, tokens: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The exact dense rows ``R_y`` of the given tokens, whatever ``tail_mode`` is: ``dense()[tokens]``.

        Computed block by block from the unit vectors, at float32 (TF32 on CUDA where
        ``torch.set_float32_matmul_precision`` allows it, with its error) or float64, also under autocast; where tau is
        small in float64, whatever the result is. Pass each token once: the cost is one ``(U, d) x (d, V)`` product.

        Args:
            tokens: ``(U,)`` integer token ids.
            dtype: torch.float32 or torch.float64.

        Returns:
            ``(U, V)`` rows that sum to one.

        Raises:
            TypeError: ``tokens`` is no tensor of integers.
            ValueError: ``tokens`` is not 1-D, or ``dtype`` is another one.
            IndexError: A token is not in ``[0, V)``; checked on CPU only. On CUDA it is clamped.
        """
        if not isinstance(tokens, torch.Tensor):
            raise TypeError(f"tokens: got {type(tokens).__name__}, expected a torch.Tensor of integers")
        if tokens.dtype.is_floating_point or tokens.dtype.is_complex or tokens.dtype == torch.bool:
            raise TypeError(f"tokens: got dtype {tokens.dtype}, expected integers")
        if tokens.dim() != 1:
            raise ValueError(f"tokens: got shape {tuple(tokens.shape)}, expected (U,)")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype: got {dtype}, expected torch.float32 or torch.float64")
        tokens = tokens.to(self.device, torch.int64)
        if self.device.type == "cpu":
            outside = (tokens < 0) | (tokens >= self.num_tokens)
            if outside.any():
                raise IndexError(f"tokens: got {int(tokens[outside][0])}, expected 0 <= token < {self.num_tokens}")
        tokens = tokens.clamp(0, self.num_tokens - 1)
        return _dense_rows(self, tokens, dtype)

    def dense(self, *, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """The exact ``(V, V)`` matrix ``R``, row y for ground truth y, computed in float64: for tests and small V."""
        return self.rows(torch.arange(self.num_tokens, device=self.device), dtype=dtype)

    def to(self, device: torch.device | str) -> SimilarityTable:
        """The same table with its tensors on ``device``."""
        moved = {name: tensor.to(device) for name, tensor in self._tensors().items()}
        return replace(self, **moved)  # type: ignore[arg-type]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes tensors and settings to a safetensors file; the file appears complete or not at all."""
        settings = {"tau": repr(self.tau), "beta": repr(self.beta), "tail_mode": self.tail_mode}
        _similarity_file.write(Path(path), self._tensors(), settings)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        num_tokens: int | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> SimilarityTable:
        """Reads what :meth:`save` wrote.

        Args:
            path: The file.
            num_tokens: The size of the vocabulary it has to fit, when given.
            device: Where to put the tensors.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is not a table, is damaged, or is one of another vocabulary's size.
        """
        tensors, settings = _similarity_file.read(Path(path))
        tau, beta = float(settings["tau"]), float(settings["beta"])
        fields_of_table: dict[str, Any] = {"counts": None, **tensors}
        table = cls(**fields_of_table, tau=tau, beta=beta, tail_mode=settings["tail_mode"])  # type: ignore[arg-type]
        if num_tokens is not None and table.num_tokens != check_integer(num_tokens, "num_tokens"):
            raise ValueError(
                f"path: {path} is a similarity table of {table.num_tokens} tokens, expected {num_tokens}, "
                "the size of the vocabulary"
            )
        return table.to(device)

    def __repr__(self) -> str:
        settings = f"tau={self.tau:g}, beta={self.beta:g}, tail_mode={self.tail_mode!r}, device={str(self.device)!r}"
        if is_eager(self.has_neighbours):  # otherwise there is nothing to count
            dirac = self.num_tokens - int(self.has_neighbours.sum())
            settings += f", without_neighbours={dirac}, total_kept_mass={self.total_kept_mass:.4f}"
        return f"SimilarityTable(num_tokens={self.num_tokens}, num_neighbours={self.num_neighbours}, {settings})"

    def _tensors(self) -> dict[str, torch.Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def _fill_rows(table: SimilarityTable) -> None:
    """Computes normalisers, largest entries and tails of an empty table, in place."""
    dirac = (~table.has_neighbours).nonzero()[:, 0]
    table.indices[dirac, 0] = dirac.to(torch.int32)
    table.weights[dirac, 0] = 1.0
    tokens = table.has_neighbours.nonzero()[:, 0]
    kept = min(table.num_neighbours, tokens.shape[0])
    if kept == 0:
        return
    scorer, tau = _scorer(table), _divisor(table.tau)
    for start, stop in scorer.blocks(tokens.shape[0]):
        block = tokens[start:stop]
        scores = _steady(scorer(block), table.tau)
        rounded, indices = scores.topk(kept, dim=-1)
        values = _steady(scorer.exact(block, indices), table.tau)
        largest = values.amax(dim=-1, keepdim=True)
        # Differences are divided by tau, never the scores themselves: what is large would round, or overflow.
        values = (values - largest) / tau
        # The many small terms may be rounded; the few large ones, which hold the error, are put in exactly.
        rest = scores.scatter_(1, indices, -math.inf).sub_(rounded[:, :1]).div_(tau).exp_().sum(dim=-1)
        log_total = (rest.double() + values.exp().sum(dim=-1)).log()
        entries = (values - log_total[:, None]).exp()
        kept_mass = entries.sum(dim=-1).clamp(max=1.0)
        if kept == tokens.shape[0]:
            kept_mass = torch.ones_like(kept_mass)
        weights, tail = _with_tail(entries, kept_mass, table.num_tokens, table.tail_mode)
        table.indices[block, :kept] = indices.to(torch.int32)
        table.weights[block, :kept] = weights.float()
        table.tail[block] = tail.float()
        table.kept_mass[block] = kept_mass.float()
        table.log_normalizer[block] = (largest[:, 0] / tau + log_total).clamp(max=_LARGEST)


def _scorer(table: SimilarityTable, dtype: torch.dtype = torch.float32) -> SimilarityScorer:
    """A scorer of ``r`` itself, not divided by tau, in float64 where rounding to `dtype` would show.

    On a GPU too: TF32 may be switched on there, and the product is quick anyway.
    """
    if table.device.type != "cpu" or table.tau < _SMALL_TAU or table.beta > 1:
        dtype = torch.float64
    vectors = table.unit_vectors
    if table.tau < _SMALL_TAU:
        # Of length 1 to float64, so that equal vectors have a cosine of 1.
        vectors = torch.nn.functional.normalize(vectors.double(), dim=-1)
    return SimilarityScorer(replace(table, tau=1.0, unit_vectors=vectors), dtype)


def _divisor(tau: float) -> float:
    """tau within what float32 and the reciprocal that a GPU multiplies by can hold; beyond, rows are the same."""
    return min(max(tau, 1e-300), 1e30)


def _steady(scores: torch.Tensor, tau: float) -> torch.Tensor:
    """The scores, in place; at a small tau without their last bits, lest it be rounding that tells equals apart."""
    return scores.mul_(2.0**50).round_().mul_(2.0**-50) if tau < _SMALL_TAU else scores


def _dense_rows(table: SimilarityTable, tokens: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``softmax(r / tau)`` of the rows of ``(U,)`` tokens, ``(U, V)``, block by block."""
    rows = torch.empty((tokens.shape[0], table.num_tokens), dtype=dtype, device=table.device)
    scorer, tau = _scorer(table, dtype), _divisor(table.tau)
    for start, stop in scorer.blocks(tokens.shape[0]):
        block = tokens[start:stop]
        scores = _steady(scorer(block), table.tau)
        scores.sub_(scores.amax(dim=-1, keepdim=True)).div_(tau)
        # A token without neighbours has only itself: there all scores are -inf, and their differences NaN.
        alone = ~table.has_neighbours[block][:, None]
        own = torch.zeros_like(scores).scatter_(1, block[:, None], 1.0)
        rows[start:stop] = torch.where(alone, own, scores.softmax(dim=-1))
    return rows


def _with_tail(
    entries: torch.Tensor, kept_mass: torch.Tensor, num_tokens: int, mode: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and tail of rows from their exact largest entries ``(U, K)`` and the mass ``(U,)`` these hold."""
    rest = 1.0 - kept_mass
    if mode == "renormalize":
        return entries / entries.sum(dim=-1, keepdim=True), torch.zeros_like(rest)
    others = num_tokens - entries.shape[1]
    if mode == "exact" or others == 0:
        return entries, rest
    # No kept entry is below the mean of the others, so only rounding can make a weight negative.
    return (entries - (rest / others)[:, None]).clamp(min=0.0), rest * (num_tokens / others)
