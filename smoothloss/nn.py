"""The losses of `smoothloss.functional` as modules: options at construction, which checks them, tensors at the call.

A module with a similarity table takes the table along in ``module.to(device)``. The options that all of them share are
declared and described in `smoothloss.options`; each signature shows them. The divergences of `smoothloss.distillation`
are here too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from smoothloss import functional as F
from smoothloss import options
from smoothloss._evaluate import KL_BESIDE_WEIGHT
from smoothloss._prior import check_prior_values
from smoothloss._validation import check_ignore_index, check_number, check_weight
from smoothloss.distillation.modules import DistillationLoss, LinearDistillationLoss
from smoothloss.options import CallOptions, LinearOptions, LogitsOptions
from smoothloss.similarity import SimilarityTable
from smoothloss.targets import Target
from smoothloss.targets.constructors import check_table

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "CrossEntropyLoss",
    "DistillationLoss",
    "LazySequenceCrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "LinearDistillationLoss",
    "LinearLazySequenceCrossEntropyLoss",
    "LinearSequenceCrossEntropyLoss",
    "LinearSparseCrossEntropyLoss",
    "SequenceCrossEntropyLoss",
    "SparseCrossEntropyLoss",
]


class _Loss(torch.nn.Module):
    """What all losses have in common: named options, checked when they are given; table and prior move along."""

    prior: Tensor | None

    def __init__(self, given: CallOptions, names: tuple[str, ...], smoothing: dict[str, Any] | None = None) -> None:
        super().__init__()
        prior = options.check(given, names).prior
        if prior is not None:
            check_prior_values(prior)
        self.register_buffer("prior", prior)
        self.options: dict[str, Any] = {name: options.DEFAULTS[name] for name in names} | dict(given)
        del self.options["prior"]
        smoothing = smoothing or {}
        self.table: SimilarityTable | None = smoothing.pop("table", None)
        for name in ("alpha", "token_alpha"):
            if name in smoothing:
                smoothing[name] = check_number(smoothing[name], name, 0.0, 1.0)
        if smoothing:
            over_table = "token_alpha" if "token_alpha" in smoothing else "alpha"
            check_table(self.table, smoothing[over_table], over_table)
            smoothing["ignore_index"] = check_ignore_index(smoothing["ignore_index"])
        self.smoothing = smoothing

    def _options(self) -> dict[str, Any]:
        return {"prior": self.prior, **self.options}

    def _smoothing(self) -> dict[str, Any]:
        return {"table": self.table, **self.smoothing, **self._options()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Loss:
        if self.table is not None:
            self.table = self.table.to(fn(self.table.weights).device)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        """Name the options that differ from "do nothing", and the table."""
        given = {**self.smoothing, **self.options}
        shown = {
            name: value for name, value in given.items() if name == "ignore_index" or value not in (0.0, None, False)
        }
        if self.table is not None:
            shown["table"] = self.table
        if self.prior is not None:
            shown["prior"] = tuple(self.prior.shape)
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


def _checked_weight(weight: Tensor | None, given: dict[str, Any]) -> Tensor | None:
    if weight is None:
        return None
    weight = check_weight(weight)
    if weight.dim() != 1:
        raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected (V,)")
    if given["kl"]:
        raise ValueError(KL_BESIDE_WEIGHT)
    return weight


class SparseCrossEntropyLoss(_Loss):
    """`functional.sparse_cross_entropy` as a module.

    Args:
        given: the options, see `smoothloss.options.LogitsOptions`.
    """

    @options.takes(LogitsOptions)
    def __init__(self, **given: Unpack[LogitsOptions]) -> None:
        super().__init__(given, options.LOGITS)

    def forward(self, input: Tensor, indices: Tensor, weights: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Return the loss of logits ``(..., V)`` against entries ``(..., S)`` and uniform mass ``(...)``."""
        return F.sparse_cross_entropy(input, indices, weights, uniform=uniform, **self._options())


class LinearSparseCrossEntropyLoss(_Loss):
    """`functional.linear_sparse_cross_entropy` as a module.

    Args:
        given: the options, see `smoothloss.options.LinearOptions`.
    """

    @options.takes(LinearOptions)
    def __init__(self, **given: Unpack[LinearOptions]) -> None:
        super().__init__(given, options.LINEAR)

    def forward(
        self, input: Tensor, linear_weight: Tensor, indices: Tensor, weights: Tensor,
        linear_bias: Tensor | None = None, uniform: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the loss of hidden states ``(..., D)`` and a classifier ``(V, D)``, ``(V,)``."""
        return F.linear_sparse_cross_entropy(
            input, linear_weight, indices, weights, linear_bias=linear_bias, uniform=uniform, **self._options()
        )


class CrossEntropyLoss(_Loss):
    """`functional.cross_entropy` as a module: MLE, Tok with a table, or any target.

    Args:
        table: similarity rows, or None.
        alpha: share of the similarity row.
        weight: ``(V,)`` weights of the classes, or None.
        ignore_index: positions with this class number are ignored.
        given: the options, see `smoothloss.options.LogitsOptions`.
    """

    weight: Tensor | None

    @options.takes(LogitsOptions)
    def __init__(
        self,
        table: SimilarityTable | None = None,
        *,
        alpha: float = 0.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        **given: Unpack[LogitsOptions],
    ) -> None:
        super().__init__(given, options.LOGITS, {"table": table, "alpha": alpha, "ignore_index": ignore_index})
        self.register_buffer("weight", _checked_weight(weight, self.options))

    def forward(self, input: Tensor, target: Tensor | Target) -> Tensor:
        """Return the loss of logits ``(..., V)`` against class numbers ``(...)``, or a target."""
        return F.cross_entropy(input, target, weight=self.weight, **self._smoothing())


class LinearCrossEntropyLoss(_Loss):
    """`functional.linear_cross_entropy` as a module: MLE, Tok with a table, or any target, without the logits.

    Args:
        table: similarity rows, or None.
        alpha: share of the similarity row.
        weight: ``(V,)`` weights of the classes, or None.
        ignore_index: positions with this class number are ignored.
        given: the options, see `smoothloss.options.LinearOptions`.
    """

    weight: Tensor | None

    @options.takes(LinearOptions)
    def __init__(
        self,
        table: SimilarityTable | None = None,
        *,
        alpha: float = 0.0,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        **given: Unpack[LinearOptions],
    ) -> None:
        super().__init__(given, options.LINEAR, {"table": table, "alpha": alpha, "ignore_index": ignore_index})
        self.register_buffer("weight", _checked_weight(weight, self.options))

    def forward(
        self, input: Tensor, linear_weight: Tensor, target: Tensor | Target, linear_bias: Tensor | None = None
    ) -> Tensor:
        """Return the loss of hidden states ``(..., D)`` and a classifier ``(V, D)``, ``(V,)``."""
        return F.linear_cross_entropy(
            input, linear_weight, target, linear_bias=linear_bias, weight=self.weight, **self._smoothing()
        )


class LazySequenceCrossEntropyLoss(_Loss):
    """`functional.lazy_sequence_cross_entropy` as a module: lazy Seq, or lazy Tok-Seq with a table.

    Args:
        alpha: share of the samples.
        table: similarity rows, or None.
        token_alpha: share of the similarity rows.
        ignore_index: positions with this class number are ignored.
        given: the options, see `smoothloss.options.LogitsOptions`.
    """

    @options.takes(LogitsOptions)
    def __init__(
        self,
        *,
        alpha: float,
        table: SimilarityTable | None = None,
        token_alpha: float = 0.0,
        ignore_index: int = -100,
        **given: Unpack[LogitsOptions],
    ) -> None:
        smoothing = {"table": table, "alpha": alpha, "token_alpha": token_alpha, "ignore_index": ignore_index}
        super().__init__(given, options.LOGITS, smoothing)

    def forward(self, input: Tensor, target: Tensor, samples: Tensor, sample_weights: Tensor | None = None) -> Tensor:
        """Return the loss of logits ``(B, T, V)`` against ``(B, T)`` and samples ``(L, B, T)`` weighted ``(L, B)``."""
        return F.lazy_sequence_cross_entropy(input, target, samples, sample_weights, **self._smoothing())


class SequenceCrossEntropyLoss(_Loss):
    """`functional.sequence_cross_entropy` as a module: Seq, or Tok-Seq with a table; RAML with ``alpha=1``.

    Args:
        alpha: share of the samples.
        table: similarity rows, or None.
        token_alpha: share of the similarity rows.
        ignore_index: positions with this class number are ignored.
        given: the options, see `smoothloss.options.LogitsOptions`.
    """

    @options.takes(LogitsOptions)
    def __init__(
        self,
        *,
        alpha: float,
        table: SimilarityTable | None = None,
        token_alpha: float = 0.0,
        ignore_index: int = -100,
        **given: Unpack[LogitsOptions],
    ) -> None:
        smoothing = {"table": table, "alpha": alpha, "token_alpha": token_alpha, "ignore_index": ignore_index}
        super().__init__(given, options.LOGITS, smoothing)

    def forward(self, input: Tensor, target: Tensor, samples: Tensor, sample_weights: Tensor | None = None) -> Tensor:
        """Return the loss of logits ``(L + 1, B, T, V)`` against ``(B, T)`` and samples ``(L, B, T)``."""
        return F.sequence_cross_entropy(input, target, samples, sample_weights, **self._smoothing())


class LinearLazySequenceCrossEntropyLoss(_Loss):
    """`functional.linear_lazy_sequence_cross_entropy` as a module: the lazy losses without the logits.

    Args:
        alpha: share of the samples.
        table: similarity rows, or None.
        token_alpha: share of the similarity rows.
        ignore_index: positions with this class number are ignored.
        given: the options, see `smoothloss.options.LinearOptions`.
    """

    @options.takes(LinearOptions)
    def __init__(
        self,
        *,
        alpha: float,
        table: SimilarityTable | None = None,
        token_alpha: float = 0.0,
        ignore_index: int = -100,
        **given: Unpack[LinearOptions],
    ) -> None:
        smoothing = {"table": table, "alpha": alpha, "token_alpha": token_alpha, "ignore_index": ignore_index}
        super().__init__(given, options.LINEAR, smoothing)

    def forward(
        self, input: Tensor, linear_weight: Tensor, target: Tensor, samples: Tensor,
        sample_weights: Tensor | None = None, linear_bias: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the loss of hidden states ``(B, T, D)`` and a classifier ``(V, D)``, ``(V,)``."""
        return F.linear_lazy_sequence_cross_entropy(
            input, linear_weight, target, samples, sample_weights, linear_bias=linear_bias, **self._smoothing()
        )


class LinearSequenceCrossEntropyLoss(_Loss):
    """`functional.linear_sequence_cross_entropy` as a module: the exact losses without the logits.

    Args:
        alpha: share of the samples.
        table: similarity rows, or None.
        token_alpha: share of the similarity rows.
        ignore_index: positions with this class number are ignored.
        given: the options, see `smoothloss.options.LinearOptions`.
    """

    @options.takes(LinearOptions)
    def __init__(
        self,
        *,
        alpha: float,
        table: SimilarityTable | None = None,
        token_alpha: float = 0.0,
        ignore_index: int = -100,
        **given: Unpack[LinearOptions],
    ) -> None:
        smoothing = {"table": table, "alpha": alpha, "token_alpha": token_alpha, "ignore_index": ignore_index}
        super().__init__(given, options.LINEAR, smoothing)

    def forward(
        self, input: Tensor, linear_weight: Tensor, target: Tensor, samples: Tensor,
        sample_weights: Tensor | None = None, linear_bias: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the loss of hidden states ``(L + 1, B, T, D)`` and a classifier ``(V, D)``, ``(V,)``."""
        return F.linear_sequence_cross_entropy(
            input, linear_weight, target, samples, sample_weights, linear_bias=linear_bias, **self._smoothing()
        )
