"""Soft targets at hard-label cost? Forward + backward on given logits, ours beside the peers.

The floor is a copy of the logits: the op reads them in the forward, reads them again in the backward and writes the
gradient, 3 N V elements where the copy moves 2 N V. `of_floor` is therefore the share of the bandwidth of ``copy_``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import smoothloss.functional as F
from benchmarks import peers
from benchmarks.contest import FLOOR, OURS, PEER, Contender, Suite
from benchmarks.peers import Step, step
from benchmarks.problems import HARD, SIMILAR, NotRunnableError, Problem, soft
from smoothloss.backends import choose, unavailable

TORCH = "torch, hard labels"
COPY, FRESH_COPY = "floor: copy to an existing buffer", "floor: copy to a fresh buffer"


def name(target: str, *details: str) -> str:
    """Return what our rows are called."""
    return ", ".join(("smoothloss", target, *details))


def hard(problem: Problem, *, inplace: bool = False, impl: str = "auto") -> Step:
    """Return ours with hard labels."""
    logits = _logits(problem, inplace)
    return step(lambda: F.cross_entropy(logits, problem.target, inplace=inplace, impl=impl), (logits,))


def sparse(problem: Problem, entries: int, *, inplace: bool = False, impl: str = "auto") -> Step:
    """Return ours with S entries a row."""
    logits = _logits(problem, inplace)
    target = problem.sparse[entries]
    return step(lambda: F.sparse_cross_entropy(logits, *target, inplace=inplace, impl=impl), (logits,))


def _logits(problem: Problem, inplace: bool) -> Tensor:
    # In place, a run computes on what the last one left, a gradient; the work is the same.
    logits = problem.inputs[0]
    return logits.detach().clone().requires_grad_() if inplace else logits


def other(problem: Problem, make: Callable[[str], Step]) -> Step:
    """Return ours through the GPU implementation that "auto" does not choose.

    Raises:
        NotRunnableError: there is none, or it cannot run.
    """
    if problem.device.type != "cuda":
        raise NotRunnableError("a CPU has one implementation")
    chosen = choose("auto", "cuda", problem.dtype)
    impl = "native" if chosen == "triton" else "triton"
    reason = unavailable(impl, "cuda", problem.dtype)
    if reason is not None:
        raise NotRunnableError(reason)
    made = make(impl)
    made.setting = f"impl={impl!r}"  # type: ignore[attr-defined]
    return made


def copy(problem: Problem) -> Callable[[], object]:
    """Return the copy of the logits into a buffer that is there."""
    logits = problem.inputs[0].detach()
    buffer = torch.empty_like(logits)
    return lambda: buffer.copy_(logits)


def fresh_copy(problem: Problem) -> Callable[[], object]:
    """Return the copy of the logits into new memory."""
    return problem.inputs[0].detach().clone


def suite(device: torch.device) -> Suite:
    """Return the contenders on a device."""
    ours = [
        Contender(name(HARD), OURS, hard, HARD, graph=True),
        *(Contender(name(soft(s)), OURS, lambda p, s=s: sparse(p, s), soft(s), graph=True) for s in (21, 64)),
        Contender(name(HARD, "in place"), OURS, lambda p: hard(p, inplace=True), HARD, graph=True),
        Contender(name(soft(64), "in place"), OURS, lambda p: sparse(p, 64, inplace=True), soft(64), graph=True),
    ]
    if device.type == "cuda":
        ours += [
            Contender(name(HARD, "other kernels"), OURS, lambda p: other(p, lambda i: hard(p, impl=i)), HARD, True),
            Contender(
                name(soft(64), "other kernels"),
                OURS,
                lambda p: other(p, lambda i: sparse(p, 64, impl=i)),
                soft(64),
                True,
            ),
        ]
    others = [
        Contender(TORCH, PEER, peers.torch_eager, HARD, graph=True),
        Contender("torch.compile, hard labels", PEER, peers.torch_compiled),
        Contender("Liger, hard labels, in place", PEER, peers.liger, HARD),
        Contender("QuACK, hard labels", PEER, peers.quack, HARD),
        Contender("torch, class probabilities", PEER, lambda p: peers.torch_probabilities(p, 64), soft(64)),
        Contender("plain PyTorch top-k, as trainers write it, S = 64", PEER, lambda p: peers.top_k(p, 64), soft(64)),
        Contender("dense (V, V) matrix, as the authors compute Tok", PEER, peers.dense_matrix, SIMILAR),
    ]
    floors = [Contender(COPY, FLOOR, copy, graph=True), Contender(FRESH_COPY, FLOOR, fresh_copy)]
    return Suite("logits", "logits", [*ours, *others, *floors], floor=COPY, floor_factor=1.5)
