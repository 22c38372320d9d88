"""How many kernels a step launches, counted where they would cross into ``_C_cuda``: the emulation takes its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import smoothloss.functional as F
from smoothloss import _compiled as compiled
from smoothloss.rewards import Cider, References
from smoothloss.sampling import (
    BatchPool,
    HammingSampler,
    Pool,
    ReferencePool,
    Samples,
    SimilarPool,
    VocabularyPool,
    _hamming_native,
    importance_weights,
)
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

SENTENCES, LENGTHS = make_sequences(B, T, V, L)[0].clamp(min=0), torch.full((B,), T)
POOLS = [VocabularyPool(V), BatchPool(), ReferencePool(), SimilarPool(make_table(V))]


@pytest.fixture
def everything_on_emulated_cuda(native_on_emulated_cuda: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let draws, rewards and their weights take CPU tensors for CUDA tensors as well."""
    emulated = native_on_emulated_cuda

    def draw(name: str, like: Tensor, *arguments: Any) -> None:
        (_, _, batch, width, _), (kind, _, _, references_width, *_) = arguments[0], arguments[2]
        words = _hamming_native.scratch_words(kind, batch, width, references_width)
        scratch = torch.empty(words, dtype=torch.int64)
        emulated.launch(name, like, *arguments, scratch.data_ptr(), words)

    def score(name: str, like: Tensor, *arguments: Any) -> None:
        # The last but one is scratch, of which the CPU kernels need none.
        scratch = torch.empty(L * B * T * 8, dtype=torch.int64)
        emulated.launch(name, like, *arguments[:-2], scratch.data_ptr(), arguments[-1])

    calls = {"draw_hamming": draw, "cider": score}
    monkeypatch.setattr(compiled, "call", lambda name, *arguments: calls.get(name, emulated.launch)(name, *arguments))
    return emulated


class Launches(NamedTuple):
    """What a step launches: operators of torch, crossings into ``_C_cuda``, and how many kernels that makes."""

    operators: list[str]
    crossings: list[str]
    total: int


def launches(emulated: Any, step: Callable[[], None]) -> Launches:
    """Return what a step launches where the tensors are on a GPU, whose values nobody reads."""
    step()  # what a pool or a reward makes once for each device
    emulated.launched.clear()
    before = emulated.num_launches
    with pytest.MonkeyPatch.context() as patch:
        for module in (
            "ops.cross_entropy", "ops.smoothed_target", "sampling.samples", "sampling._weights_native"
        ):  # fmt: skip
            patch.setattr(f"smoothloss.{module}.is_eager", lambda *tensors: True)
        patch.setattr("smoothloss.ops.checks.is_eager", lambda *tensors: False)
        with Counting() as counting:
            step()
    return Launches(counting.launched, emulated.launched, len(counting.launched) + emulated.num_launches - before)


def test_a_step_of_maximum_likelihood(everything_on_emulated_cuda: Any) -> None:
    logits, target, one = torch.randn(B * T, V, requires_grad=True), torch.arange(B * T), torch.ones(())

    def step() -> None:
        torch.autograd.grad(F.cross_entropy(logits, target), logits, one)

    assert launches(everything_on_emulated_cuda, step) == ([], ROWS, 3)


def lazy_step(sampler: HammingSampler, weigh: Callable[[Samples], Tensor] | None = None) -> Callable[[], None]:
    """Return a step of lazy Tok-Seq: the draw, the weights of its samples, the loss and its gradient."""
    logits, one, table = torch.randn(B, T, V, requires_grad=True), torch.ones(()), make_table(V)

    def step() -> None:
        samples = sampler(SENTENCES, LENGTHS, L, references=SENTENCES)
        weights = None if weigh is None else weigh(samples)
        loss = F.lazy_sequence_cross_entropy(
            logits, SENTENCES, samples.tokens, weights, alpha=0.4, table=table, token_alpha=0.3
        )
        torch.autograd.grad(loss, logits, one)

    return step


@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: type(pool).__name__)
def test_a_lazy_step_with_its_draw(everything_on_emulated_cuda: Any, pool: Pool) -> None:
    """The seed, the draw, the target, the rows, their reduction, the gradient."""
    found = launches(everything_on_emulated_cuda, lazy_step(HammingSampler(0.5, pool)))
    assert found == (["aten.random_.default"], ["draw_hamming", "smoothed_target", *ROWS], 6)


@pytest.mark.parametrize("normalize", ["samples", "batch"])
@pytest.mark.parametrize("pool", POOLS, ids=lambda pool: type(pool).__name__)
def test_importance_weights_by_cider_are_three_launches_more(
    everything_on_emulated_cuda: Any, pool: Pool, normalize: Literal["samples", "batch"]
) -> None:
    """The references of the batch's inputs, the scores, the weights."""
    references = References([[row.tolist()] for row in SENTENCES])
    corpus, inputs = Cider(references), torch.arange(B)
    corpus.prepare(references)

    def weigh(samples: Samples) -> Tensor:
        scores = corpus(samples.tokens, samples.lengths, references.select(inputs))
        return importance_weights(scores, samples.log_prob, tau=0.5, clip=1.0, normalize=normalize)

    found = launches(everything_on_emulated_cuda, lazy_step(HammingSampler(0.5, pool), weigh))
    assert found.crossings == ["draw_hamming", "cider", "importance_weights", "smoothed_target", *ROWS]
    assert found.operators == ["aten.random_.default", "aten.index_select.default"]
    assert found.total == 6 + 3
