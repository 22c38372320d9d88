"""Every divergence with every treatment of the missing mass, against its definition, in its limits and in the tail."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from divergence_definitions import CELLS, DIVERGENCES, MISSING, divergence_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import smoothloss.functional as F
from smoothloss import distillation, targets
from smoothloss.distillation import Teacher, _student
from smoothloss.distillation.teacher import unchecked
from smoothloss.testing import relative_error

cells = pytest.mark.parametrize(("divergence", "missing"), CELLS)


def make_teacher(
    positions: int, classes: int, slots: int, *, seed: int = 0, rest: str = "given", empty: float = 0.3,
    repeats: bool = False, zeros: float = 0.0, dtype: torch.dtype = torch.float64,
) -> Teacher:  # fmt: skip
    """Return a teacher at random: ragged, with classes that repeat, and with classes of no probability."""
    generator = torch.Generator().manual_seed(seed)
    if repeats:
        indices = torch.randint(classes, (positions, slots), generator=generator)
    else:
        indices = torch.rand(positions, max(classes, slots), generator=generator).argsort(-1)[:, :slots]
        indices = indices.where(indices < classes, -1)
    indices = indices.masked_fill(torch.rand(indices.shape, generator=generator) < empty, -7)
    scores = 2 * torch.randn(positions, slots + 1, generator=generator, dtype=torch.float64)
    scores[:, :-1].masked_fill_(torch.rand(indices.shape, generator=generator) < zeros, -torch.inf)
    scores[:, :-1].masked_fill_(indices < 0, -torch.inf)
    if rest == "nothing":
        scores[:, -1] = -torch.inf
        has_none = ~(scores > -torch.inf).any(-1, keepdim=True)
        scores[:, :-1].masked_fill_(has_none & (indices >= 0), 0.0)
    log_probs = scores.log_softmax(-1).nan_to_num(nan=-torch.inf, neginf=-torch.inf).to(dtype)
    return Teacher(indices, log_probs[:, :-1], None if rest == "unknown" else log_probs[:, -1])


def make_logits(positions: int, classes: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(positions, classes, generator=generator, dtype=torch.float64)).to(dtype)


def make_layer(positions: int, classes: int, width: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = ((positions, width), (classes, width), (classes,))
    hidden, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return hidden, weight, bias


def value_and_gradients(loss: Tensor, leaves: tuple[Tensor, ...], incoming: Tensor) -> tuple[Tensor, ...]:
    return loss.detach(), *torch.autograd.grad(loss, leaves, incoming.to(loss))


def ours(logits: Tensor, teacher: Teacher, incoming: Tensor, **options: Any) -> tuple[Tensor, ...]:
    leaf = logits.detach().clone().requires_grad_()
    return value_and_gradients(distillation.loss(leaf, teacher, **options), (leaf,), incoming)


def theirs(logits: Tensor, teacher: Teacher, incoming: Tensor, **options: Any) -> tuple[Tensor, ...]:
    leaf = logits.detach().double().clone().requires_grad_()
    return value_and_gradients(divergence_of(leaf, teacher, **options), (leaf,), incoming)


# ---- the definition


@st.composite
def problems(draw: st.DrawFn) -> tuple[Teacher, Tensor, dict[str, Any]]:
    classes, positions = draw(st.sampled_from([1, 2, 7, 40])), draw(st.integers(0, 4))
    divergence, missing = draw(st.sampled_from(CELLS))
    teacher = make_teacher(
        positions, classes, draw(st.sampled_from(sorted({0, 1, 3, classes, classes + 2}))),
        seed=draw(st.integers(0, 1000)), rest=draw(st.sampled_from(["given", "unknown", "nothing"])),
        empty=draw(st.sampled_from([0.0, 0.4])), repeats=draw(st.booleans()), zeros=draw(st.sampled_from([0.0, 0.3])),
    )  # fmt: skip
    logits = make_logits(positions, classes, seed=draw(st.integers(0, 1000)))
    options = {
        "divergence": divergence, "missing": missing, "beta": draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])),
        "temperature": draw(st.sampled_from([1.0, 0.5, 3.0])),
    }  # fmt: skip
    return teacher, logits, options


@given(problem=problems())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_cell_is_its_definition(impl: str, problem: tuple[Teacher, Tensor, dict[str, Any]]) -> None:
    teacher, logits, options = problem
    incoming = torch.linspace(-1, 2, len(logits), dtype=torch.float64)
    expected = theirs(logits, teacher, incoming, **options)
    actual = ours(logits, teacher, incoming, reduction="none", impl=impl, **options)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-9, atol=1e-12)
    finite = expected[0].isfinite()  # a gradient of an infinite loss is nobody's
    torch.testing.assert_close(actual[1][finite], expected[1][finite], rtol=1e-9, atol=1e-12)


@cells
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("slots", [4, 11])
def test_to_know_that_no_slot_is_empty_changes_nothing(
    impl: str, divergence: str, missing: str, temperature: float, slots: int
) -> None:
    logits, incoming = make_logits(6, 11), torch.linspace(-1, 2, 6, dtype=torch.float64)
    options = {"divergence": divergence, "missing": missing, "temperature": temperature, "impl": impl}
    for rest in ("given", "unknown"):
        given = make_teacher(6, 11, slots, empty=0.0, zeros=0.3, rest=rest)
        assert given.is_full
        unaware = unchecked(given.indices, given.log_probs, given.log_rest, is_distinct=True)
        for weight in (None, torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5, 1.0])):
            found, expected = (
                ours(logits, teacher, incoming, reduction="none", weight=weight, **options)
                for teacher in (given, unaware)
            )
            finite = expected[0].isfinite()
            torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-13)
            torch.testing.assert_close(found[1][finite], expected[1][finite], rtol=1e-12, atol=1e-13)


@cells
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_linear_version_is_that_of_its_logits(impl: str, divergence: str, missing: str, reduction: str) -> None:
    layer = make_layer(6, 11)
    teacher = make_teacher(6, 11, 4, empty=0.4)
    options = {
        "divergence": divergence, "missing": missing, "temperature": 2.0, "logit_scale": 0.7, "softcap": 5.0,
        "weight": torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0, 3.0]), "reduction": reduction,
    }  # fmt: skip
    incoming = torch.linspace(0.5, 2, 6, dtype=torch.float64) if reduction == "none" else torch.tensor(0.7)
    expected_leaves = tuple(tensor.clone().requires_grad_() for tensor in layer)
    logits = torch.nn.functional.linear(*expected_leaves)
    expected = value_and_gradients(
        distillation.loss(logits, teacher, impl="reference", **options), expected_leaves, incoming
    )
    for more in ({}, {"chunk_bytes": 200}, {"memory": "low"}):
        leaves = tuple(tensor.clone().requires_grad_() for tensor in layer)
        loss = distillation.linear_loss(
            leaves[0], leaves[1], teacher, linear_bias=leaves[2], impl=impl, **options, **more
        )
        torch.testing.assert_close(value_and_gradients(loss, leaves, incoming), expected)


@cells
def test_gradients_are_those_of_finite_differences(impl: str, divergence: str, missing: str) -> None:
    teacher, logits = make_teacher(4, 9, 3), make_logits(4, 9).requires_grad_()
    options = {"divergence": divergence, "missing": missing, "beta": 0.3, "temperature": 1.5, "reduction": "none"}
    assert torch.autograd.gradcheck(lambda z: distillation.loss(z, teacher, impl=impl, **options), logits)
    hidden, weight, bias = (tensor.requires_grad_() for tensor in make_layer(4, 9))
    assert torch.autograd.gradcheck(
        lambda h, w, b: distillation.linear_loss(h, w, teacher, linear_bias=b, impl=impl, **options),
        (hidden, weight, bias),
    )


@cells
def test_the_reference_is_differentiable_twice(divergence: str, missing: str) -> None:
    teacher, logits = make_teacher(3, 6, 3, empty=0.2), make_logits(3, 6).requires_grad_()
    options = {"divergence": divergence, "missing": missing, "beta": 0.3, "temperature": 1.5}
    assert torch.autograd.gradgradcheck(lambda z: distillation.loss(z, teacher, impl="reference", **options), logits)


# ---- reductions, weights, positions without a teacher


@cells
def test_mean_is_over_the_positions_that_have_a_teacher(impl: str, divergence: str, missing: str) -> None:
    teacher, logits = make_teacher(7, 9, 3, empty=0.6), make_logits(7, 9)
    options = {"divergence": divergence, "missing": missing, "impl": impl}
    present = (teacher.indices >= 0).any(-1)
    assert 0 < present.sum() < 7
    each = distillation.loss(logits, teacher, reduction="none", **options)
    assert (each[~present] == 0).all()
    total = distillation.loss(logits, teacher, reduction="sum", **options)
    torch.testing.assert_close(total, each.sum())
    torch.testing.assert_close(distillation.loss(logits, teacher, **options), each.sum() / present.sum())
    parts = (teacher.indices, teacher.log_probs, teacher.log_rest)
    shaped = Teacher(*[part[:6].reshape(2, 3, *part.shape[1:]) for part in parts if part is not None])
    again = distillation.loss(logits[:6].view(2, 3, 9), shaped, reduction="none", **options)
    torch.testing.assert_close(again, each[:6].view(2, 3))


@cells
def test_weights_are_factors_of_the_losses_and_mean_divides_by_them(impl: str, divergence: str, missing: str) -> None:
    teacher, logits = make_teacher(7, 9, 3, empty=0.6), make_logits(7, 9)
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0, 1.0, 0.25])
    options = {"divergence": divergence, "missing": missing, "impl": impl}
    each = distillation.loss(logits, teacher, reduction="none", **options)
    present = (teacher.indices >= 0).any(-1)
    weighted = distillation.loss(logits, teacher, reduction="none", weight=weight, **options)
    torch.testing.assert_close(weighted, each * weight)
    mean = distillation.loss(logits, teacher, weight=weight, **options)
    torch.testing.assert_close(mean, (each * weight).sum() / weight[present].sum())
    ones = distillation.loss(logits, teacher, weight=torch.ones(7), **options)
    torch.testing.assert_close(ones, distillation.loss(logits, teacher, **options))


@cells
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("anything", [math.nan, math.inf, -math.inf])
def test_a_position_without_a_teacher_may_hold_anything(
    impl: str, divergence: str, missing: str, reduction: str, anything: float
) -> None:
    logits = make_logits(4, 9)
    teacher = make_teacher(4, 9, 3, empty=0.0)
    indices = teacher.indices.clone()
    indices[1] = -1
    teacher = Teacher(indices, teacher.log_probs, teacher.log_rest)
    weight = torch.tensor([1.0, 1.0, 1.0, 0.0])
    options = {"divergence": divergence, "missing": missing, "reduction": reduction, "weight": weight}
    options["impl"] = impl
    incoming = torch.ones(4 if reduction == "none" else ())
    expected = ours(logits, teacher, incoming, **options)
    assert (expected[1][[1, 3]] == 0).all()
    logits[1], logits[3] = anything, anything
    actual = ours(logits, teacher, incoming, **options)
    assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])
    hidden, layer, bias = make_layer(4, 9)
    results = []
    for value in (0.5, anything):
        hidden[1], hidden[3] = value, value
        leaves = tuple(tensor.clone().requires_grad_() for tensor in (hidden, layer, bias))
        loss = distillation.linear_loss(leaves[0], leaves[1], teacher, linear_bias=leaves[2], **options)
        results.append(value_and_gradients(loss, leaves, incoming))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert (results[1][1][[1, 3]] == 0).all()


@cells
@pytest.mark.parametrize("slots", [0, 2])
def test_nobody_has_a_teacher(impl: str, divergence: str, missing: str, slots: int) -> None:
    teacher = Teacher(torch.full((3, slots), -1), torch.zeros(3, slots), torch.zeros(3))
    logits = make_logits(3, 5).requires_grad_()
    options = {"divergence": divergence, "missing": missing, "impl": impl}
    mean = distillation.loss(logits, teacher, **options)
    assert mean.isnan() and distillation.loss(logits, teacher, reduction="sum", **options) == 0
    assert (torch.autograd.grad(mean, logits)[0] == 0).all()


# ---- limits


@cells
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("rest", ["given", "unknown", "nothing"])
def test_a_teacher_that_knows_all_classes(
    impl: str, divergence: str, missing: str, temperature: float, rest: str
) -> None:
    logits, q = make_logits(4, 8), make_logits(4, 8, seed=5).log_softmax(-1)
    log_rest = {"given": torch.full((4,), -20.0), "unknown": None, "nothing": torch.full((4,), -math.inf)}[rest]
    order = torch.rand(4, 8, generator=torch.Generator().manual_seed(3)).argsort(-1)
    teacher = Teacher(order, q.gather(-1, order), None if log_rest is None else log_rest.double())
    log_p, log_q = (logits / temperature).log_softmax(-1), (q / temperature).log_softmax(-1)
    log_m = torch.logaddexp(log_q + math.log(0.3), log_p + math.log(0.7))
    full = {
        "forward_kl": (log_q.exp() * (log_q - log_p)).sum(-1),
        "reverse_kl": (log_p.exp() * (log_p - log_q)).sum(-1),
        "jensen_shannon": (0.3 * log_q.exp() * (log_q - log_m) + 0.7 * log_p.exp() * (log_p - log_m)).sum(-1),
    }
    loss = distillation.loss(
        logits, teacher, divergence=divergence, missing=missing, beta=0.3, temperature=temperature, reduction="none",
        impl=impl,
    )  # fmt: skip
    torch.testing.assert_close(loss, temperature**2 * full[divergence])


@cells
def test_one_class(impl: str, divergence: str, missing: str) -> None:
    for log_rest in (None, torch.tensor([-3.0]), torch.tensor([-math.inf])):
        teacher = Teacher(torch.tensor([[0]]), torch.tensor([[0.0 if log_rest is None else -0.06]]), log_rest)
        logits = torch.tensor([[2.5]], requires_grad=True)
        loss = distillation.loss(logits, teacher, divergence=divergence, missing=missing, impl=impl)
        q = 1.0 if log_rest is None or missing == "renormalize" else math.exp(-0.06)
        m = (1 + q) / 2
        expected = {
            "forward_kl": q * math.log(q), "reverse_kl": -math.log(q),
            "jensen_shannon": q * math.log(q / m) / 2 - math.log(m) / 2,
        }  # fmt: skip
        assert loss.item() == pytest.approx(expected[divergence], abs=2e-7)
        loss.backward()
        torch.testing.assert_close(logits.grad, torch.zeros(1, 1), rtol=0, atol=1e-7)


@cells
def test_classes_that_a_side_rules_out(impl: str, divergence: str, missing: str) -> None:
    """A class that both rule out adds nothing; one that the weighing side alone has is infinite."""
    logits = torch.tensor([[1.0, -math.inf, 0.5, -math.inf, 0.0], [1.0, -math.inf, 0.5, -math.inf, 0.0]]).double()
    log_probs = torch.tensor([[0.6, 0.0, 0.3], [0.5, 0.3, 0.1]]).double().log()
    teacher = Teacher(torch.tensor([[0, 1, 2], [0, 1, 2]]), log_probs, torch.tensor([0.1, 0.1]).double().log())
    options = {"divergence": divergence, "missing": missing}
    leaf = logits.clone().requires_grad_()
    loss = distillation.loss(leaf, teacher, reduction="none", impl=impl, **options)
    expected = divergence_of(logits, teacher, **options)
    torch.testing.assert_close(loss, expected)
    spreads = divergence == "forward_kl" and missing == "uniform"  # over classes that the student rules out
    assert loss.isfinite().tolist() == [not spreads, divergence != "forward_kl"]
    if loss[0].isfinite():
        grad = torch.autograd.grad(loss[0], leaf)[0]
        torch.testing.assert_close(grad[0], theirs(logits, teacher, torch.tensor([1.0, 0.0]), **options)[1][0])
        assert (grad[0, [1, 3]] == 0).all()


@pytest.mark.parametrize("missing", ["bucket", "uniform"])
def test_a_teacher_of_draws_is_infinitely_far_the_other_way(impl: str, missing: str) -> None:
    teacher = Teacher.sample(make_logits(3, 50), 4, generator=torch.Generator().manual_seed(0))
    logits = make_logits(3, 50)
    reverse = distillation.loss(logits, teacher, divergence="reverse_kl", missing=missing, impl=impl)
    assert reverse == math.inf
    forward = distillation.loss(logits, teacher, missing=missing, impl=impl)
    dense = targets.entries(teacher.indices, teacher.log_probs.exp())
    torch.testing.assert_close(forward, F.cross_entropy(logits, dense, kl=True, impl=impl))


def test_a_rest_that_is_not_known_is_at_least_one_rounding(impl: str) -> None:
    """Log-probabilities in float32 that add up to 1, or a little more: they cannot say that nothing is left."""
    log_probs = torch.tensor([[0.75, 0.25], [0.75, 0.2500001]]).log()
    teacher, logits = Teacher(torch.tensor([[0, 1], [2, 3]]), log_probs), make_logits(2, 6, dtype=torch.float32)
    for divergence in DIVERGENCES:
        loss = distillation.loss(logits, teacher, divergence=divergence, reduction="none", impl=impl)
        given = Teacher(teacher.indices, log_probs, torch.full((2,), torch.finfo(torch.float32).eps).log())
        torch.testing.assert_close(
            loss, distillation.loss(logits, given, divergence=divergence, reduction="none", impl=impl)
        )


@cells
def test_a_student_that_rules_out_all_that_the_teacher_knows(impl: str, divergence: str, missing: str) -> None:
    logits = torch.tensor([[-math.inf, -math.inf, 0.5, 1.0]], requires_grad=True)
    teacher = Teacher(torch.tensor([[0, -1]]), torch.tensor([[0.5, 0.0]]).log(), torch.tensor([0.5]).log())
    options = {"divergence": divergence, "missing": missing, "impl": impl}
    loss = distillation.loss(logits, teacher, **options)
    if divergence == "forward_kl":
        assert loss == math.inf
        return
    (grad,) = torch.autograd.grad(loss, logits)
    assert loss.isfinite() and grad.isfinite().all() and (grad[0, :2] == 0).all()
    if missing == "renormalize":
        assert loss == 0  # shares of nothing are equal


# ---- relations between the cells


@pytest.mark.parametrize("missing", MISSING)
def test_forward_kl_that_is_a_target(impl: str, missing: str) -> None:
    if missing == "bucket":
        return
    teacher, logits = make_teacher(6, 20, 4, rest="unknown"), make_logits(6, 20)
    for temperature in (1.0, 2.0):
        target = targets.top_k(teacher.indices, teacher.log_probs, temperature=temperature, missing=missing)
        expected = F.cross_entropy(logits, target, logit_scale=1 / temperature, kl=True, impl=impl)
        loss = distillation.loss(logits, teacher, missing=missing, temperature=temperature, impl=impl)
        torch.testing.assert_close(loss, temperature**2 * expected)


@pytest.mark.parametrize("missing", ["uniform", "renormalize", "drop"])
def test_forward_kl_that_is_a_target_is_one_call_of_three_products(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(*arguments: object, **options: object) -> None:
        raise AssertionError("token statistics were asked for")

    monkeypatch.setattr(_student, "evaluate_statistics", nobody)
    calls, call = [], _student.evaluate
    monkeypatch.setattr(_student, "evaluate", lambda *a: calls.append(a[2].reduction) or call(*a))
    hidden, weight, bias = (tensor.requires_grad_() for tensor in make_layer(4, 9))
    distillation.linear_loss(hidden, weight, make_teacher(4, 9, 3), linear_bias=bias, missing=missing).backward()
    assert calls == ["sum"], "a reduced loss makes its gradients in the forward: three products, and no fourth"


@pytest.mark.parametrize("beta", [0.2, 0.5])
@pytest.mark.parametrize("missing", MISSING)
def test_jensen_shannon_of_exchanged_sides(missing: str, beta: float) -> None:
    """JS(beta) of q and p is JS(1 - beta) of p and q."""
    p, q = make_logits(5, 7).log_softmax(-1), make_logits(5, 7, seed=9).log_softmax(-1)
    everything = torch.arange(7).expand(5, 7)
    there, back = (
        distillation.loss(logits, Teacher(everything, known, torch.full((5,), -math.inf).double()),
                          divergence="jensen_shannon", missing=missing, beta=share)
        for logits, known, share in ((p, q, beta), (q, p, 1 - beta))
    )  # fmt: skip
    torch.testing.assert_close(there, back)


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("missing", MISSING)
def test_jensen_shannon_at_its_ends_is_the_direction_it_takes_there(impl: str, missing: str, beta: float) -> None:
    teacher, logits = make_teacher(5, 12, 4), make_logits(5, 12)
    end = distillation.loss(logits, teacher, divergence="jensen_shannon", missing=missing, beta=beta, impl=impl)
    kl = distillation.loss(
        logits, teacher, divergence="reverse_kl" if beta else "forward_kl", missing=missing, impl=impl
    )
    if (missing, beta) == ("renormalize", 0.0):  # of a student that is divided out too
        log_p = F.token_statistics(logits, teacher.indices).log_prob.where(teacher.indices >= 0, -math.inf)
        kl = kl + log_p.logsumexp(-1).where((teacher.indices >= 0).any(-1), 0.0).sum() / 5
    torch.testing.assert_close(end, kl)
    if missing != "drop":
        near = 1 - 1e-6 if beta else 1e-6
        js = distillation.loss(logits, teacher, divergence="jensen_shannon", missing=missing, beta=near)
        torch.testing.assert_close(js / 1e-6, end, rtol=1e-4, atol=0)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_what_is_put_together_differs_no_more_than_its_parts(divergence: str) -> None:
    """One class for the rest tells less than all of its classes (the log-sum inequality), and no less than nothing."""
    logits, q = make_logits(50, 12), make_logits(50, 12, seed=4).log_softmax(-1)
    everything = Teacher(torch.arange(12).expand(50, 12), q, torch.full((50,), -math.inf).double())
    options = {"divergence": divergence, "reduction": "none"}
    values, indices = q.topk(5)
    rest = q.scatter(-1, indices, -math.inf).logsumexp(-1)
    bucket = distillation.loss(logits, Teacher(indices, values, rest), **options)
    full = distillation.loss(logits, everything, **options)
    assert (bucket <= full + 1e-12).all() and (bucket >= 0).all() and (bucket < full).any()


@cells
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_student_that_says_the_same_is_at_the_least(divergence: str, missing: str, temperature: float) -> None:
    q = make_logits(4, 9, seed=3)
    if missing == "uniform":  # the student that a teacher's spread rest describes
        q[:, 5:] = q[:, 5:6]
        inside = q.log_softmax(-1)[:, :5].exp() - q.log_softmax(-1)[:, 5:6].exp()
        teacher = Teacher(torch.arange(5).expand(4, 5), inside.abs().log(), (1 - inside.abs().sum(-1)).log())
        logits = torch.cat((inside.abs(), torch.zeros(4, 4).double()), -1)
        logits = (logits + (1 - inside.abs().sum(-1, keepdim=True)) / 9).log()
        temperature = 1.0
    else:
        log_q = q.log_softmax(-1)
        teacher = Teacher(torch.arange(5).expand(4, 5), log_q[:, :5], log_q[:, 5:].logsumexp(-1))
        logits = q
    if missing == "bucket":
        temperature = 1.0  # of a rest that is one number nobody knows the temperature
    leaf = logits.clone().requires_grad_()
    options = {"divergence": divergence, "missing": missing, "temperature": temperature, "reduction": "none"}
    loss = distillation.loss(leaf, teacher, **options)
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    zero = torch.zeros_like
    if missing == "drop":
        torch.testing.assert_close(temperature == 1.0, bool((loss.abs() < 1e-12).all()))
        return
    if (divergence, missing) == ("forward_kl", "renormalize"):
        return  # its student is one over all classes
    torch.testing.assert_close(loss, zero(loss), rtol=0, atol=1e-12)
    torch.testing.assert_close(grad, zero(grad), rtol=0, atol=1e-12)


def test_drop_can_be_negative() -> None:
    teacher = Teacher(torch.tensor([[0]]), torch.tensor([[0.2]]).log(), torch.tensor([0.8]).log())
    logits = torch.tensor([[3.0, 0.0, 0.0]])
    assert distillation.loss(logits, teacher, missing="drop") < 0
    assert distillation.loss(logits, teacher, missing="bucket") > 0


@cells
def test_classes_that_repeat_add_up(impl: str, divergence: str, missing: str) -> None:
    indices = torch.tensor([[3, 1, 3, -1, 3, 0], [5, -2, 5, 5, 1, 1]])
    parts = torch.tensor([[0.1, 0.2, 0.15, 0.9, 0.05, 0.3], [0.1, 0.9, 0.2, 0.05, 0.25, 0.1]]).double()
    rest = torch.tensor([0.2, 0.3]).double().log()
    once = Teacher(
        torch.tensor([[3, 1, 0], [5, 1, -1]]), torch.tensor([[0.3, 0.2, 0.3], [0.35, 0.35, 0.0]]).double().log(), rest
    )
    options = {
        "divergence": divergence,
        "missing": missing,
        "temperature": 2.0,
        "impl": impl,
    }
    logits = make_logits(2, 8)
    incoming = torch.ones(())
    actual = ours(logits, Teacher(indices, parts.log(), rest), incoming, **options)
    torch.testing.assert_close(actual, ours(logits, once, incoming, **options))


# ---- the tail


def peaked(rest: float, divergence: str) -> tuple[Tensor, Teacher]:
    """Return logits in float32 of which all but 5 classes hold `rest`, and a teacher of these classes."""
    generator = torch.Generator().manual_seed(7)
    logits = torch.randn(40, 3000, generator=generator)
    logits[:, 5:] += math.log(rest) - logits[:, 5:].logsumexp(-1, keepdim=True)
    logits[:, :5] -= logits[:, :5].logsumexp(-1, keepdim=True)
    at_teacher = 4 * rest if divergence == "forward_kl" else rest / 4
    q = (1 - at_teacher) * torch.randn(40, 5, generator=generator).softmax(-1)
    return logits, Teacher(torch.arange(5).expand(40, 5), q.log(), torch.full((40,), at_teacher).log())


@pytest.mark.parametrize("rest", [1e-3, 1e-5, 1e-7, 1e-9])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_the_rest_is_right_however_small(impl: str, divergence: str, rest: float) -> None:
    """Of a bucket: the gradient of what lies beyond the K classes, relative to itself, in float32.

    Reverse KL's and Jensen-Shannon's is a difference of logarithms of what is left, as float32 can tell them.
    """
    logits, teacher = peaked(rest, divergence)
    incoming = torch.ones(40)
    actual = ours(logits, teacher, incoming, divergence=divergence, reduction="none", impl=impl)
    expected = theirs(logits, teacher, incoming, divergence=divergence, missing="bucket")
    assert relative_error(actual[0], expected[0]) < 1e-6
    rounding = 2 * abs(math.log(rest)) * torch.finfo(torch.float32).eps
    tail = relative_error(actual[1][:, 5:], expected[1][:, 5:])
    assert tail < (1e-6 if divergence == "forward_kl" else rounding)
    assert relative_error(actual[1], expected[1]) < 1e-6
