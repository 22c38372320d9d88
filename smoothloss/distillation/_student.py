"""The student of a divergence: logits, or hidden states and a classifier, and what is asked of either."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from smoothloss import targets
from smoothloss._evaluate import check_linear, check_logits, classes_of, evaluate, implementation, rows_of
from smoothloss._statistics import evaluate as evaluate_statistics
from smoothloss.backends import Implementation
from smoothloss.backends.common import RowOptions, TokenStatistics, accumulator_dtype, replaced, without_autocast
from smoothloss.distillation import _slices
from smoothloss.distillation._jensen_shannon import Spread, jensen_shannon
from smoothloss.ops.linear_cross_entropy import Linear
from smoothloss.ops.linear_layer import default_chunk_bytes
from smoothloss.ops.transforms import is_eager
from smoothloss.ops.vocabulary_split import Split, fingerprint
from smoothloss.options import Options

# Tensors of the size of a chunk's logits that the definition of a row keeps for its gradient.
_COPIES = 12


class Student(Protocol):
    """A distribution over V classes at each position.

    Attributes:
        input: logits ``(..., V)`` or hidden states ``(..., D)``.
        num_classes: V.
        split: how the classes are split over processes, or None.
        dtype: that losses are computed in.
    """

    input: Tensor
    num_classes: int
    split: Split | None
    dtype: torch.dtype

    def cross_entropy(self, indices: Tensor, weights: Tensor, uniform: Tensor | None, reduction: str) -> Tensor:
        """Return the primitive's loss against entries and uniform mass."""

    def statistics(self, indices: Tensor, present: Tensor) -> TokenStatistics:
        """Return the statistics at indices ``(..., S)``; where `present` is False they may be anything.

        Nothing comes back for them there, and then no gradient goes on, whatever the input is.
        """

    def jensen_shannon(self, teacher: Spread, beta: float) -> Tensor | None:
        """Return the divergence of each row ``(N,)`` from a teacher over all classes; None where no kernel runs."""

    def over_all_classes(self, terms: Callable[..., Tensor], present: Tensor, *arguments: Tensor) -> Tensor:
        """Return ``terms(log_p, *arguments)``, ``(N,)``, of log-probabilities ``(N, V)`` and row-wise arguments.

        Where `present` ``(N,)`` is False, the logits are taken for 0.
        """


class OnLogits:
    """Logits ``(..., V)``."""

    def __init__(self, input: Tensor, options: Options) -> None:
        """Check them."""
        check_logits(input)
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

    def jensen_shannon(self, teacher: Spread, beta: float) -> Tensor | None:
        """See `Student`."""
        return _by_kernel(self.input, None, teacher, beta, self.options, self.split)

    def over_all_classes(self, terms: Callable[..., Tensor], present: Tensor, *arguments: Tensor) -> Tensor:
        """See `Student`."""
        rows = self.input.reshape(present.numel(), self.input.shape[-1])
        size = _rows_of(self, self.input.shape[-1], default_chunk_bytes(rows.device))

        def scores(logits: Tensor, present: Tensor) -> Tensor:
            return _scores(logits.masked_fill(~present.unsqueeze(-1), 0.0).to(self.dtype), self.options.row)

        return _over_all_classes(scores, rows, terms, (present, *arguments), size, self.split)


class OnHidden:
    """Hidden states ``(..., D)`` and a classifier ``(V, D)``, ``(V,)``, whose logits never exist as a whole."""

    def __init__(self, input: Tensor, weight: Tensor, bias: Tensor | None, options: Options) -> None:
        """Check them."""
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

    def jensen_shannon(self, teacher: Spread, beta: float) -> Tensor | None:
        """See `Student`."""
        return _by_kernel(self.input, self.linear, teacher, beta, self.options, self.split)

    def over_all_classes(self, terms: Callable[..., Tensor], present: Tensor, *arguments: Tensor) -> Tensor:
        """See `Student`."""
        weight = self.linear.weight.to(self.dtype)
        bias = None if self.linear.bias is None else self.linear.bias.to(self.dtype)
        rows = self.input.reshape(present.numel(), self.input.shape[-1])
        rows = rows if self.split is None else _slices.shared(rows, self.split)

        def scores(hidden: Tensor, present: Tensor) -> Tensor:
            hidden = hidden.where(present.unsqueeze(-1), 0.0)
            with without_autocast(hidden.device.type):
                logits = torch.nn.functional.linear(hidden.to(self.dtype), weight, bias)
            return _scores(logits.to(self.dtype), self.options.row)

        size = _rows_of(self, weight.shape[0], self.linear.budget())
        return _over_all_classes(scores, rows, terms, (present, *arguments), size, self.split)


def _over_all_classes(
    scores: Callable[..., Tensor], rows: Tensor, terms: Callable[..., Tensor], arguments: tuple[Tensor, ...], size: int,
    split: Split | None,
) -> Tensor:  # fmt: skip
    """Return ``terms(log_p, *arguments)``, a few rows at a time, of what softmax makes of ``scores(rows, present)``."""
    if split is not None:
        _, indices, log_a, *_ = arguments
        teachers = fingerprint(indices, log_a.exp())
        return _slices.over_slices(_by_chunks, scores, rows, terms, arguments, size, split.group, teachers)

    def of_rows(rows: Tensor, present: Tensor, *arguments: Tensor) -> Tensor:
        return terms(scores(rows, present).log_softmax(-1), *arguments)

    return _by_chunks(of_rows, rows, arguments, size)


def _scores(z: Tensor, row: RowOptions) -> Tensor:
    """Return ``softcap * tanh(logit_scale * z / softcap)``."""
    z = z * row.logit_scale
    return row.softcap * torch.tanh(z / row.softcap) if row.softcap else z


def _without_others(input: Tensor, present: Tensor, impl: Implementation) -> Tensor:
    """Return 0 in the positions that are not `present`, for the reference, whose autograd multiplies their NaN by 0.

    The kernels leave rows alone that nothing comes back for.
    """
    return input.where(present.unsqueeze(-1), 0.0) if implementation(input, impl) == "reference" else input


def _by_kernel(
    input: Tensor, linear: Linear | None, teacher: Spread, beta: float, options: Options, split: Split | None
) -> Tensor | None:
    chosen = implementation(input, options.impl)
    if split is not None and options.impl not in ("auto", "reference"):
        raise RuntimeError(
            f"impl: got {chosen!r}, expected 'auto' or 'reference': no kernel has Jensen-Shannon with"
            " missing='uniform' of classes that are split over processes"
        )
    if split is not None or chosen == "reference":
        return None
    return jensen_shannon(rows_of(input), linear, teacher, beta, options.row, chosen)


def _rows_of(student: Student, num_classes: int, budget: int) -> int:
    """Return how many rows of logits, and what is computed from them, fit the scratch."""
    return max(1, budget // (_COPIES * max(1, num_classes) * student.dtype.itemsize))


def _by_chunks(function: Callable[..., Tensor], rows: Tensor, arguments: tuple[Tensor, ...], size: int) -> Tensor:
    """Return ``function(rows, *arguments)`` a few rows at a time; the backward computes each chunk again.

    All at once under a compiler or a transform, which make plans of their own.
    """
    if not is_eager(rows) or len(rows) <= size:
        return function(rows, *arguments)
    chunks = zip(*(tensor.split(size) for tensor in (rows, *arguments)), strict=True)
    return torch.cat([checkpoint(function, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks])
