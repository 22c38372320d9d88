"""A prior that a teacher's rest is spread by: against the dense definition, and refused where nothing is spread."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from divergence_definitions import CELLS, classes_of, kl, normalised, rest_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import smoothloss.functional as F
from smoothloss import distillation, targets
from smoothloss.distillation import DistillationLoss, LinearDistillationLoss, Teacher
from smoothloss.testing import assert_error_budget

WHERE: dict[str, Any] = {"divergence": "forward_kl", "missing": "uniform"}


def make_prior(classes: int, seed: int = 0) -> Tensor:
    """Return a distribution over the classes of which some are 0."""
    generator = torch.Generator().manual_seed(seed)
    prior = torch.rand(classes, generator=generator, dtype=torch.float64) ** 4
    prior[torch.rand(classes, generator=generator) < 0.3] = 0
    prior[classes // 2] += 0.1
    return prior / prior.sum()


def make_teacher(positions: int, classes: int, slots: int, *, rest: str, repeats: bool, seed: int = 0) -> Teacher:
    """Return a ragged teacher; some positions may have none."""
    generator = torch.Generator().manual_seed(seed)
    if repeats:
        indices = torch.randint(classes, (positions, slots), generator=generator)
    else:
        indices = torch.rand(positions, max(classes, slots), generator=generator).argsort(-1)[:, :slots]
        indices = indices.where(indices < classes, -1)
    indices = indices.masked_fill(torch.rand(indices.shape, generator=generator) < 0.3, -1)
    scores = 2 * torch.randn(positions, slots + 1, generator=generator, dtype=torch.float64)
    scores[:, :-1].masked_fill_(indices < 0, -torch.inf)
    log_probs = scores.log_softmax(-1)
    return Teacher(indices, log_probs[:, :-1], log_probs[:, -1] if rest == "given" else None)


def definition(logits: Tensor, teacher: Teacher, prior: Tensor, temperature: float = 1.0) -> Tensor:
    """Return ``T^2 KL(q + r prior || p)`` of each position, class by class."""
    losses = []
    for number, z in enumerate(logits):
        known = classes_of(teacher, number)
        if not known:
            losses.append((0 * z).sum())
            continue
        rest = rest_of(teacher, number, known) if len(known) < len(z) else 0.0
        q = torch.tensor(list(known.values()), dtype=z.dtype)
        q = q if temperature == 1 else q.sum() * normalised(q ** (1 / temperature))
        spread = (rest * prior).to(z.dtype).index_add(0, torch.tensor(list(known)), q)
        losses.append(kl(spread, (z / temperature).softmax(-1)) * temperature**2)
    return torch.stack(losses) if losses else logits.sum(-1)


def differentiated(loss: Tensor, leaf: Tensor, incoming: Tensor) -> tuple[Tensor, Tensor]:
    return loss.detach(), torch.autograd.grad(loss, leaf, incoming.to(loss))[0]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Teacher, Tensor, Tensor, float]:
    classes, positions = draw(st.sampled_from([1, 2, 7, 40])), draw(st.integers(0, 4))
    slots = draw(st.sampled_from(sorted({0, 1, 3, classes, classes + 2})))
    seed, rest = draw(st.integers(0, 1000)), draw(st.sampled_from(["given", "unknown"]))
    teacher = make_teacher(positions, classes, slots, rest=rest, repeats=draw(st.booleans()), seed=seed)
    logits = 2 * torch.randn(positions, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return teacher, logits, make_prior(classes, seed), draw(st.sampled_from([1.0, 0.5, 3.0]))


@given(problem=problems(), linear=st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_its_definition(impl: str, problem: tuple[Teacher, Tensor, Tensor, float], linear: bool) -> None:
    teacher, logits, prior, temperature = problem
    incoming = torch.linspace(-1, 2, len(logits), dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    expected = differentiated(definition(leaf, teacher, prior, temperature), leaf, incoming)
    options: dict[str, Any] = {"temperature": temperature, "prior": prior, "reduction": "none", "impl": impl, **WHERE}
    leaf = logits.clone().requires_grad_()
    if linear:
        identity = torch.eye(logits.shape[1], dtype=torch.float64)
        loss = distillation.linear_loss(leaf, identity, teacher, **options)
    else:
        loss = distillation.loss(leaf, teacher, **options)
    torch.testing.assert_close(differentiated(loss, leaf, incoming), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_errs_no_more_than_plain_torch(impl: str, dtype: torch.dtype) -> None:
    teacher, prior = make_teacher(9, 300, 12, rest="given", repeats=False), make_prior(300)
    logits = torch.randn(9, 300, generator=torch.Generator().manual_seed(3)).to(dtype)
    incoming = torch.rand(9, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    leaf = logits.clone().requires_grad_()
    loss = distillation.loss(leaf, teacher, prior=prior, reduction="none", impl=impl, **WHERE)
    found = differentiated(loss, leaf, incoming)
    plain, oracle = (logits.clone().to(to).requires_grad_() for to in (dtype, torch.float64))
    eager = differentiated(definition(plain, teacher, prior), plain, incoming)
    expected = differentiated(definition(oracle, teacher, prior), oracle, incoming)
    for ours, theirs, exact in zip(found, eager, expected, strict=True):
        assert_error_budget(ours, theirs, exact)


def test_an_even_prior_is_none(impl: str) -> None:
    teacher = make_teacher(6, 11, 4, rest="given", repeats=False)
    logits = torch.randn(6, 11, dtype=torch.float64)
    even = torch.full((11,), 1 / 11, dtype=torch.float64)
    losses = [distillation.loss(logits, teacher, prior=prior, impl=impl, **WHERE) for prior in (None, even)]
    torch.testing.assert_close(*losses)


def test_it_is_the_targets_own(impl: str) -> None:
    teacher, prior = Teacher.from_logits(torch.randn(5, 20), 4), make_prior(20)
    logits = torch.randn(5, 20, dtype=torch.float64)
    target = targets.top_k(teacher.indices, teacher.log_probs, missing="uniform")
    expected = F.cross_entropy(logits, target, prior=prior, kl=True, impl=impl)
    found = distillation.loss(logits, teacher, prior=prior, impl=impl, **WHERE)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # float32: the rest is 1 less the others there


@pytest.mark.parametrize(("divergence", "missing"), [cell for cell in CELLS if cell != tuple(WHERE.values())])
def test_it_is_refused_where_nothing_is_spread(divergence: str, missing: str) -> None:
    teacher, prior = make_teacher(2, 7, 3, rest="given", repeats=False), make_prior(7)
    options: dict[str, Any] = {"divergence": divergence, "missing": missing, "prior": prior}
    calls = (
        lambda: distillation.loss(torch.randn(2, 7), teacher, **options),
        lambda: distillation.linear_loss(torch.randn(2, 3), torch.randn(7, 3), teacher, **options),
        lambda: DistillationLoss(**options),
    )
    for call in calls:
        with pytest.raises(ValueError, match=f"^prior: got one beside divergence='{divergence}', missing='{missing}'"):
            call()


def test_a_prior_that_does_not_fit_is_named() -> None:
    teacher = make_teacher(2, 7, 3, rest="given", repeats=False)
    for wrong, message in ((make_prior(8), r"\(8,\)"), (2 * make_prior(7), "sum to 2"), (-make_prior(7), "below 0")):
        with pytest.raises(ValueError, match=f"^prior: got .*{message}"):
            distillation.loss(torch.randn(2, 7), teacher, prior=wrong, **WHERE)


def test_modules_take_it_along() -> None:
    teacher, prior = make_teacher(4, 7, 3, rest="given", repeats=False), make_prior(7)
    hidden, weight = torch.randn(4, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    logits = hidden @ weight.t()
    expected = distillation.loss(logits, teacher, prior=prior, **WHERE)
    module = DistillationLoss(prior=prior, **WHERE)
    torch.testing.assert_close(module(logits, teacher), expected)
    torch.testing.assert_close(LinearDistillationLoss(prior=prior, **WHERE)(hidden, weight, teacher), expected)
    assert module.to(torch.float32).prior.dtype == torch.float32
    assert "prior=(7,)" in repr(module)
    with pytest.raises(ValueError, match="sum to 2"):
        DistillationLoss(prior=2 * prior, **WHERE)
