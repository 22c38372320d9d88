"""How many kernels a step launches, counted where they would cross into ``_C_cuda``: the emulation takes its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import smoothloss.functional as F
from smoothloss.testing import make_sequences, make_table

B, T, V, L, D = 2, 3, 20, 4, 6
ROWS = ["sparse_cross_entropy_forward", "sparse_cross_entropy_backward"]
ALL_AT_ONCE = ["sparse_cross_entropy_forward_backward"]


class Counting(TorchDispatchMode):
    """Counts the operators of torch that compute or copy, as a GPU would launch them."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and "empty" not in str(func):
            self.launched.append(str(func))
        return func(*args, **(kwargs or {}))


def mle(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, make_sequences(B, T, V, L)[0])


def tok(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, make_sequences(B, T, V, L)[0], table=make_table(V), alpha=0.4)


def lazy_seq(logits: Tensor) -> Tensor:
    return F.lazy_sequence_cross_entropy(logits, *make_sequences(B, T, V, L), alpha=0.4)


def lazy_tok_seq(logits: Tensor) -> Tensor:
    sequences = make_sequences(B, T, V, L)
    return F.lazy_sequence_cross_entropy(logits, *sequences, alpha=0.4, table=make_table(V), token_alpha=0.3)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize(
    ("loss", "building"), [(mle, []), *((loss, ["smoothed_target"]) for loss in (tok, lazy_seq, lazy_tok_seq))]
)
def test_a_step_of_our_own_kernels(
    native_on_emulated_cuda: Any, loss: Callable[[Tensor], Tensor], building: list[str], label_smoothing: float
) -> None:
    """A forward is one crossing of two launches: the rows, and their reduction."""
    logits = torch.randn(B, T, V, requires_grad=True)
    loss(logits).backward()
    assert native_on_emulated_cuda.launched == [*building, *ROWS]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_maximum_likelihood_launches_nothing_else(native_on_emulated_cuda: Any, dtype: torch.dtype) -> None:
    logits, target = torch.randn(B * T, V, requires_grad=True), torch.arange(B * T).to(dtype)
    one = torch.ones(())
    with pytest.MonkeyPatch.context() as patch:
        # Under a dispatch mode the operators would be called, as for a tracer; what is counted is the eager step.
        patch.setattr("smoothloss.ops.cross_entropy.is_eager", lambda *tensors: True)
        with Counting() as counting:
            loss = F.cross_entropy(logits, target, label_smoothing=0.1)
            torch.autograd.grad(loss, logits, one)
    assert counting.launched == []
    assert native_on_emulated_cuda.launched == ROWS  # three launches: rows, their reduction, the gradient


def test_a_linear_step(native_on_emulated_cuda: Any) -> None:
    hidden, weight = torch.randn(B * T, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    loss = F.linear_cross_entropy(hidden, weight, torch.arange(B * T))
    loss.backward()
    assert native_on_emulated_cuda.launched == [*ALL_AT_ONCE, "scaled_copy", "scaled_copy"]
