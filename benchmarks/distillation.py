"""What a divergence against a teacher's top-k costs, on logits and with the linear layer: forward + backward.

Two yardsticks, both ours: hard labels, which forward KL is to cost as a target (`relative_to_mle`, at most 1.05), and
the token statistics that the others are made of, with a gradient for each (`relative_to_statistics`, at most 1.3).
Extra memory is that beyond inputs and gradients: the scratch of the linear op, and what a top-k needs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import smoothloss.functional as F
from benchmarks import linear, logits
from benchmarks.contest import FLOOR, OURS, PEER, Contender, Settings, Suite, run_suite
from benchmarks.measure import Row
from benchmarks.peers import Step, step
from benchmarks.problems import HARD, Problem, Shape
from smoothloss import distillation
from smoothloss.distillation import Teacher

SLOTS = 64
REST = 0.05
STATISTICS, ENTROPY = "statistics: log-probabilities and rest", "statistics: the same and entropy"
PLAIN = "plain PyTorch, as trainers write it"
DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon")
MISSING = ("bucket", "uniform", "renormalize", "drop")


def name(divergence: str, missing: str) -> str:
    """Return what our rows are called."""
    return f"smoothloss, {divergence}, {missing}"


def yardstick(divergence: str, missing: str) -> str:
    """Return the name of the row that a divergence is held against beside hard labels."""
    return ENTROPY if (divergence, missing) == ("reverse_kl", "uniform") else STATISTICS


def teacher_of(problem: Problem) -> Teacher:
    """Return a teacher of 64 classes a position at random, which leave 5 % to the others."""
    generator = torch.Generator(problem.device).manual_seed(5)
    slots = min(SLOTS, problem.shape.classes)
    # Strata, so that no class comes twice.
    width = problem.shape.classes // slots
    size = (problem.shape.rows, slots)
    offsets = torch.randint(width, size, device=problem.device, generator=generator)
    indices = torch.arange(slots, device=problem.device) * width + offsets
    q = torch.empty(size, device=problem.device).normal_(generator=generator).softmax(-1) * (1 - REST)
    return Teacher(indices, q.log(), torch.full_like(q[:, 0], REST).log())


def divergence_step(problem: Problem, divergence: str, missing: str) -> Step:
    """Return one of the twelve."""
    teacher = teacher_of(problem)
    function = distillation.loss if problem.kind == "logits" else distillation.linear_loss
    options = {"divergence": divergence, "missing": missing}
    return step(lambda: function(*problem.inputs, teacher, **options), problem.inputs)  # type: ignore[operator]


def hard_step(problem: Problem) -> Step:
    """Return hard labels."""
    return (logits if problem.kind == "logits" else linear).hard(problem)


def statistics_step(problem: Problem, with_entropy: bool) -> Step:
    """Return the token statistics, with a gradient for each of them."""
    teacher = teacher_of(problem)
    function = F.token_statistics if problem.kind == "logits" else F.linear_token_statistics
    weight = torch.randn(teacher.indices.shape, device=problem.device)

    def loss() -> Tensor:
        statistics = function(*problem.inputs, teacher.indices)
        total = (statistics.log_prob * weight).sum() + statistics.log_rest.sum()
        return total + statistics.entropy.sum() if with_entropy else total

    return step(loss, problem.inputs)


def plain_step(problem: Problem, divergence: str) -> Step:
    """Return a bucket of what is left, from all log-probabilities in float32: ``log(1 - sum p)``, clamped."""
    teacher = teacher_of(problem)
    assert teacher.log_rest is not None
    log_q = torch.cat((teacher.log_probs, teacher.log_rest.unsqueeze(-1)), -1)

    def loss() -> Tensor:
        known = problem.logits().float().log_softmax(-1).gather(-1, teacher.indices)
        rest = torch.log(-torch.expm1(known.logsumexp(-1, keepdim=True).clamp(max=-1e-7)))
        log_p = torch.cat((known, rest), -1)
        if divergence == "forward_kl":
            return (log_q.exp() * (log_q - log_p)).sum(-1).mean()
        if divergence == "reverse_kl":
            return (log_p.exp() * (log_p - log_q)).sum(-1).mean()
        log_m = torch.logaddexp(log_q, log_p) - torch.tensor(2.0).log()
        return ((log_q.exp() * (log_q - log_m) + log_p.exp() * (log_p - log_m)) / 2).sum(-1).mean()

    return step(loss, problem.inputs)


def suite(device: torch.device, kind: str) -> Suite:
    """Return the contenders on a device, on "logits" or "linear"."""
    del device
    ours = [
        Contender(logits.name(HARD), OURS, hard_step, HARD),
        Contender(STATISTICS, OURS, lambda p: statistics_step(p, False)),
        Contender(ENTROPY, OURS, lambda p: statistics_step(p, True)),
        *(
            Contender(name(d, m), OURS, lambda p, d=d, m=m: divergence_step(p, d, m))
            for d in DIVERGENCES
            for m in MISSING
        ),
    ]
    peers = [Contender(f"{PLAIN}, {d}, bucket", PEER, lambda p, d=d: plain_step(p, d)) for d in DIVERGENCES]
    if kind == "logits":
        floor = Contender(logits.COPY, FLOOR, logits.copy)
        return Suite("distillation", kind, [*ours, *peers, floor], floor=logits.COPY, floor_factor=1.5)
    floor = Contender(linear.MATMULS, FLOOR, linear.matmuls)
    return Suite("linear_distillation", kind, [*ours, *peers, floor], floor=linear.MATMULS)


def run(kind: str, shapes: list[Shape], dtypes: list[torch.dtype], settings: Settings) -> list[Row]:
    """Run the suite, and put each divergence in relation to both yardsticks."""
    make: Callable[[torch.device], Suite] = lambda device: suite(device, kind)  # noqa: E731
    rows = run_suite(make, shapes, dtypes, settings)
    times = {(row["shape"], row["dtype"], row["what"]): row["ms"] for row in rows if "ms" in row}
    others = {name(d, m): yardstick(d, m) for d in DIVERGENCES for m in MISSING}
    for row in rows:
        at = (row["shape"], row["dtype"])
        if "ms" in row and row["what"] in others:
            for key, what in (("relative_to_mle", logits.name(HARD)), ("relative_to_statistics", others[row["what"]])):
                if (time := times.get((*at, what))) is not None:
                    row[key] = row["ms"] / time
    return rows
