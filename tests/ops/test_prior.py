"""A prior that the mass of all classes is spread by: every implementation against the dense definition in float64."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quick import slow_but
from torch import Tensor

import smoothloss.functional as F
from smoothloss import nn, targets
from smoothloss.backends import unavailable
from smoothloss.testing import (
    Inputs,
    assert_error_budget,
    dense_target,
    make_inputs,
    make_sequences,
    make_table,
    table_rows,
)

# Triton's interpreter computes the masked lanes too, where NumPy warns.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

Options = dict[str, Any]
INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))


@pytest.fixture(autouse=True)
def once(request: pytest.FixtureRequest) -> None:
    """Let the process of the interpreter run what is the interpreter's."""
    parameters = getattr(request.node, "callspec", None)
    if INTERPRETED and (parameters is None or parameters.params.get("impl") != "triton"):
        pytest.skip("runs in the other process")


OPTIONS: dict[str, Options] = {
    "uniform": {},
    "label_smoothing": {"label_smoothing": 0.1},
    "all smoothing": {"label_smoothing": 1.0},
    "entropy": {"label_smoothing": 0.1, "entropy": 0.3},
    "scale": {"label_smoothing": 0.1, "logit_scale": 1.7, "z_loss": 0.01},
    "softcap": {"label_smoothing": 0.1, "softcap": 4.0},
    "all": {"label_smoothing": 0.1, "entropy": 0.3, "z_loss": 0.01, "logit_scale": 0.7, "softcap": 4.0},
}


def make_prior(classes: int, dtype: torch.dtype = torch.float64, zeros: float = 0.3) -> Tensor:
    """Return a distribution over the classes of which some are 0."""
    generator = torch.Generator().manual_seed(classes)
    prior = torch.rand(classes, generator=generator, dtype=torch.float64) ** 4
    prior[torch.rand(classes, generator=generator) < zeros] = 0
    prior[classes // 2] += 0.1
    return (prior / prior.sum()).to(dtype)


def dense_loss(logits: Tensor, q: Tensor, prior: Tensor, options: Options) -> Tensor:
    """Return the loss against a dense target; ``0 * inf = 0``, and rows without mass have none."""
    eps, cap = options.get("label_smoothing", 0.0), options.get("softcap")
    mass = q.sum(-1, keepdim=True)
    q = ((1 - eps) * q + eps * mass * prior).to(logits.dtype)
    z = logits.where(mass != 0, 0.0) * options.get("logit_scale", 1.0)
    z = z if cap is None else cap * torch.tanh(z / cap)
    log_p = z.log_softmax(-1)
    loss = -(q * log_p.where(q != 0, 0.0)).sum(-1)
    loss = loss + options.get("z_loss", 0.0) * z.logsumexp(-1) ** 2
    loss = loss + options.get("entropy", 0.0) * (log_p.exp() * log_p.clamp(min=-1e4)).sum(-1)
    return loss.where(mass.squeeze(-1) != 0, 0.0)


def dense(inputs: Inputs, prior: Tensor) -> Tensor:
    """Return entries and uniform mass as a dense target."""
    q = dense_target(inputs.indices, inputs.weights, None, inputs.logits.shape[1])
    return q if inputs.uniform is None else q + inputs.uniform.double()[:, None] * prior.double()


def differentiated(loss: Callable[[Tensor], Tensor], logits: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits)
    return value.detach(), torch.autograd.grad(value, logits, grad.to(value.dtype))[0]


def run(inputs: Inputs, prior: Tensor, grad: Tensor, impl: str, options: Options) -> tuple[Tensor, Tensor]:
    return differentiated(
        lambda z: F.sparse_cross_entropy(
            z, inputs.indices, inputs.weights, uniform=inputs.uniform, prior=prior, reduction="none", impl=impl,
            **options,
        ),
        inputs.logits, grad,
    )  # fmt: skip


def assert_defined(inputs: Inputs, impl: str, options: Options) -> None:
    """Assert that loss and gradient err at most twice as much as eager torch does."""
    prior = make_prior(inputs.logits.shape[1])
    grad = torch.randn(len(inputs.logits), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grad = grad.to(inputs.weights.dtype)
    actual = run(inputs, prior.to(inputs.weights.dtype), grad, impl, options)
    prior = prior.to(inputs.weights.dtype).double()
    q = dense(inputs, prior)
    expected = differentiated(lambda z: dense_loss(z, q, prior, options), inputs.logits.double(), grad)
    eager = differentiated(lambda z: dense_loss(z, q, prior, options), inputs.logits, grad)
    for ours, yardstick, oracle in zip(actual, eager, expected, strict=True):
        assert_error_budget(ours, yardstick, oracle)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("slots", slow_but((9,), [1, 9, 200]))
@pytest.mark.usefixtures("poison")
def test_equals_the_dense_definition(impl: str, dtype: torch.dtype, slots: int, name: str) -> None:
    reason = unavailable(impl, "cpu", dtype)
    if reason is not None:
        pytest.skip(reason)
    if INTERPRETED and slots != 9 and name not in ("uniform", "all"):
        pytest.skip("the interpreter takes its time")
    # 60 rows: an error of a row's mass is that of all its classes, and of few rows eager torch may happen to have none.
    assert_defined(make_inputs(60, 203, slots, dtype=dtype, uniform=name == "uniform"), impl, OPTIONS[name])


@given(
    v=st.sampled_from([1, 7, 8, 100, 1003, 9800]),
    n=st.integers(0, 5),
    s=st.integers(0, 20),
    seed=st.integers(0, 2**20),
    uniform=st.booleans(),
    name=st.sampled_from(list(OPTIONS)),
)
@settings(
    max_examples=10 if INTERPRETED else 40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_shape(impl: str, v: int, n: int, s: int, seed: int, uniform: bool, name: str) -> None:
    v = min(v, 100) if impl == "triton" else v  # the interpreter takes its time
    inputs = make_inputs(n, v, s, dtype=torch.float64, seed=seed, uniform=uniform)
    prior, grad = make_prior(v), torch.rand(n, dtype=torch.float64)
    actual = run(inputs, prior, grad, impl, OPTIONS[name])
    q = dense(inputs, prior)
    expected = differentiated(lambda z: dense_loss(z, q, prior, OPTIONS[name]), inputs.logits, grad)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_on_emulated_cuda(native_on_emulated_cuda: Any, dtype: torch.dtype, name: str) -> None:
    for classes, slots in ((203, 9), (1003, 1), (128, 6000)):
        inputs = make_inputs(5, classes, slots, dtype=dtype, uniform=name == "uniform")
        assert_defined(inputs, "native", OPTIONS[name])
    assert native_on_emulated_cuda.launched


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", ["label_smoothing", "all"])
def test_linear_losses(impl: str, memory: str, reduction: str, name: str) -> None:
    if INTERPRETED and (reduction == "sum" or name != "all"):
        pytest.skip("the interpreter takes its time")
    check_linear(impl, memory, reduction, OPTIONS[name])


@pytest.mark.parametrize("memory", ["fast", "low"])
def test_linear_losses_on_emulated_cuda(native_on_emulated_cuda: Any, memory: str) -> None:
    check_linear("native", memory, "mean", OPTIONS["all"])
    assert native_on_emulated_cuda.launched


def check_linear(impl: str, memory: str, reduction: str, options: Options) -> None:
    inputs = make_inputs(11, 300, 4, dtype=torch.float64, uniform=True)
    hidden, weight, bias = (torch.randn(size, dtype=torch.float64) for size in ((11, 6), (300, 6), (300,)))
    prior = make_prior(300)
    layer = [tensor.requires_grad_() for tensor in (hidden, weight, bias)]
    losses = dense_loss(torch.nn.functional.linear(*layer), dense(inputs, prior), prior, options)
    count = (dense(inputs, prior).sum(-1) != 0).sum()
    expected = {"none": losses, "sum": losses.sum(), "mean": losses.sum() / count}[reduction]
    for chunk_bytes in (None, 128 * 11 * 8):  # whole, and in slices of 128 classes or few rows
        actual = F.linear_sparse_cross_entropy(
            hidden, weight, inputs.indices, inputs.weights, linear_bias=bias, uniform=inputs.uniform, prior=prior,
            memory=memory, reduction=reduction, impl=impl, chunk_bytes=chunk_bytes, **options,
        )  # fmt: skip
        torch.testing.assert_close(actual, expected)
        grad = torch.rand_like(expected)
        ours, theirs = (torch.autograd.grad(loss, layer, grad, retain_graph=True) for loss in (actual, expected))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_an_even_prior_is_torchs_label_smoothing(impl: str, reduction: str, dtype: torch.dtype) -> None:
    target = torch.randint(50, (20,))
    target[::5] = -100
    given_options: Options = {"label_smoothing": 0.2, "reduction": reduction}
    logits = (3 * torch.randn(20, 50, dtype=dtype)).requires_grad_()
    ours = F.cross_entropy(logits, target, prior=torch.full((50,), 1 / 50, dtype=dtype), impl=impl, **given_options)
    theirs = torch.nn.functional.cross_entropy(logits, target, **given_options)
    torch.testing.assert_close(ours, theirs)
    grad = torch.rand_like(ours)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits, grad)[0] for loss in (ours, theirs)))


@pytest.mark.parametrize("memory", ["logits", "fast", "low"])
def test_classes_that_are_left_out_have_no_influence(impl: str, memory: str) -> None:
    check_left_out(impl, memory)


@pytest.mark.parametrize("memory", ["logits", "fast", "low"])
def test_classes_that_are_left_out_have_no_influence_on_cuda(native_on_emulated_cuda: Any, memory: str) -> None:
    check_left_out("native", memory)
    assert native_on_emulated_cuda.launched


def check_left_out(impl: str, memory: str) -> None:
    """A logit of -inf of a class without prior: the loss is finite, the gradient of the class exactly 0."""
    classes, out = 70, torch.tensor([0, 3, 40, 69])
    prior = torch.rand(classes, dtype=torch.float64)
    prior[out] = 0
    prior /= prior.sum()
    target = torch.tensor([1, 2, 5, 6])
    logits = torch.randn(4, classes, dtype=torch.float64)
    logits[:, out] = -torch.inf
    q = torch.nn.functional.one_hot(target, classes).double()
    expected = differentiated(lambda z: dense_loss(z, q, prior, {"label_smoothing": 0.3}).sum(), logits, torch.ones(()))
    given_options: Options = {"label_smoothing": 0.3, "prior": prior, "reduction": "sum", "impl": impl}
    if memory == "logits":
        actual = differentiated(lambda z: F.cross_entropy(z, target, **given_options), logits, torch.ones(()))
    else:  # the logits are a bias of a classifier without weights, row by row
        bias = logits[0].clone().requires_grad_()
        loss = F.linear_cross_entropy(
            torch.zeros(4, 1, dtype=torch.float64), torch.zeros(classes, 1, dtype=torch.float64), target,
            linear_bias=bias, memory=memory, **given_options,
        )  # fmt: skip
        actual = loss.detach(), torch.autograd.grad(loss, bias)[0]
        wide = logits[:1].expand(4, classes)
        value, grad = differentiated(
            lambda z: dense_loss(z, q, prior, {"label_smoothing": 0.3}).sum(), wide, torch.ones(())
        )
        expected = value, grad.sum(0)
    assert torch.isfinite(actual[0])
    assert actual[1][..., out].eq(0).all()
    torch.testing.assert_close(actual, expected)


def test_no_pull_to_a_class_of_prior_zero(impl: str) -> None:
    logits, target = torch.randn(5, 30, dtype=torch.float64), torch.tensor([1, 2, 3, 4, 5])
    prior = make_prior(30)
    _, grad = differentiated(
        lambda z: F.cross_entropy(z, target, label_smoothing=0.4, prior=prior, reduction="sum", impl=impl),
        logits, torch.ones(()),
    )  # fmt: skip
    p = logits.softmax(-1)
    left_out = (prior == 0) & (torch.arange(30) > 5)
    assert left_out.any()
    torch.testing.assert_close(grad[:, left_out], p[:, left_out], rtol=1e-13, atol=0)


def test_mass_that_is_not_spread_does_not_see_the_prior(impl: str) -> None:
    logits, target = torch.randn(5, 30), torch.arange(5)
    for given_options in ({}, {"entropy": 0.2}):
        losses = [F.cross_entropy(logits, target, prior=prior, impl=impl, **given_options)
                  for prior in (None, make_prior(30, torch.float32))]  # fmt: skip
        assert torch.equal(*losses)


@pytest.mark.parametrize("exponent", [0, 4, 8, 30])
def test_a_common_offset_changes_nothing(impl: str, exponent: int) -> None:
    logits, target = torch.randn(6, 90, dtype=torch.float64).bfloat16().double(), torch.arange(6)
    offset = 2.0**exponent
    shifted = logits + offset
    prior = make_prior(90)
    results = [
        differentiated(
            lambda z: F.cross_entropy(z, target, label_smoothing=0.3, prior=prior, reduction="none", impl=impl),
            z, torch.ones(6),
        )
        for z in (shifted - offset, shifted)
    ]  # fmt: skip
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("tail", ["uniform", "renormalize", "exact"])
def test_every_loss_takes_a_prior(impl: str, tail: Any) -> None:
    classes, eps = 60, 0.1
    target, samples, omega = make_sequences(3, 5, classes, 4)
    table, prior = make_table(classes, tail=tail), make_prior(60)
    rows = table_rows(table)
    if tail == "uniform":
        mass = table.tail.double()[:, None]
        rows = rows - mass / classes + mass * prior
    delta = torch.eye(classes, dtype=torch.float64)
    valid = (target != -100)[..., None]
    given_options: Options = {"label_smoothing": eps, "prior": prior, "reduction": "none", "impl": impl}
    logits = torch.randn(3, 5, classes, dtype=torch.float64)
    q = (0.6 * delta + 0.4 * rows)[target.clamp(min=0)] * valid
    actual = F.cross_entropy(logits, target, table=table, alpha=0.4, **given_options)
    torch.testing.assert_close(actual, dense_loss(logits, q, prior, {"label_smoothing": eps}), rtol=1e-6, atol=1e-6)
    smoothed = 0.7 * delta + 0.3 * rows
    q = 0.5 * smoothed[target.clamp(min=0)]
    for sample, weight in zip(samples, omega, strict=True):
        q = q + 0.5 * weight.double()[:, None, None] * smoothed[sample.clamp(min=0)]
    actual = F.lazy_sequence_cross_entropy(
        logits, target, samples, omega, alpha=0.5, table=table, token_alpha=0.3, **given_options
    )
    expected = dense_loss(logits, q * valid, prior, {"label_smoothing": eps})
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("tail", ["uniform", "exact"])
@pytest.mark.parametrize("eps", [0.0, 0.1, 1.0])
def test_kl_subtracts_the_targets_entropy(impl: str, eps: float, tail: Any) -> None:
    logits, target, prior = torch.randn(6, 60, dtype=torch.float64), torch.arange(6) + 3, make_prior(60)
    table = make_table(60, tail=tail)
    given_options: Options = {"label_smoothing": eps, "prior": prior, "reduction": "none", "impl": impl}
    rows = table_rows(table)
    if tail == "uniform":
        mass = table.tail.double()[:, None]
        rows = rows - mass / 60 + mass * prior
    q = 0.7 * torch.eye(60, dtype=torch.float64)[target] + 0.3 * rows[target]
    q = (1 - eps) * q + eps * q.sum(-1, keepdim=True) * prior
    expected = dense_loss(logits, q, prior, {}) + torch.xlogy(q, q).sum(-1)
    actual = F.cross_entropy(logits, target, table=table, alpha=0.3, kl=True, **given_options)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_class_weights_weigh_what_the_prior_spreads(impl: str, reduction: str) -> None:
    logits, target, eps = torch.randn(8, 20, dtype=torch.float64), torch.randint(20, (8,)), 0.2
    prior, weight = make_prior(20), torch.rand(20, dtype=torch.float64)
    q = (1 - eps) * torch.nn.functional.one_hot(target, 20) + eps * prior
    losses = -(q * weight * logits.log_softmax(-1)).sum(-1)
    mean = losses.sum() / weight[target].sum()
    expected = {"none": losses, "sum": losses.sum(), "mean": mean}[reduction]
    actual = F.cross_entropy(
        logits, target, label_smoothing=eps, prior=prior, weight=weight, reduction=reduction, impl=impl
    )
    torch.testing.assert_close(actual, expected)


def test_gradients_of_the_reference() -> None:
    inputs, prior = make_inputs(4, 12, 3, dtype=torch.float64, uniform=True), make_prior(12)

    def loss(z: Tensor) -> Tensor:
        return F.sparse_cross_entropy(
            z, inputs.indices, inputs.weights, uniform=inputs.uniform, prior=prior, label_smoothing=0.1, softcap=3.0,
            reduction="none", impl="reference",
        )  # fmt: skip

    logits = inputs.logits.requires_grad_()
    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)


# torch.compile itself instantiates autograd functions.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("linear", [False, True])
def test_compiled_exported_and_mapped(impl: str, linear: bool) -> None:
    if impl == "triton":
        pytest.skip("the interpreter is not compiled")
    torch.compiler.reset()

    class Loss(torch.nn.Module):
        target: Tensor
        prior: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("target", torch.arange(6))  # torch 2.6 exports no tensor from outside of a module
            self.register_buffer("prior", make_prior(30, torch.float32))

        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            given_options: Options = {"label_smoothing": 0.2, "prior": self.prior, "impl": impl}
            if linear:
                return F.linear_cross_entropy(x, weight, self.target, **given_options)
            return F.cross_entropy(x @ weight.t(), self.target, **given_options)

    x, weight = torch.randn(6, 5, requires_grad=True), torch.randn(30, 5, requires_grad=True)
    expected = Loss()(x, weight)
    grads = torch.autograd.grad(expected, (x, weight))
    compiled = torch.compile(Loss(), fullgraph=True, backend="aot_eager")(x, weight)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(torch.autograd.grad(compiled, (x, weight)), grads)
    for strict in (False, True):
        exported = torch.export.export(Loss(), (x, weight), strict=strict).module()
        torch.testing.assert_close(exported(x, weight), expected)
    torch.testing.assert_close(torch.func.grad(Loss(), argnums=(0, 1))(x, weight), grads)
    mapped = torch.func.vmap(Loss(), in_dims=(0, None))(torch.stack((x, 2 * x)), weight)
    if impl == "reference":
        torch.testing.assert_close(mapped, torch.stack((Loss()(x, weight), Loss()(2 * x, weight))))


@pytest.mark.parametrize("name", [name for name in nn.__all__ if name.endswith("CrossEntropyLoss")])
def test_modules_hold_the_prior_as_a_buffer(name: str) -> None:
    required: Options = {"alpha": 0.5} if "Sequence" in name else {}
    prior = make_prior(9, torch.float32)
    module = getattr(nn, name)(**required, prior=prior, label_smoothing=0.1)
    assert torch.equal(module.state_dict()["prior"], prior)
    assert "prior=(9,)" in repr(module)
    assert module.to("meta").prior.device.type == "meta"
    assert "prior" not in getattr(nn, name)(**required).state_dict()
    with pytest.raises(ValueError, match="prior: got values that sum to 2"):
        getattr(nn, name)(**required, prior=2 * prior)


def test_a_module_equals_its_function() -> None:
    prior, logits, target = make_prior(9, torch.float32), torch.randn(4, 9), torch.arange(4)
    expected = F.cross_entropy(logits, target, prior=prior, label_smoothing=0.1)
    torch.testing.assert_close(nn.CrossEntropyLoss(prior=prior, label_smoothing=0.1)(logits, target), expected)
    entries = target[:, None], torch.ones(4, 1)
    torch.testing.assert_close(nn.SparseCrossEntropyLoss(prior=prior, label_smoothing=0.1)(logits, *entries), expected)


def test_targets_that_mix_share_the_prior(impl: str) -> None:
    logits, prior = torch.randn(4, 9, dtype=torch.float64), make_prior(9)
    teacher = targets.top_k(torch.arange(8).view(4, 2), torch.full((4, 2), 0.3, dtype=torch.float64).log())
    mixed = 0.5 * targets.labels(torch.arange(4)) + 0.5 * teacher
    assert mixed.uniform is not None
    q = mixed.dense(9) + mixed.uniform[:, None] * (prior - 1 / 9)
    actual = F.cross_entropy(logits, mixed, prior=prior, reduction="none", impl=impl)
    torch.testing.assert_close(actual, dense_loss(logits, q, prior, {}), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_kl_of_a_mixture_with_a_dense_tail_and_mass_on_all_classes(impl: str, eps: float) -> None:
    logits, y, prior = torch.randn(4, 60, dtype=torch.float64), torch.arange(4) + 3, make_prior(60)
    table = make_table(60, tail="exact")
    spread = targets.entries(y[:, None], torch.full((4, 1), 0.4), torch.full((4,), 0.6))
    mixed = 0.5 * targets.token(y, table, 0.5) + 0.5 * spread
    delta = torch.eye(60, dtype=torch.float64)[y]
    q = 0.5 * (0.5 * delta + 0.5 * table_rows(table)[y]) + 0.5 * (0.4 * delta + 0.6 * prior)
    q = (1 - eps) * q + eps * prior
    options: Options = {"prior": prior, "label_smoothing": eps, "reduction": "none", "impl": impl}
    expected = dense_loss(logits, q, prior, {}) + torch.xlogy(q, q).sum(-1)
    torch.testing.assert_close(F.cross_entropy(logits, mixed, kl=True, **options), expected, rtol=1e-5, atol=1e-5)


LOGITS, TARGET = torch.zeros(2, 3), torch.tensor([0, 1])
NAN, INF = float("nan"), float("inf")
WRONG: dict[str, tuple[object, type[Exception], str]] = {
    "list": ([0.5, 0.5, 0.0], TypeError, "prior: got list, expected a torch.Tensor"),
    "integers": (torch.tensor([1, 0, 0]), TypeError, "prior: got torch.int64, expected a floating-point dtype"),
    "size": (torch.tensor([0.5, 0.5]), ValueError, r"prior: got shape \(2,\), expected \(3,\)"),
    "dimensions": (torch.ones(1, 3) / 3, ValueError, r"prior: got shape \(1, 3\), expected \(V,\)"),
    "negative": (torch.tensor([1.5, -0.5, 0.0]), ValueError, "prior: got the smallest value -0.5"),
    "nan": (torch.tensor([0.5, NAN, 0.5]), ValueError, "prior: got the smallest value nan"),
    "infinite": (torch.tensor([0.5, INF, 0.5]), ValueError, "prior: got values that sum to inf"),
    "sum": (torch.tensor([0.5, 0.3, 0.1]), ValueError, "prior: got values that sum to 0.9"),
    "gradient": (torch.tensor([0.5, 0.3, 0.2], requires_grad=True), ValueError, "prior: got a tensor that requires"),
    "device": (torch.ones(3, device="meta"), ValueError, "prior: got a tensor on meta, expected cpu"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_priors_are_named(name: str) -> None:
    prior, error, message = WRONG[name]
    for given_options in ({}, {"label_smoothing": 0.1}):
        with pytest.raises(error, match=message):
            F.cross_entropy(LOGITS, TARGET, prior=prior, **given_options)
        with pytest.raises(error, match=message):
            F.linear_cross_entropy(torch.zeros(2, 4), torch.zeros(3, 4), TARGET, prior=prior, **given_options)


def test_a_prior_is_looked_at_again_when_it_changes() -> None:
    prior = torch.tensor([0.5, 0.3, 0.2])
    F.cross_entropy(LOGITS, TARGET, prior=prior, label_smoothing=0.1)
    prior[0] = 0.9
    with pytest.raises(ValueError, match=r"prior: got values that sum to 1\.4"):
        F.cross_entropy(LOGITS, TARGET, prior=prior, label_smoothing=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [3, 1000, 150_000, 500_000])
def test_distributions_pass_whatever_their_dtype(dtype: torch.dtype, classes: int) -> None:
    counts = torch.arange(1, classes + 1).flip(0).pow(-1.0).to(torch.float32)
    prior = (counts / counts.sum()).to(dtype)
    logits = torch.zeros(2, classes)
    F.cross_entropy(logits, TARGET, prior=prior, label_smoothing=0.1)
    even = torch.full((classes,), 1 / classes).to(dtype)
    F.cross_entropy(logits, TARGET, prior=even, label_smoothing=0.1)
    with torch.inference_mode():
        F.cross_entropy(logits, TARGET, prior=prior.clone(), label_smoothing=0.1)


def test_numpy_arrays_are_arrays() -> None:
    prior = np.array([0.5, 0.3, 0.2])
    ours = F.cross_entropy(LOGITS, TARGET, prior=prior, label_smoothing=0.1)  # type: ignore[arg-type]
    theirs = F.cross_entropy(LOGITS, TARGET, prior=torch.tensor(prior), label_smoothing=0.1)
    assert torch.equal(ours, theirs)
