"""The losses of `smoothloss.functional` as modules: options at construction, tensors at the call.

A module with a similarity table takes the table along in ``module.to(device)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from smoothloss import functional as F
from smoothloss._arguments import Memory, call
from smoothloss.backends import Implementation
from smoothloss.similarity import SimilarityTable

__all__ = [
    "CrossEntropyLoss",
    "LazySequenceCrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "LinearLazySequenceCrossEntropyLoss",
    "LinearSequenceCrossEntropyLoss",
    "LinearSparseCrossEntropyLoss",
    "SequenceCrossEntropyLoss",
    "SparseCrossEntropyLoss",
]


class _Loss(torch.nn.Module):
    """What all losses have in common: the options, checked when they are given."""

    table: SimilarityTable | None = None

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        entropy: float = 0.0,
        z_loss: float = 0.0,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        kl: bool = False,
        reduction: str = "mean",
        impl: Implementation = "auto",
        **more: Any,
    ) -> None:
        """Store the options of the function of the same name."""
        super().__init__()
        call(label_smoothing, entropy, z_loss, logit_scale, softcap, kl, reduction, False, impl)
        options: dict[str, Any] = {"label_smoothing": label_smoothing, "entropy": entropy, "z_loss": z_loss, "kl": kl}
        options |= {"logit_scale": logit_scale, "softcap": softcap, "reduction": reduction, "impl": impl}
        self.options: dict[str, Any] = options | more
        self.table = self.options.pop("table", None)

    def _smoothing(self) -> dict[str, Any]:
        return {"table": self.table, **self.options}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Loss:
        if self.table is not None:
            self.table = self.table.to(fn(self.table.weights).device)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        """Name the options that differ from "do nothing", and the table."""
        shown = {name: value for name, value in self.options.items() if value not in (0.0, None, False)}
        if self.table is not None:
            shown["table"] = self.table
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


class SparseCrossEntropyLoss(_Loss):
    """`functional.sparse_cross_entropy` as a module.

    Args:
        inplace: whether the backward may write the gradient over `input`.
        options: label_smoothing, entropy, z_loss, logit_scale, softcap, kl, reduction, impl.
    """

    def __init__(self, *, inplace: bool = False, **options: Any) -> None:
        """Store the options."""
        super().__init__(inplace=inplace, **options)

    def forward(self, input: Tensor, indices: Tensor, weights: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Return the loss of logits ``(..., V)`` against entries ``(..., S)`` and uniform mass ``(...)``."""
        return F.sparse_cross_entropy(input, indices, weights, uniform=uniform, **self.options)


class LinearSparseCrossEntropyLoss(_Loss):
    """`functional.linear_sparse_cross_entropy` as a module.

    Args:
        chunk_bytes: bytes of scratch for the logits, or None for the default.
        memory: "fast" or "low".
        options: label_smoothing, entropy, z_loss, logit_scale, softcap, kl, reduction, impl.
    """

    def __init__(self, *, chunk_bytes: int | None = None, memory: Memory = "fast", **options: Any) -> None:
        """Store the options."""
        super().__init__(chunk_bytes=chunk_bytes, memory=memory, **options)

    def forward(
        self, input: Tensor, linear_weight: Tensor, indices: Tensor, weights: Tensor,
        linear_bias: Tensor | None = None, uniform: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the loss of hidden states ``(..., D)`` and a classifier ``(V, D)``, ``(V,)``."""
        return F.linear_sparse_cross_entropy(
            input, linear_weight, indices, weights, linear_bias=linear_bias, uniform=uniform, **self.options
        )


class CrossEntropyLoss(_Loss):
    """`functional.cross_entropy` as a module: MLE, or Tok with a table.

    Args:
        table: similarity rows, or None.
        alpha: share of the similarity row.
        ignore_index: positions with this target are ignored.
        inplace: whether the backward may write the gradient over `input`.
        options: label_smoothing, entropy, z_loss, logit_scale, softcap, kl, reduction, impl.
    """

    def __init__(
        self, table: SimilarityTable | None = None, *, alpha: float = 0.0, ignore_index: int = -100,
        inplace: bool = False, **options: Any,
    ) -> None:  # fmt: skip
        """Store the options."""
        super().__init__(table=table, alpha=alpha, ignore_index=ignore_index, inplace=inplace, **options)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of logits ``(..., V)`` against class numbers ``(...)``."""
        return F.cross_entropy(input, target, **self._smoothing())


class LinearCrossEntropyLoss(_Loss):
    """`functional.linear_cross_entropy` as a module: MLE, or Tok with a table, without the logits.

    Args:
        table: similarity rows, or None.
        alpha: share of the similarity row.
        ignore_index: positions with this target are ignored.
        chunk_bytes: bytes of scratch for the logits, or None for the default.
        memory: "fast" or "low".
        options: label_smoothing, entropy, z_loss, logit_scale, softcap, kl, reduction, impl.
    """

    def __init__(
        self, table: SimilarityTable | None = None, *, alpha: float = 0.0, ignore_index: int = -100,
        chunk_bytes: int | None = None, memory: Memory = "fast", **options: Any,
    ) -> None:  # fmt: skip
        """Store the options."""
        super().__init__(
            table=table, alpha=alpha, ignore_index=ignore_index, chunk_bytes=chunk_bytes, memory=memory, **options
        )

    def forward(
        self, input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None = None
    ) -> Tensor:
        """Return the loss of hidden states ``(..., D)`` and a classifier ``(V, D)``, ``(V,)``."""
        return F.linear_cross_entropy(input, linear_weight, target, linear_bias=linear_bias, **self._smoothing())


class _SequenceLoss(_Loss):
    """What the sequence losses have in common."""

    def __init__(
        self, *, alpha: float, table: SimilarityTable | None = None, token_alpha: float = 0.0,
        ignore_index: int = -100, **options: Any,
    ) -> None:  # fmt: skip
        """Store the options."""
        super().__init__(table=table, alpha=alpha, token_alpha=token_alpha, ignore_index=ignore_index, **options)


class LazySequenceCrossEntropyLoss(_SequenceLoss):
    """`functional.lazy_sequence_cross_entropy` as a module: lazy Seq, or lazy Tok-Seq with a table.

    Args:
        alpha: share of the samples.
        table: similarity rows, or None.
        token_alpha: share of the similarity rows.
        ignore_index: positions with this target are ignored.
        options: inplace, label_smoothing, entropy, z_loss, logit_scale, softcap, kl, reduction, impl.
    """

    def forward(self, input: Tensor, target: Tensor, samples: Tensor, sample_weights: Tensor | None = None) -> Tensor:
        """Return the loss of logits ``(B, T, V)`` against ``(B, T)`` and samples ``(L, B, T)`` weighted ``(L, B)``."""
        return F.lazy_sequence_cross_entropy(input, target, samples, sample_weights, **self._smoothing())


class SequenceCrossEntropyLoss(_SequenceLoss):
    """`functional.sequence_cross_entropy` as a module: Seq, or Tok-Seq with a table; RAML with ``alpha=1``.

    Args: as `LazySequenceCrossEntropyLoss`.
    """

    def forward(self, input: Tensor, target: Tensor, samples: Tensor, sample_weights: Tensor | None = None) -> Tensor:
        """Return the loss of logits ``(L + 1, B, T, V)`` against ``(B, T)`` and samples ``(L, B, T)``."""
        return F.sequence_cross_entropy(input, target, samples, sample_weights, **self._smoothing())


class LinearLazySequenceCrossEntropyLoss(_SequenceLoss):
    """`functional.linear_lazy_sequence_cross_entropy` as a module.

    Args: as `LazySequenceCrossEntropyLoss`, with chunk_bytes and memory in the place of inplace.
    """

    def forward(
        self, input: Tensor, linear_weight: Tensor, target: Tensor, samples: Tensor,
        sample_weights: Tensor | None = None, linear_bias: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the loss of hidden states ``(B, T, D)`` and a classifier ``(V, D)``, ``(V,)``."""
        return F.linear_lazy_sequence_cross_entropy(
            input, linear_weight, target, samples, sample_weights, linear_bias=linear_bias, **self._smoothing()
        )


class LinearSequenceCrossEntropyLoss(_SequenceLoss):
    """`functional.linear_sequence_cross_entropy` as a module.

    Args: as `LazySequenceCrossEntropyLoss`, with chunk_bytes and memory in the place of inplace.
    """

    def forward(
        self, input: Tensor, linear_weight: Tensor, target: Tensor, samples: Tensor,
        sample_weights: Tensor | None = None, linear_bias: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the loss of hidden states ``(L + 1, B, T, D)`` and a classifier ``(V, D)``, ``(V,)``."""
        return F.linear_sequence_cross_entropy(
            input, linear_weight, target, samples, sample_weights, linear_bias=linear_bias, **self._smoothing()
        )
