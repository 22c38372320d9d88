"""Linear layer and loss together, forward + backward with both gradients, ours beside the peers.

The floor is the three matrix products, logits, gradient of the hidden states and gradient of the weight, in the dtype
that the op gives its operands, 6 N V D in all.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

import smoothloss.functional as F
from benchmarks import peers
from benchmarks.contest import FLOOR, OURS, PEER, Contender, Suite
from benchmarks.logits import name, other
from benchmarks.peers import Step, step
from benchmarks.problems import HARD, SIMILAR, Problem, soft
from smoothloss.ops.linear_layer import has_fast_gemm

MATMULS = "floor: three matrix products"
LIGER, LIGER_BEST = "Liger, hard labels, default chunks", "Liger, hard labels, its best chunks"
TOP_K = "plain PyTorch top-k, as trainers write it, S = 64"


def hard(problem: Problem, impl: str = "auto") -> Step:
    """Return ours with hard labels."""
    return step(lambda: F.linear_cross_entropy(*problem.inputs, problem.target, impl=impl), problem.inputs)


def sparse(problem: Problem, entries: int) -> Step:
    """Return ours with S entries a row."""
    target = problem.sparse[entries]
    return step(lambda: F.linear_sparse_cross_entropy(*problem.inputs, *target), problem.inputs)


def matmuls(problem: Problem, logits: int = 1) -> Callable[[], object]:
    """Return the three products, in float32 where 16-bit ones are slower, as in the op; the logits several times."""
    dtype = problem.dtype if has_fast_gemm(problem.device.type, problem.dtype) else torch.float32
    hidden, weight = (tensor.detach().to(dtype) for tensor in problem.inputs)
    out = hidden.new_empty(problem.shape.rows, problem.shape.classes)
    d_logits = torch.randn_like(out)
    d_hidden, d_weight = torch.empty_like(hidden), torch.empty_like(weight)

    def run() -> None:
        for _ in range(logits):
            torch.mm(hidden, weight.T, out=out)
        torch.mm(d_logits, weight, out=d_hidden)
        torch.mm(d_logits.T, hidden, out=d_weight)

    return run


def suite(device: torch.device) -> Suite:
    """Return the contenders on a device."""
    ours = [
        Contender(name(HARD), OURS, hard, HARD, graph=True),
        Contender(name(soft(64)), OURS, lambda p: sparse(p, 64), soft(64), graph=True),
    ]
    if device.type == "cuda":

        def others_hard(problem: Problem) -> Step:
            return other(problem, lambda impl: hard(problem, impl))

        ours.append(Contender(name(HARD, "other kernels"), OURS, others_hard, HARD, graph=True))
    others = [
        Contender("torch, hard labels", PEER, peers.torch_eager, HARD, graph=True),
        Contender("torch.compile, hard labels", PEER, peers.torch_compiled),
        Contender("torch linear_cross_entropy", PEER, peers.torch_linear, HARD),
        Contender("torch linear_cross_entropy, default chunks", PEER, peers.torch_linear_chunked, HARD),
        Contender("torch linear_cross_entropy, its best chunks", PEER, peers.torch_linear_best, HARD),
        Contender(LIGER, PEER, peers.liger_linear, HARD),
        Contender(LIGER_BEST, PEER, peers.liger_linear_best, HARD),
        Contender("Cut Cross-Entropy, hard labels", PEER, peers.cut_cross_entropy, HARD),
        Contender("Cut Cross-Entropy, torch.compile", PEER, peers.cut_cross_entropy_compiled),
        Contender("QuACK, hard labels", PEER, peers.quack_linear, HARD),
        Contender("torch, class probabilities", PEER, lambda p: peers.torch_probabilities(p, 64), soft(64)),
        Contender(TOP_K, PEER, lambda p: peers.top_k(p, 64), soft(64)),
        Contender("dense (V, V) matrix, as the authors compute Tok", PEER, peers.dense_matrix, SIMILAR),
    ]
    floors = [Contender(MATMULS, FLOOR, matmuls, graph=True)]
    return Suite("linear", "linear", [*ours, *others, *floors], floor=MATMULS)
