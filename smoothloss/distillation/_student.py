"""The student of a divergence: logits, or hidden states and a classifier, and what is asked of either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from smoothloss import functional as F
from smoothloss._evaluate import check_linear, check_logits, implementation, rows_of
from smoothloss.backends import Implementation
from smoothloss.backends.common import RowOptions, TokenStatistics, accumulator_dtype, without_autocast
from smoothloss.distillation._jensen_shannon import Spread, definition, jensen_shannon
from smoothloss.ops.linear_cross_entropy import Linear
from smoothloss.ops.linear_layer import default_chunk_bytes
from smoothloss.ops.transforms import is_eager
from smoothloss.options import Memory, Options

# Tensors of the size of a chunk's logits that the definition of a row keeps for its gradient.
_COPIES = 12


class Student(Protocol):
    """A distribution over V classes at each position.

    Attributes:
        input: logits ``(..., V)`` or hidden states ``(..., D)``.
        num_classes: V.
        dtype: that losses are computed in.
    """

    input: Tensor
    num_classes: int
    dtype: torch.dtype

    def cross_entropy(self, indices: Tensor, weights: Tensor, uniform: Tensor | None, reduction: str) -> Tensor:
        """Return the primitive's loss against entries and uniform mass."""

    def statistics(self, indices: Tensor, present: Tensor) -> TokenStatistics:
        """Return the statistics at indices ``(..., S)``; where `present` is False they may be anything.

        Nothing comes back for them there, and then no gradient goes on, whatever the input is.
        """

    def jensen_shannon(self, teacher: Spread, beta: float) -> Tensor:
        """Return the divergence of each row, ``(N,)``, from a teacher over all V classes."""


class OnLogits:
    """Logits ``(..., V)``."""

    def __init__(self, input: Tensor, row: RowOptions, impl: Implementation) -> None:
        """Check them."""
        check_logits(input)
        self.input, self.row, self.impl = input, row, impl
        self.num_classes, self.dtype = input.shape[-1], accumulator_dtype(input.dtype)

    def cross_entropy(self, indices: Tensor, weights: Tensor, uniform: Tensor | None, reduction: str) -> Tensor:
        """See `Student`."""
        return F.sparse_cross_entropy(
            self.input, indices, weights, uniform=uniform, reduction=reduction, impl=self.impl, **_given(self.row)
        )

    def statistics(self, indices: Tensor, present: Tensor) -> TokenStatistics:
        """See `Student`."""
        input = _without_others(self.input, present, self.impl)
        return F.token_statistics(input, indices, impl=self.impl, **_given(self.row))

    def jensen_shannon(self, teacher: Spread, beta: float) -> Tensor:
        """See `Student`."""
        chosen, rows = implementation(self.input, self.impl), rows_of(self.input)
        if chosen != "reference":
            return jensen_shannon(rows, None, teacher, beta, self.row, chosen)

        def of_rows(logits: Tensor, *teacher: Tensor) -> Tensor:
            return definition(logits, Spread(*teacher), beta, self.row)

        return _by_chunks(of_rows, rows, teacher, _rows_of(self, None))


class OnHidden:
    """Hidden states ``(..., D)`` and a classifier ``(V, D)``, ``(V,)``, whose logits never exist as a whole."""

    def __init__(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, row: RowOptions, impl: Implementation,
        chunk_bytes: int | None, memory: Memory,
    ) -> None:  # fmt: skip
        """Check them."""
        options = Options(row=row, kl=False, reduction="none", impl=impl, chunk_bytes=chunk_bytes, memory=memory)
        self.input, self.linear = check_linear(input, weight, bias, options)
        self.row, self.impl, self.memory = row, impl, memory
        self.num_classes, self.dtype = weight.shape[0], accumulator_dtype(self.input.dtype)

    def cross_entropy(self, indices: Tensor, weights: Tensor, uniform: Tensor | None, reduction: str) -> Tensor:
        """See `Student`."""
        linear = self.linear
        return F.linear_sparse_cross_entropy(
            self.input, linear.weight, indices, weights, linear_bias=linear.bias, uniform=uniform, reduction=reduction,
            chunk_bytes=linear.chunk_bytes, memory=self.memory, impl=self.impl, **_given(self.row),
        )  # fmt: skip

    def statistics(self, indices: Tensor, present: Tensor) -> TokenStatistics:
        """See `Student`."""
        input, linear = _without_others(self.input, present, self.impl), self.linear
        return F.linear_token_statistics(
            input, linear.weight, indices, linear_bias=linear.bias, chunk_bytes=linear.chunk_bytes, impl=self.impl,
            **_given(self.row),
        )  # fmt: skip

    def jensen_shannon(self, teacher: Spread, beta: float) -> Tensor:
        """See `Student`."""
        chosen, rows = implementation(self.input, self.impl), rows_of(self.input)
        if chosen != "reference":
            return jensen_shannon(rows, self.linear, teacher, beta, self.row, chosen)
        weight = self.linear.weight.to(self.dtype)
        bias = None if self.linear.bias is None else self.linear.bias.to(self.dtype)

        def of_rows(hidden: Tensor, *teacher: Tensor) -> Tensor:
            present = (teacher[0] >= 0).any(-1, keepdim=True)
            with without_autocast(hidden.device.type):
                logits = torch.nn.functional.linear(hidden.where(present, 0.0).to(self.dtype), weight, bias)
            return definition(logits, Spread(*teacher), beta, self.row)

        return _by_chunks(of_rows, rows, teacher, _rows_of(self, self.linear))


def _given(row: RowOptions) -> dict[str, Any]:
    return {"logit_scale": row.logit_scale, "softcap": row.softcap or None}


def _without_others(input: Tensor, present: Tensor, impl: Implementation) -> Tensor:
    """Return 0 in the positions that are not `present`, for the reference, whose autograd multiplies their NaN by 0.

    The kernels leave rows alone that nothing comes back for.
    """
    return input.where(present.unsqueeze(-1), 0.0) if implementation(input, impl) == "reference" else input


def _rows_of(student: Student, linear: Linear | None) -> int:
    """Return how many rows of logits, and what is computed from them, fit the scratch."""
    budget = default_chunk_bytes(student.input.device) if linear is None else linear.budget()
    return max(1, budget // (_COPIES * student.num_classes * student.dtype.itemsize))


def _by_chunks(function: Callable[..., Tensor], rows: Tensor, arguments: tuple[Tensor, ...], size: int) -> Tensor:
    """Return ``function(rows, *arguments)`` a few rows at a time; the backward computes each chunk again.

    All at once under a compiler or a transform, which make plans of their own.
    """
    if not is_eager(rows) or len(rows) <= size:
        return function(rows, *arguments)
    chunks = zip(*(tensor.split(size) for tensor in (rows, *arguments)), strict=True)
    return torch.cat([checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks])
