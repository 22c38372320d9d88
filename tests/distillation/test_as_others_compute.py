"""Divergences as other trainers write them, in plain PyTorch: equal where theirs is accurate, and where it is not.

Named here are verl and VeOmni (a truncated sum), TRL and DistillKit (a bucket of ``log(1 - sum p)``), NeMo-RL (shares
of the K classes, or a constant log-probability for all others).
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import smoothloss.functional as F
from smoothloss import distillation
from smoothloss.distillation import Teacher

N, V, K = 30, 200, 8


def problem() -> tuple[Tensor, Teacher]:
    generator = torch.Generator().manual_seed(0)
    logits, q = 2 * torch.randn(2, N, V, generator=generator)
    values, indices = q.log_softmax(-1).topk(K)
    return logits.requires_grad_(), Teacher(indices, values)


def assert_same(ours: Tensor, theirs: Tensor, logits: Tensor) -> None:
    incoming = torch.linspace(-1, 2, N)
    torch.testing.assert_close(ours, theirs)
    grads = [torch.autograd.grad(loss, logits, incoming)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*grads)


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def between(log_q: Tensor, log_p: Tensor, beta: float) -> Tensor:
    """Return the generalised divergence of trainers: KL(q || p) at 0, KL(p || q) at 1."""
    if beta in (0.0, 1.0):
        return kl(log_p, log_q) if beta else kl(log_q, log_p)
    log_m = torch.stack((log_q + math.log(beta), log_p + math.log(1 - beta))).logsumexp(0)
    return beta * kl(log_q, log_m) + (1 - beta) * kl(log_p, log_m)


def with_tail(log_probs: Tensor) -> Tensor:
    """Return log-probabilities and the log of what they leave, by subtraction and clamped."""
    total = log_probs.logsumexp(-1, keepdim=True).clamp(max=-1e-7)
    return torch.cat((log_probs, torch.log(-torch.expm1(total))), -1)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_of_all_classes(beta: float, temperature: float) -> None:
    logits, _ = problem()
    q = 2 * torch.randn(N, V, generator=torch.Generator().manual_seed(1))
    teacher = Teacher(torch.arange(V).expand(N, V), q.log_softmax(-1))
    ours = distillation.loss(
        logits, teacher, divergence="jensen_shannon", beta=beta, temperature=temperature, reduction="none"
    )
    theirs = between((q / temperature).log_softmax(-1), (logits / temperature).log_softmax(-1), beta)
    assert_same(ours, temperature**2 * theirs, logits)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_a_bucket_of_what_is_left(beta: float) -> None:
    logits, teacher = problem()
    log_p = logits.log_softmax(-1).gather(-1, teacher.indices)
    ours = distillation.loss(logits, teacher, divergence="jensen_shannon", beta=beta, reduction="none")
    assert_same(ours, between(with_tail(teacher.log_probs), with_tail(log_p), beta), logits)


def test_a_bucket_at_a_temperature() -> None:
    logits, teacher = problem()
    log_q = (with_tail(teacher.log_probs) / 2).log_softmax(-1)
    log_p = (logits / 2).log_softmax(-1).gather(-1, teacher.indices)
    ours = distillation.loss(logits, teacher, temperature=2.0, reduction="none")
    assert_same(ours, 4 * kl(log_q, with_tail(log_p)), logits)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_shares_of_the_known_classes_on_both_sides(beta: float) -> None:
    logits, teacher = problem()
    log_p = logits.gather(-1, teacher.indices).log_softmax(-1)
    ours = distillation.loss(
        logits, teacher, divergence="jensen_shannon", beta=beta, missing="renormalize", reduction="none"
    )
    assert_same(ours, between(teacher.log_probs.log_softmax(-1), log_p, beta), logits)


def test_shares_of_the_known_classes_on_the_side_of_the_teacher() -> None:
    logits, teacher = problem()
    log_p = logits.log_softmax(-1).gather(-1, teacher.indices)
    ours = distillation.loss(logits, teacher, missing="renormalize", reduction="none")
    assert_same(ours, kl(teacher.log_probs.log_softmax(-1), log_p), logits)


def test_a_truncated_sum_with_a_dense_gradient() -> None:
    """The gradient is Q p - q: also where the teacher says nothing."""
    logits, teacher = problem()
    log_p = logits.log_softmax(-1).gather(-1, teacher.indices)
    ours = distillation.loss(logits, teacher, missing="drop", reduction="none")
    assert_same(ours, kl(teacher.log_probs, log_p), logits)
    (grad,) = torch.autograd.grad(distillation.loss(logits, teacher, missing="drop", reduction="sum"), logits)
    q = torch.zeros(N, V).scatter(-1, teacher.indices, teacher.log_probs.exp())
    torch.testing.assert_close(grad, q.sum(-1, keepdim=True) * logits.detach().softmax(-1) - q)


def test_a_floor_of_log_probabilities_is_built_from_the_statistics() -> None:
    logits, teacher = problem()
    floor = -4.0
    log_q = teacher.log_probs.clamp_min(floor)
    ours = kl(log_q, F.token_statistics(logits, teacher.indices).log_prob.clamp_min(floor))
    assert_same(ours, kl(log_q, logits.log_softmax(-1).gather(-1, teacher.indices).clamp_min(floor)), logits)


def test_a_constant_for_all_other_classes() -> None:
    """Reverse KL whose teacher gives every other class e^-20, as "uniform" with that much left."""
    logits, teacher = problem()
    log_q, constant = teacher.log_probs.log_softmax(-1), -20.0
    log_p = logits.log_softmax(-1)
    known = log_p.gather(-1, teacher.indices)
    rest = 1 - known.exp().sum(-1)
    theirs = (log_p.exp() * log_p).sum(-1) - (known.exp() * log_q).sum(-1) - constant * rest
    spread = Teacher(teacher.indices, log_q, torch.full((N,), constant + math.log(V)))
    ours = distillation.loss(logits, spread, divergence="reverse_kl", missing="uniform", reduction="none")
    assert_same(ours, theirs, logits)


@pytest.mark.parametrize("scale", [0.0, 100.0, -100.0])
def test_equal_logits_of_any_size(scale: float) -> None:
    _, teacher = problem()
    logits = torch.full((N, V), scale)
    for missing in ("bucket", "renormalize"):
        loss = distillation.loss(logits, teacher, missing=missing, reduction="none")
        assert loss.isfinite().all() and (loss > 0).all()
    torch.testing.assert_close(loss, kl(teacher.log_probs.log_softmax(-1), torch.full((N, K), -math.log(V))))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_more_draws_than_classes(beta: float) -> None:
    """Sixty-four slots of eight classes, most of them again and again."""
    indices = torch.randint(8, (N, 64), generator=torch.Generator().manual_seed(2))
    log_q = torch.randn(N, 64, generator=torch.Generator().manual_seed(3)).log_softmax(-1)
    logits = torch.randn(N, 8, generator=torch.Generator().manual_seed(4), requires_grad=True)
    q = torch.zeros(N, 8).scatter_add(-1, indices, log_q.exp())
    ours = distillation.loss(logits, Teacher(indices, log_q), divergence="jensen_shannon", beta=beta, reduction="none")
    assert_same(ours, between(q.log(), logits.log_softmax(-1), beta), logits)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_a_subtracted_rest_is_wrong_where_ours_is_right(beta: float) -> None:
    """Of a rest of 1e-7 the gradient by subtraction errs by a tenth and more, or is not finite."""
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(N, 3000, generator=generator)
    logits[:, K:] += math.log(1e-7) - logits[:, K:].logsumexp(-1, keepdim=True)
    logits[:, :K] -= logits[:, :K].logsumexp(-1, keepdim=True)
    q, log_rest = (1 - 4e-7) * torch.randn(N, K, generator=generator).softmax(-1), torch.full((N,), 4e-7).log()
    indices = torch.arange(K).expand(N, K)

    def gradient(dtype: torch.dtype, loss: str) -> Tensor:
        z = logits.to(dtype).requires_grad_()
        if loss == "ours":
            teacher = Teacher(indices, q.log(), log_rest)
            value = distillation.loss(z, teacher, divergence="jensen_shannon", beta=beta, reduction="sum")
        else:
            log_p = z.log_softmax(-1)
            both = torch.cat((log_p[:, :K], log_p[:, K:].logsumexp(-1, keepdim=True)), -1)
            log_q = torch.cat((q.to(dtype).log(), log_rest.to(dtype).unsqueeze(-1)), -1)
            value = between(log_q, both if loss == "exact" else with_tail(log_p[:, :K]), beta).sum()
        return torch.autograd.grad(value, z)[0][:, K:].double()

    exact = gradient(torch.float64, "exact")
    error = {loss: float((gradient(torch.float32, loss) - exact).norm() / exact.norm()) for loss in ("ours", "theirs")}
    assert error["ours"] < 1e-6
    assert not error["theirs"] < 0.1
