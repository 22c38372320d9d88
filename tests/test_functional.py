"""The public losses against the dense definition and against torch, and what they say to wrong arguments."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import smoothloss.functional as F
from smoothloss import SimilarityTable
from smoothloss.backends import unavailable
from smoothloss.testing import make_sequences, make_table, table_rows

B, T, V, L, D = 3, 5, 60, 4, 12
EPS = 0.1


def dense_rows(tokens: Tensor, table: SimilarityTable | None, alpha: float) -> Tensor:
    """Return ``(1 - alpha) delta(y) + alpha R_y`` for every token, ``(..., V)``."""
    delta = torch.nn.functional.one_hot(tokens.clamp(min=0), V).double()
    return delta if table is None else (1 - alpha) * delta + alpha * table_rows(table)[tokens.clamp(min=0)]


def dense_nll(logits: Tensor, q: Tensor, valid: Tensor) -> Tensor:
    q = ((1 - EPS) * q + EPS * q.sum(-1, keepdim=True) / V) * valid[..., None]
    return -(q.to(logits.dtype) * logits.log_softmax(-1)).sum(-1)


Case = tuple[Callable[..., Tensor], Callable[..., Tensor], tuple[int, ...], Callable[[Tensor], Tensor]]


def token_case(table: SimilarityTable | None) -> Case:
    target, _, _ = make_sequences(B, T, V, L)
    alpha = 0.0 if table is None else 0.4

    def dense(logits: Tensor) -> Tensor:
        return dense_nll(logits, dense_rows(target, table, alpha), target != -100)

    def options(function: Callable[..., Tensor], *inputs: Tensor, **more: Any) -> Tensor:
        return function(*inputs, target, table=table, alpha=alpha, label_smoothing=EPS, reduction="none", **more)

    return (
        lambda *a, **k: options(F.cross_entropy, *a, **k),
        lambda *a, **k: options(F.linear_cross_entropy, *a, **k),
        (B, T),
        dense,
    )


def lazy_case(table: SimilarityTable | None) -> Case:
    target, samples, omega = make_sequences(B, T, V, L)
    token_alpha = 0.0 if table is None else 0.3

    def dense(logits: Tensor) -> Tensor:
        q = 0.4 * dense_rows(target, table, token_alpha)
        for sample, weight in zip(samples, omega, strict=True):
            q = q + 0.6 * weight.double()[:, None, None] * dense_rows(sample, table, token_alpha)
        return dense_nll(logits, q, target != -100)

    def options(function: Callable[..., Tensor], *inputs: Tensor, **more: Any) -> Tensor:
        return function(
            *inputs, target, samples, omega, alpha=0.6, table=table, token_alpha=token_alpha,
            label_smoothing=EPS, reduction="none", **more,
        )  # fmt: skip

    return (
        lambda *a, **k: options(F.lazy_sequence_cross_entropy, *a, **k),
        lambda *a, **k: options(F.linear_lazy_sequence_cross_entropy, *a, **k),
        (B, T),
        dense,
    )


def exact_case(table: SimilarityTable | None) -> Case:
    target, samples, omega = make_sequences(B, T, V, L)
    samples = samples.where(target != -100, -100)
    token_alpha = 0.0 if table is None else 0.3

    def dense(logits: Tensor) -> Tensor:
        first = dense_nll(logits[0], 0.4 * dense_rows(target, table, token_alpha), target != -100)
        rest = [
            dense_nll(
                logits[1 + number],
                0.6 * weight.double()[:, None, None] * dense_rows(sample, table, token_alpha),
                sample != -100,
            )
            for number, (sample, weight) in enumerate(zip(samples, omega, strict=True))
        ]
        return torch.stack([first, *rest])

    def options(function: Callable[..., Tensor], *inputs: Tensor, **more: Any) -> Tensor:
        return function(
            *inputs, target, samples, omega, alpha=0.6, table=table, token_alpha=token_alpha,
            label_smoothing=EPS, reduction="none", **more,
        )  # fmt: skip

    return (
        lambda *a, **k: options(F.sequence_cross_entropy, *a, **k),
        lambda *a, **k: options(F.linear_sequence_cross_entropy, *a, **k),
        (L + 1, B, T),
        dense,
    )


CASES = {"token": token_case, "lazy": lazy_case, "exact": exact_case}
TAILS = [None, "uniform", "renormalize", "exact"]


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("poison")
def test_every_loss_equals_its_dense_definition(impl: str, case: str, tail: str | None) -> None:
    loss_function, linear_function, shape, dense = CASES[case](None if tail is None else make_table(V, tail=tail))
    torch.manual_seed(0)
    logits = torch.randn(*shape, V, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(shape, dtype=torch.float64)
    check(loss_function(logits, impl=impl), dense(logits), [logits], grad)
    hidden = torch.randn(*shape, D, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(V, dtype=torch.float64, requires_grad=True)
    expected = dense(torch.nn.functional.linear(hidden, weight, bias))
    actual = linear_function(hidden, weight, linear_bias=bias, impl=impl, chunk_bytes=V * 8 * 4)
    check(actual, expected, [hidden, weight, bias], grad)


def check(actual: Tensor, expected: Tensor, inputs: list[Tensor], grad: Tensor) -> None:
    # The table's weights are float32, and so is what the dense definition makes of them: 1e-7 relative.
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    ours = torch.autograd.grad(actual, inputs, grad)
    theirs = torch.autograd.grad(expected, inputs, grad)
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.15])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_hard_labels_equal_torch(impl: str, reduction: str, label_smoothing: float, dtype: torch.dtype) -> None:
    if unavailable(impl, "cpu", dtype):
        pytest.skip("dtype")
    torch.manual_seed(1)
    target = torch.randint(V, (20,))
    target[::5] = 2
    logits = (3 * torch.randn(20, V)).to(dtype)
    ours = logits.clone().requires_grad_()
    theirs = logits.to(torch.float64 if dtype == torch.float64 else torch.float32).requires_grad_()
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": label_smoothing, "ignore_index": 2}
    actual = F.cross_entropy(ours, target, impl=impl, **options)
    expected = torch.nn.functional.cross_entropy(theirs, target, **options)
    torch.testing.assert_close(actual, expected)
    actual.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad.to(dtype))


@pytest.mark.parametrize(("batch", "length"), [(0, 5), (3, 0), (0, 0)])
@pytest.mark.parametrize("kind", ["tok", "lazy", "exact"])
@pytest.mark.parametrize("linear", [False, True])
def test_batches_of_no_sentence_or_no_word(impl: str, kind: str, linear: bool, batch: int, length: int) -> None:
    target, samples = torch.zeros(batch, length, dtype=torch.int64), torch.zeros(2, batch, length, dtype=torch.int64)
    shape = (3, batch, length) if kind == "exact" else (batch, length)
    for reduction, table in itertools.product(("mean", "sum", "none"), (make_table(9), make_table(9, tail="exact"))):
        how = {"reduction": reduction, "table": table, "impl": impl}
        given = torch.randn(*shape, 4 if linear else 9, requires_grad=True)
        layer = [torch.randn(9, 4)] if linear else []
        prefix = "linear_" if linear else ""
        if kind == "tok":
            loss = getattr(F, f"{prefix}cross_entropy")(given, *layer, target, alpha=0.3, **how)
        else:
            name = f"{prefix}{'lazy_' if kind == 'lazy' else ''}sequence_cross_entropy"
            loss = getattr(F, name)(given, *layer, target, samples, alpha=0.3, token_alpha=0.1, **how)
        assert loss.shape == (shape if reduction == "none" else ())
        assert torch.autograd.grad(loss.sum(), given)[0].shape == given.shape
        if reduction != "none":
            assert loss.isnan() if reduction == "mean" else loss == 0


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_ignored_and_empty_batches_equal_torch(impl: str, reduction: str) -> None:
    for rows in (0, 4):
        logits = torch.randn(rows, V, requires_grad=True)
        target = torch.full((rows,), -100)
        expected = torch.nn.functional.cross_entropy(logits, target, reduction=reduction)
        for linear in (False, True):
            if linear:
                hidden, weight = torch.randn(rows, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
                actual = F.linear_cross_entropy(hidden, weight, target, reduction=reduction, impl=impl)
                inputs = [hidden, weight]
            else:
                actual = F.cross_entropy(logits, target, reduction=reduction, impl=impl)
                inputs = [logits]
            torch.testing.assert_close(actual, expected, equal_nan=True)
            for grad in torch.autograd.grad(actual.sum(), inputs):
                assert grad.eq(0).all()


def test_any_leading_dimensions(impl: str) -> None:
    logits, target = torch.randn(2, 3, 4, V), torch.randint(V, (2, 3, 4))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none")
    actual = F.cross_entropy(logits, target, reduction="none", impl=impl)
    torch.testing.assert_close(actual, expected.view(2, 3, 4))
    one = F.cross_entropy(logits[0, 0, 0], target[0, 0, 0], reduction="none", impl=impl)
    torch.testing.assert_close(one, expected[0])


def test_exact_mean_divides_by_the_ground_truths_positions(impl: str) -> None:
    target, samples, omega = make_sequences(B, T, V, L)
    samples = samples.where(target != -100, -100)
    logits = torch.randn(L + 1, B, T, V)
    rows = F.sequence_cross_entropy(logits, target, samples, omega, alpha=0.6, reduction="none", impl=impl)
    mean = F.sequence_cross_entropy(logits, target, samples, omega, alpha=0.6, impl=impl)
    torch.testing.assert_close(mean, rows.sum() / (target != -100).sum())


def test_lazy_equals_exact_when_the_states_do_not_depend_on_the_samples(impl: str) -> None:
    target, samples, omega = make_sequences(B, T, V, L)
    logits = torch.randn(B, T, V, requires_grad=True)
    lazy = F.lazy_sequence_cross_entropy(logits, target, samples, omega, alpha=0.6, impl=impl)
    exact = F.sequence_cross_entropy(
        logits.expand(L + 1, B, T, V), target, samples.where(target != -100, -100), omega, alpha=0.6, impl=impl
    )
    torch.testing.assert_close(lazy, exact)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in (lazy, exact)))


def test_without_weights_samples_count_alike(impl: str) -> None:
    target, samples, _ = make_sequences(B, T, V, L)
    logits = torch.randn(B, T, V)
    losses = [
        F.lazy_sequence_cross_entropy(logits, target, samples, weights, alpha=0.5, impl=impl)
        for weights in (None, torch.full((L, B), 1 / L))
    ]
    torch.testing.assert_close(*losses)


# torch.compile itself instantiates autograd functions.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_losses_equal_eager_ones(impl: str) -> None:
    if impl == "triton":
        pytest.skip("the interpreter is not compiled")
    target, samples, omega = make_sequences(B, T, V, L)
    table = make_table(V)
    torch.compiler.reset()

    def function(hidden: Tensor, weight: Tensor) -> Tensor:
        return F.linear_lazy_sequence_cross_entropy(
            hidden, weight, target, samples, omega, alpha=0.6, table=table, token_alpha=0.3, impl=impl
        )

    hidden, weight = torch.randn(B, T, D, requires_grad=True), torch.randn(V, D, requires_grad=True)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    actual, expected = compiled(hidden, weight), function(hidden, weight)
    torch.testing.assert_close(actual, expected)
    for mine, theirs in zip(
        torch.autograd.grad(actual, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight)), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


LOGITS = torch.zeros(B, T, V)
TARGET = torch.zeros(B, T, dtype=torch.long)
SAMPLES = torch.zeros(L, B, T, dtype=torch.long)
WRONG: dict[str, tuple[type[Exception], str, Callable[[], object]]] = {
    "no tensor": (TypeError, "input: got list", lambda: F.cross_entropy([1.0], TARGET)),  # type: ignore[arg-type]
    "integer logits": (TypeError, "input: got torch.int64", lambda: F.cross_entropy(TARGET, TARGET)),
    "no classes": (ValueError, r"input: got shape \(3, 0\)", lambda: F.cross_entropy(torch.zeros(3, 0), TARGET[0])),
    "float target": (TypeError, "target: got torch.float32", lambda: F.cross_entropy(LOGITS, TARGET.float())),
    "target shape": (ValueError, r"target: got shape \(3,\), expected \(3, 5\)",
                     lambda: F.cross_entropy(LOGITS, TARGET[:, 0])),
    "target value": (IndexError, rf"target\[1, 2\]: got {V}, expected an index below {V}",
                     lambda: F.cross_entropy(LOGITS, TARGET.index_put((torch.tensor(1), torch.tensor(2)),
                                                                     torch.tensor(V)))),
    "negative target": (IndexError, r"target\[0, 0\]: got -1", lambda: F.cross_entropy(LOGITS, TARGET - 1)),
    "reduction": (ValueError, "reduction: got 'avg'", lambda: F.cross_entropy(LOGITS, TARGET, reduction="avg")),
    "implementation": (ValueError, "impl: got 'cuda'",
                       lambda: F.cross_entropy(LOGITS, TARGET, impl="cuda")),  # type: ignore[arg-type]
    "smoothing": (ValueError, "label_smoothing: got 1.5", lambda: F.cross_entropy(LOGITS, TARGET, label_smoothing=1.5)),
    "softcap": (ValueError, "softcap: got 0", lambda: F.cross_entropy(LOGITS, TARGET, softcap=0.0)),
    "not a number": (ValueError, "entropy: got nan", lambda: F.cross_entropy(LOGITS, TARGET, entropy=float("nan"))),
    "number type": (TypeError, "z_loss: got '1'", lambda: F.cross_entropy(LOGITS, TARGET, z_loss="1")),  # type: ignore[arg-type]
    "alpha without table": (ValueError, "alpha: got 0.5 without a table",
                            lambda: F.cross_entropy(LOGITS, TARGET, alpha=0.5)),
    "table type": (TypeError, "table: got dict", lambda: F.cross_entropy(LOGITS, TARGET, table={})),  # type: ignore[arg-type]
    "table size": (ValueError, f"table: got a table of {V} tokens, expected 7",
                   lambda: F.cross_entropy(torch.zeros(2, 7), TARGET[0, :2], table=make_table(V), alpha=0.5)),
    "samples shape": (ValueError, r"samples: got shape \(4, 3, 4\), expected \(4, 3, 5\)",
                      lambda: F.lazy_sequence_cross_entropy(LOGITS, TARGET, SAMPLES[..., 1:], alpha=0.5)),
    "sample weights": (ValueError, r"sample_weights: got shape \(3, 4\), expected \(4, 3\)",
                       lambda: F.lazy_sequence_cross_entropy(LOGITS, TARGET, SAMPLES, torch.ones(B, L), alpha=0.5)),
    "two dimensions": (ValueError, "expected \\(B, T, V\\)",
                       lambda: F.lazy_sequence_cross_entropy(LOGITS[0], TARGET, SAMPLES, alpha=0.5)),
    "forwards": (ValueError, r"input: got shape \(4, 3, 5, 60\), expected \(5, 3, 5, 60\)",
                 lambda: F.sequence_cross_entropy(LOGITS.expand(L, B, T, V), TARGET, SAMPLES, alpha=0.5)),
    "indices shape": (ValueError, "indices: got shape",
                      lambda: F.sparse_cross_entropy(LOGITS, TARGET, torch.ones(B, T))),
    "indices value": (IndexError, r"indices\[0, 0, 0\]: got 60",
                      lambda: F.sparse_cross_entropy(LOGITS, TARGET[..., None] + V, torch.ones(B, T, 1))),
    "weights shape": (ValueError, r"weights: got shape \(3, 5, 2\), expected \(3, 5, 1\)",
                      lambda: F.sparse_cross_entropy(LOGITS, TARGET[..., None], torch.ones(B, T, 2))),
    "weights gradient": (ValueError, "weights: got a tensor that requires grad",
                         lambda: F.sparse_cross_entropy(LOGITS, TARGET[..., None],
                                                        torch.ones(B, T, 1, requires_grad=True))),
    "uniform shape": (ValueError, r"uniform: got shape \(3,\), expected \(3, 5\)",
                      lambda: F.sparse_cross_entropy(LOGITS, TARGET[..., None], torch.ones(B, T, 1),
                                                     uniform=torch.ones(3))),
    "classifier shape": (ValueError, r"linear_weight: got shape \(60, 9\), expected \(V, D\)",
                         lambda: F.linear_cross_entropy(torch.zeros(B, T, D), torch.zeros(V, 9), TARGET)),
    "classifier dtype": (TypeError, "linear_weight: got torch.float64, expected torch.float32",
                         lambda: F.linear_cross_entropy(torch.zeros(B, T, D), torch.zeros(V, D).double(), TARGET)),
    "bias shape": (ValueError, r"linear_bias: got shape \(12,\), expected \(60,\)",
                   lambda: F.linear_cross_entropy(torch.zeros(B, T, D), torch.zeros(V, D), TARGET,
                                                  linear_bias=torch.zeros(D))),
    "chunk": (ValueError, "chunk_bytes: got 0",
              lambda: F.linear_cross_entropy(torch.zeros(B, T, D), torch.zeros(V, D), TARGET, chunk_bytes=0)),
    "memory": (ValueError, "memory: got 'tiny'",
               lambda: F.linear_cross_entropy(torch.zeros(B, T, D), torch.zeros(V, D), TARGET, memory="tiny")),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name: str) -> None:
    error, message, call = WRONG[name]
    with pytest.raises(error, match=message):
        call()


def test_an_explicit_choice_raises_where_it_cannot_run() -> None:
    if unavailable("triton", "cpu", torch.float32) is None:
        pytest.skip("the interpreter runs on the CPU")
    with pytest.raises(RuntimeError, match="impl='triton' cannot run here"):
        F.cross_entropy(LOGITS, TARGET, impl="triton")
