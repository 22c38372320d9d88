"""The divergences from their definition, one position and one class after another, in the dtype of the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from smoothloss.distillation import Teacher

DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon")
MISSING = ("bucket", "uniform", "renormalize", "drop")
CELLS = [(divergence, missing) for divergence in DIVERGENCES for missing in MISSING]


def divergence_of(
    logits: Tensor, teacher: Teacher, divergence: str, missing: str, *, beta: float = 0.5, temperature: float = 1.0
) -> Tensor:
    """Return the loss of each of the positions of logits ``(N, V)``, ``(N,)``; differentiable."""
    losses = []
    for number, z in enumerate(logits):
        known = classes_of(teacher, number)
        if known:
            pairs = compared(z / temperature, known, rest_of(teacher, number, known), missing, temperature, divergence)
            losses.append(between(*pairs, divergence, beta) * temperature**2)
        else:
            losses.append((0 * z.nan_to_num(0.0, 0.0, 0.0)).sum())
    return torch.stack(losses) if losses else logits.sum(-1)


def classes_of(teacher: Teacher, number: int) -> dict[int, float]:
    """Return the probability of each class that the teacher knows."""
    known: dict[int, float] = {}
    log_probs = teacher.log_probs[number].double()
    for index, log_prob in zip(teacher.indices[number].tolist(), log_probs, strict=True):
        if index >= 0:
            known[index] = known.get(index, 0.0) + float(log_prob.exp())
    return known


def rest_of(teacher: Teacher, number: int, known: dict[int, float]) -> float:
    """Return what is left."""
    if teacher.log_rest is not None:
        return float(teacher.log_rest[number].double().exp())
    return max(1.0 - sum(known.values()), torch.finfo(teacher.log_probs.dtype).eps)


def compared(
    z: Tensor, known: dict[int, float], rest: float, missing: str, temperature: float, divergence: str
) -> tuple[Tensor, Tensor]:
    """Return the probabilities that are compared: the teacher's and the student's, ``(C,)``."""
    num_classes, inside = len(z), sorted(known)
    outside = [number for number in range(num_classes) if number not in known]
    p, q = z.softmax(-1), torch.tensor([known[number] for number in inside], dtype=z.dtype)
    rest = rest if outside else 0.0
    total = q.sum()
    if missing == "bucket":
        bucket, at_student = ([rest], p[outside].sum()[None]) if outside else ([], p[:0])
        both = torch.cat((q, q.new_tensor(bucket)))
        both = both if temperature == 1 else normalised(both ** (1 / temperature))
        return both, torch.cat((p[inside], at_student))
    if missing == "renormalize":
        q = normalised(q ** (1 / temperature))
        return (q, p[inside]) if divergence == "forward_kl" else (q, normalised(p[inside]))
    q = q if temperature == 1 else total * normalised(q ** (1 / temperature))
    if missing == "drop":
        return q, p[inside]
    spread = torch.full((num_classes,), rest / num_classes, dtype=z.dtype)
    return spread.index_add(0, torch.tensor(inside), q), p


def between(q: Tensor, p: Tensor, divergence: str, beta: float) -> Tensor:
    """Return what two lists of probabilities differ by."""
    if divergence == "jensen_shannon" and beta in (0.0, 1.0):
        divergence = "reverse_kl" if beta else "forward_kl"
    if divergence == "forward_kl":
        return kl(q, p)
    if divergence == "reverse_kl":
        return kl(p, q)
    m = beta * q + (1 - beta) * p
    return beta * kl(q, m) + (1 - beta) * kl(p, m)


def kl(a: Tensor, b: Tensor) -> Tensor:
    """Return ``sum a log(a / b)`` over the classes where a is not 0."""
    weighs = a > 0
    return (a[weighs] * (a[weighs].log() - b[weighs].log())).sum()


def normalised(values: Tensor) -> Tensor:
    """Return what adds up to one; equal parts of nothing."""
    return values / values.sum() if values.sum() > 0 else torch.full_like(values, 1 / max(len(values), 1))
