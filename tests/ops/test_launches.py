"""How many kernels a step launches, counted where they would cross into ``_C_cuda``: the emulation takes its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import smoothloss.functional as F
from smoothloss import _compiled as compiled
from smoothloss.rewards import Cider, References
from smoothloss.sampling import BatchPool, HammingSampler, Pool, VocabularyPool, _hamming_native, importance_weights
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


# ---- draws and rewards before the loss

# What a crossing launches, see csrc/cuda: a forward its reduction too, a draw the sets of its pool first.
LAUNCHES = {"sparse_cross_entropy_forward": 2, "draw from a set": 2}
SENTENCES, LENGTHS = make_sequences(B, T, V, L)[0].clamp(min=0), torch.full((B,), T)


@pytest.fixture
def everything_on_emulated_cuda(native_on_emulated_cuda: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let draws and rewards take CPU tensors for CUDA tensors as well."""
    emulated = native_on_emulated_cuda

    def draw(name: str, like: Tensor, *arguments: Any) -> None:
        (_, _, batch, width, _), (kind, _, _, references_width, *_) = arguments[0], arguments[2]
        words = _hamming_native.scratch_words(kind, batch, width, references_width)
        scratch = torch.empty(words, dtype=torch.int64)
        emulated.launch(name, like, *arguments, scratch.data_ptr(), words)
        if words:
            emulated.launched[-1] = "draw from a set"

    def score(name: str, like: Tensor, *arguments: Any) -> None:
        if name == "cider":  # the last but one is scratch, of which the CPU kernels need none
            scratch = torch.empty(L * B * T * 8, dtype=torch.int64)
            arguments = (*arguments[:-2], scratch.data_ptr(), arguments[-1])
        emulated.launch(name, like, *arguments)

    calls = {"draw_hamming": draw, "cider": score, "cider_norms": score}
    monkeypatch.setattr(compiled, "call", lambda name, *arguments: calls[name](name, *arguments))
    return emulated


def operators(step: Callable[[], None]) -> list[str]:
    """Return the operators of torch that a step launches where the tensors are on a GPU, whose values nobody reads."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("cross_entropy", "smoothed_target"):
            patch.setattr(f"smoothloss.ops.{module}.is_eager", lambda *tensors: True)
        patch.setattr("smoothloss.sampling.samples.is_eager", lambda *tensors: True)
        patch.setattr("smoothloss.ops.checks.is_eager", lambda *tensors: False)
        with Counting() as counting:
            step()
    return counting.launched


def count(names: list[str]) -> int:
    return sum(LAUNCHES.get(name, 1) for name in names)


@pytest.mark.parametrize(("pool", "launches"), [(VocabularyPool(V), 6), (BatchPool(), 7)])
def test_a_lazy_step_with_its_draw(everything_on_emulated_cuda: Any, pool: Pool, launches: int) -> None:
    """The seed, the draw (its pool's sets before it), the target, the rows, their reduction, the gradient."""
    emulated, table = everything_on_emulated_cuda, make_table(V)
    logits, one, sampler = torch.randn(B, T, V, requires_grad=True), torch.ones(()), HammingSampler(0.5, pool)

    def step() -> None:
        samples = sampler(SENTENCES, LENGTHS, L)
        loss = F.lazy_sequence_cross_entropy(logits, SENTENCES, samples.tokens, alpha=0.4, table=table, token_alpha=0.3)
        torch.autograd.grad(loss, logits, one)

    operators(step)  # what a pool makes once for each device
    emulated.launched.clear()
    assert operators(step) == ["aten.random_.default"]
    drawn = "draw_hamming" if isinstance(pool, VocabularyPool) else "draw from a set"
    assert emulated.launched == [drawn, "smoothed_target", *ROWS]
    assert 1 + count(emulated.launched) == launches


def test_importance_weights_by_cider(everything_on_emulated_cuda: Any) -> None:
    emulated = everything_on_emulated_cuda
    references = References([[row.tolist()] for row in SENTENCES])
    corpus = Cider(references)
    corpus.prepare(references)
    samples = HammingSampler(0.5, VocabularyPool(V))(SENTENCES, LENGTHS, L)
    emulated.launched.clear()
    launched = operators(
        lambda: importance_weights(corpus(samples.tokens, samples.lengths, references), samples.log_prob, tau=0.5)
    )
    assert emulated.launched == ["cider"]
    assert len(launched) <= 21  # operators of torch: the lengths in a row, and the softmax with its infinities
