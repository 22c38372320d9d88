"""A target with one row for each position, between what a user builds and what an implementation takes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from smoothloss.backends.common import DenseRows, RowTarget, mass_of, replaced
from smoothloss.ops.similarity_rows import SimilarityMixture

Source = SimilarityMixture | DenseRows


def scaled(source: Source | None, factor: Tensor | float) -> Source | None:
    """Return what dense rows come from with all their weights times a number, or one for each row ``(N, 1)``."""
    if source is None:
        return None
    weights = source.weights * factor
    if isinstance(source, SimilarityMixture):
        return replaced(SimilarityMixture, source, weights=weights)
    return replaced(DenseRows, source, weights=weights)


class FlatTarget(NamedTuple):
    """The target of ``(N,)`` rows.

    Attributes:
        indices: ``(N, S)``, or ``(N,)`` class numbers, int32 or int64; negative: an empty slot.
        weights: ``(N, S)``, or None: 1.
        uniform: ``(N,)`` mass that lies evenly on all classes, or None.
        ignore_index: given for class numbers: the one that marks a row to ignore.
        source: what dense rows come from, or None.
        prior: ``(V,)`` what the uniform mass, that of smoothed labels included, is spread by; None: evenly.
    """

    indices: Tensor
    weights: Tensor | None = None
    uniform: Tensor | None = None
    ignore_index: int | None = None
    source: Source | None = None
    prior: Tensor | None = None

    def rows(self, dtype: torch.dtype, part: slice | None = None) -> RowTarget:
        """Return all rows, or a part of them, in the accumulator dtype, with their dense rows computed."""
        source = self.source
        prior = None if self.prior is None else self.prior.to(dtype).contiguous()
        if source is None and part is None and self.weights is None and self.uniform is None:  # class numbers
            return RowTarget(self.indices.contiguous(), None, None, None, self.ignore_index, prior)
        if source is not None:
            source = (
                source.dense_rows(part or slice(None), dtype)
                if isinstance(source, SimilarityMixture)
                else (
                    DenseRows(source.values.to(dtype), _part(source.rows, part), _part(source.weights.to(dtype), part))
                )
            )
        weights, uniform = self.weights, self.uniform
        return RowTarget(
            _part(self.indices, part).contiguous(),
            None if weights is None else _part(weights, part).to(dtype).contiguous(),
            None if uniform is None else _part(uniform, part).to(dtype).contiguous(),
            source,
            self.ignore_index,
            prior,
        )

    @property
    def row_bytes(self) -> int:
        """Bytes of dense rows that one position asks for at most."""
        return self.source.row_bytes if isinstance(self.source, SimilarityMixture) else 0

    def mass(self, num_classes: int, dtype: torch.dtype) -> Tensor:
        """Return each row's mass ``(N,)``."""
        source = self.source
        if isinstance(source, SimilarityMixture):
            # A token number is as good as the number of its row.
            values = source.weights.new_empty(num_classes, 0)
            source = DenseRows(values, source.tokens, source.weights.to(dtype))
        return mass_of(
            replaced(RowTarget, replaced(FlatTarget, self, source=None).rows(dtype), dense=source), num_classes
        ).to(dtype)

    def pack(self) -> tuple[Any, ...]:
        """Return the target as an operator takes it (`TARGET_SCHEMA`)."""
        source, settings = (
            ([], [])
            if self.source is None
            else (self.source.pack() if isinstance(self.source, SimilarityMixture) else (list(self.source), []))
        )
        return self.indices, self.weights, self.uniform, self.prior, source, settings, self.ignore_index

    @classmethod
    def unpack(
        cls, indices: Tensor, weights: Tensor | None, uniform: Tensor | None, prior: Tensor | None,
        source: list[Tensor], settings: list[float], ignore_index: int | None,
    ) -> FlatTarget:  # fmt: skip
        """Return what `pack` packed."""
        unpacked: SimilarityMixture | DenseRows | None = None
        if settings:
            unpacked = SimilarityMixture.unpack(source, settings)
        elif source:
            unpacked = DenseRows(*source)
        return cls(indices, weights, uniform, ignore_index, unpacked, prior)


def _part(tensor: Tensor, part: slice | None) -> Tensor:
    # Not `tensor[:]`: a dozen views a step cost the host as much as a kernel.
    return tensor if part is None else tensor[part]
