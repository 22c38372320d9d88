"""The student of a divergence: logits, or hidden states and a classifier, and what is asked of either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from smoothloss import targets
from smoothloss._evaluate import check_linear, check_logits, classes_of, evaluate, implementation, rows_of
from smoothloss._statistics import evaluate as evaluate_statistics
from smoothloss.backends import Implementation
from smoothloss.backends.common import RowOptions, TokenStatistics, accumulator_dtype, replaced, without_autocast
from smoothloss.backends.reference import transform_logits
from smoothloss.distillation import _slices, _terms
from smoothloss.distillation._jensen_shannon import Spread, definition, jensen_shannon
from smoothloss.ops.linear_cross_entropy import Linear
from smoothloss.ops.linear_layer import default_chunk_bytes
from smoothloss.ops.transforms import is_eager
from smoothloss.ops.vocabulary_parallel import Split
from smoothloss.options import Memory, Options

# Tensors of the size of a chunk's logits that the definition of a row keeps for its gradient.
_COPIES = 12


class Student(Protocol):
    """A distribution over V classes at each position.

    Attributes:
        input: logits ``(..., V)`` or hidden states ``(..., D)``.
        num_classes: V.
        split: how the classes are split over processes, or None.
        options: of a call, of which `impl` and the row's count.
        dtype: that losses are computed in.
    """

    input: Tensor
    options: Options
    num_classes: int
    split: Split | None
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

    def __init__(self, input: Tensor, row: RowOptions, impl: Implementation, group: Any = None) -> None:
        """Check them."""
        check_logits(input)
        options = Options(row=row, impl=impl, group=group)
        self.input, self.split, self.num_classes = classes_of(input, options, None)
        self.options = replaced(Options, options, group=self.split)
        self.dtype = accumulator_dtype(input.dtype)

    def cross_entropy(self, indices: Tensor, weights: Tensor, uniform: Tensor | None, reduction: str) -> Tensor:
        """See `Student`."""
        options = replaced(Options, self.options, reduction=reduction)
        return evaluate(self.input, targets.entries(indices, weights, uniform), options)

    def statistics(self, indices: Tensor, present: Tensor) -> TokenStatistics:
        """See `Student`."""
        input = _without_others(self.input, present, self.options.impl)
        return evaluate_statistics(input, indices, self.options, None)

    def jensen_shannon(self, teacher: Spread, beta: float) -> Tensor:
        """See `Student`."""
        row, rows = self.options.row, rows_of(self.input)
        if self.split is not None:

            def scores(logits: Tensor, present: Tensor) -> Tensor:
                return transform_logits(logits.where(present.unsqueeze(-1), 0.0).to(self.dtype), row)

            return _over_slices(self, scores, rows, teacher, beta, None)
        chosen = implementation(self.input, self.options.impl)
        if chosen != "reference":
            return jensen_shannon(rows, None, teacher, beta, row, chosen)

        def of_rows(logits: Tensor, *teacher: Tensor) -> Tensor:
            return definition(logits, Spread(*teacher), beta, row)

        return _by_chunks(of_rows, rows, teacher, _rows_of(self, None))


class OnHidden:
    """Hidden states ``(..., D)`` and a classifier ``(V, D)``, ``(V,)``, whose logits never exist as a whole."""

    def __init__(
        self, input: Tensor, weight: Tensor, bias: Tensor | None, row: RowOptions, impl: Implementation,
        chunk_bytes: int | None, memory: Memory, group: Any = None,
    ) -> None:  # fmt: skip
        """Check them."""
        options = Options(row=row, impl=impl, chunk_bytes=chunk_bytes, memory=memory, group=group)
        self.input, linear = check_linear(input, weight, bias, options)
        _, self.split, self.num_classes = classes_of(self.input, options, linear)
        self.linear = replaced(Linear, linear, group=self.split)
        self.options, self.dtype = options, accumulator_dtype(self.input.dtype)

    def cross_entropy(self, indices: Tensor, weights: Tensor, uniform: Tensor | None, reduction: str) -> Tensor:
        """See `Student`."""
        options = replaced(Options, self.options, reduction=reduction)
        return evaluate(self.input, targets.entries(indices, weights, uniform), options, self.linear)

    def statistics(self, indices: Tensor, present: Tensor) -> TokenStatistics:
        """See `Student`."""
        input = _without_others(self.input, present, self.options.impl)
        return evaluate_statistics(input, indices, self.options, self.linear)

    def jensen_shannon(self, teacher: Spread, beta: float) -> Tensor:
        """See `Student`."""
        row, rows = self.options.row, rows_of(self.input)
        chosen = implementation(self.input, self.options.impl)
        if self.split is None and chosen != "reference":
            return jensen_shannon(rows, self.linear, teacher, beta, row, chosen)
        weight = self.linear.weight.to(self.dtype)
        bias = None if self.linear.bias is None else self.linear.bias.to(self.dtype)

        def logits_of(hidden: Tensor, present: Tensor) -> Tensor:
            with without_autocast(hidden.device.type):
                hidden = hidden.where(present.unsqueeze(-1), 0.0).to(self.dtype)
                return torch.nn.functional.linear(hidden, weight, bias).to(self.dtype)

        if self.split is not None:

            def scores(hidden: Tensor, present: Tensor) -> Tensor:
                return transform_logits(logits_of(hidden, present), row)

            rows = _slices.shared(rows, self.split.group)
            return _over_slices(self, scores, rows, teacher, beta, self.linear)

        def of_rows(hidden: Tensor, *teacher: Tensor) -> Tensor:
            return definition(logits_of(hidden, (teacher[0] >= 0).any(-1)), Spread(*teacher), beta, row)

        return _by_chunks(of_rows, rows, teacher, _rows_of(self, self.linear))


def _over_slices(
    student: Student, scores: Callable[..., Tensor], rows: Tensor, teacher: Spread, beta: float, linear: Linear | None
) -> Tensor:
    """Return Jensen-Shannon of each row where the classes are split over processes, in plain PyTorch."""
    split = student.split
    assert split is not None
    if student.options.impl not in ("auto", "reference"):
        raise RuntimeError(
            f"impl: got {student.options.impl!r}, expected 'auto' or 'reference': no kernel has Jensen-Shannon with"
            " missing='uniform' over several processes, which is computed in plain PyTorch, a chunk of rows at a time"
        )

    def terms(log_p: Tensor, indices: Tensor, log_a: Tensor, log_share: Tensor) -> Tensor:
        size = log_p.shape[-1]  # of this process's slice
        place = (indices - split.start).long()
        place = place.masked_fill((place < 0) | (place >= size), size)
        dense = log_share.unsqueeze(-1).expand(-1, size + 1).scatter(-1, place, log_a)[:, :size]
        return _terms.jensen_shannon(dense, log_p, beta)

    present = (teacher.indices >= 0).any(-1)
    size = _rows_of(student, linear)
    return _slices.over_slices(_by_chunks, scores, rows, terms, (present, *teacher), size, split.group)


def _without_others(input: Tensor, present: Tensor, impl: Implementation) -> Tensor:
    """Return 0 in the positions that are not `present`, for the reference, whose autograd multiplies their NaN by 0.

    The kernels leave rows alone that nothing comes back for.
    """
    return input.where(present.unsqueeze(-1), 0.0) if implementation(input, impl) == "reference" else input


def _rows_of(student: Student, linear: Linear | None) -> int:
    """Return how many rows of logits, and what is computed from them, fit the scratch."""
    budget = default_chunk_bytes(student.input.device) if linear is None else linear.budget()
    num_classes = student.input.shape[-1] if linear is None else linear.weight.shape[0]
    return max(1, budget // (_COPIES * max(1, num_classes) * student.dtype.itemsize))


def _by_chunks(function: Callable[..., Tensor], rows: Tensor, arguments: tuple[Tensor, ...], size: int) -> Tensor:
    """Return ``function(rows, *arguments)`` a few rows at a time; the backward computes each chunk again.

    All at once under a compiler or a transform, which make plans of their own.
    """
    if not is_eager(rows) or len(rows) <= size:
        return function(rows, *arguments)
    chunks = zip(*(tensor.split(size) for tensor in (rows, *arguments)), strict=True)
    return torch.cat([checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks])
