"""What the paper's dense similarity rows cost: Tok with ``tail="exact"`` beside MLE, with the linear layer.

Word vectors of 300 dimensions, targets drawn by Zipf's law, so that a batch has as many distinct tokens as real text.
"""

from __future__ import annotations

import torch

import smoothloss.functional as F
from benchmarks import peers
from benchmarks.contest import FLOOR, OURS, PEER, Contender, Suite
from benchmarks.linear import MATMULS, hard, matmuls
from benchmarks.peers import Step, step
from benchmarks.problems import ALPHA, HARD, SIMILAR, Problem
from smoothloss.similarity import TailMode


def token_smoothing(problem: Problem, tail: TailMode) -> Step:
    """Return Tok with a table of the given tail."""
    table = problem.vocabulary.table(tail)
    return step(
        lambda: F.linear_cross_entropy(*problem.inputs, problem.target, table=table, alpha=ALPHA), problem.inputs
    )


def suite(device: torch.device) -> Suite:
    """Return the contenders, the same on every device."""
    del device
    contenders = [
        Contender("smoothloss, MLE", OURS, hard, HARD, graph=True),
        Contender("smoothloss, Tok, 20 neighbours", OURS, lambda p: token_smoothing(p, "uniform"), graph=True),
        Contender("smoothloss, Tok, exact", OURS, lambda p: token_smoothing(p, "exact"), SIMILAR),
        Contender("dense (V, V) matrix, as the authors compute Tok", PEER, peers.dense_matrix, SIMILAR),
        Contender(MATMULS, FLOOR, matmuls, graph=True),
    ]
    return Suite("exact", "linear", contenders, floor=MATMULS)
