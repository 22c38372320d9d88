"""Log-probability and entropy, forward + backward: on given logits, and with the linear layer; ours beside the peers.

What a policy-gradient trainer needs of each token, ``-log_prob.mean() - 0.01 entropy.mean()``. The floor of the logits
is that of the suite `logits`; with the linear layer it is four matrix products, since what comes back differs from row
to row: logits, the same once more, and the gradients of the hidden states and of the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

import smoothloss.functional as F
from benchmarks import peers
from benchmarks.contest import FLOOR, OURS, PEER, Contender, Settings, Suite, run_suite
from benchmarks.linear import matmuls
from benchmarks.logits import COPY, copy
from benchmarks.measure import Row
from benchmarks.peers import Step, step
from benchmarks.problems import POLICY, POLICY_ENTROPY, Problem, Shape

LOGITS_OURS, LINEAR_OURS = "smoothloss, log-probability and entropy", "smoothloss, the same with the linear layer"
LOG_SOFTMAX, LINEAR_LOG_SOFTMAX = "torch log_softmax", "torch linear and log_softmax"
FOUR_MATMULS = "floor: four matrix products"


def policy_loss(log_prob: Tensor, entropy: Tensor) -> Tensor:
    """Return the loss of log-probabilities of the tokens and entropies."""
    return -log_prob.mean() - POLICY_ENTROPY * entropy.mean()


def ours(problem: Problem, entries: int = 0) -> Step:
    """Return ours, of the target's class, or of S classes whose log-probabilities are all used, and the rest's."""
    indices = problem.sparse[entries][0] if entries else problem.target.unsqueeze(-1)

    def loss() -> Tensor:
        statistics = (
            F.token_statistics(*problem.inputs, indices)
            if problem.kind == "logits"
            else F.linear_token_statistics(*problem.inputs, indices)
        )
        value = policy_loss(statistics.log_prob, statistics.entropy)
        return value - statistics.log_rest.mean() if entries else value

    return step(loss, problem.inputs)


def logits_suite(device: torch.device) -> Suite:
    """Return the contenders on given logits."""
    del device
    contenders = [
        Contender(LOGITS_OURS, OURS, ours, POLICY, graph=True),
        Contender("smoothloss, S = 64, with the rest and entropy", OURS, lambda p: ours(p, 64), graph=True),
        Contender(LOG_SOFTMAX, PEER, peers.log_softmax, POLICY, graph=True),
        Contender("torch.compile of log_softmax", PEER, peers.log_softmax_compiled, POLICY),
        Contender("TRL", PEER, peers.trl_statistics, POLICY),
        Contender(COPY, FLOOR, copy, graph=True),
    ]
    return Suite("statistics", "logits", contenders, floor=COPY, floor_factor=1.5)


def linear_suite(device: torch.device) -> Suite:
    """Return the contenders with the linear layer."""
    del device
    contenders = [
        Contender(LINEAR_OURS, OURS, ours, POLICY, graph=True),
        Contender(LINEAR_LOG_SOFTMAX, PEER, peers.log_softmax, POLICY, graph=True),
        Contender("Liger, fused linear scaled cross-entropy", PEER, peers.liger_statistics, POLICY),
        Contender(FOUR_MATMULS, FLOOR, lambda p: matmuls(p, logits=2), graph=True),
    ]
    return Suite("statistics", "linear", contenders, floor=FOUR_MATMULS, products=4)


def run(shapes: list[Shape], dtypes: list[torch.dtype], settings: Settings) -> list[Row]:
    """Run both."""
    halved = settings._replace(seconds=settings.seconds / 2)
    return [row for suite in (logits_suite, linear_suite) for row in run_suite(suite, shapes, dtypes, halved)]
