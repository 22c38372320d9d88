"""What others offer for the same losses, each in a function of its own.

A peer takes a problem and returns a step: a function that runs forward and backward and returns the loss and the
gradients. It raises `NotRunnableError` with the reason where it cannot run.
"""

from __future__ import annotations

import inspect
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from benchmarks.measure import time_once
from benchmarks.problems import ALPHA, POLICY_ENTROPY, TAU, NotRunnableError, Problem

Step = Callable[[], tuple[Tensor, ...]]
Loss = Callable[..., Tensor]

TOP_K_CHUNK = 1024  # rows whose float32 log-probabilities exist at a time


def step(loss: Callable[[], Tensor], inputs: tuple[Tensor, ...]) -> Step:
    """Return forward and backward of `loss` with respect to `inputs`, which the result has as an attribute."""

    def run() -> tuple[Tensor, ...]:
        value = loss()
        return value.detach(), *torch.autograd.grad(value, inputs)

    run.inputs = inputs  # type: ignore[attr-defined]
    return run


# torch


def torch_eager(problem: Problem) -> Step:
    """Return ``F.cross_entropy`` of the logits, hard labels."""
    return step(lambda: F.cross_entropy(problem.logits(), problem.target), problem.inputs)


def torch_compiled(problem: Problem) -> Step:
    """Return ``torch.compile`` of ``F.cross_entropy`` of the logits, hard labels."""
    loss = _linear_loss if problem.kind == "linear" else _logits_loss
    compiled = torch.compile(loss, dynamic=False)
    return step(lambda: compiled(*problem.inputs, problem.target), problem.inputs)


def _logits_loss(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target)


def _linear_loss(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), target)


def torch_probabilities(problem: Problem, entries: int) -> Step:
    """Return ``F.cross_entropy`` with class probabilities ``(N, V)`` that were made before."""
    target = problem.dense(entries)
    return step(lambda: F.cross_entropy(problem.logits(), target), problem.inputs)


def torch_linear(problem: Problem) -> Step:
    """Return ``F.linear_cross_entropy`` without options: the logits exist as a whole."""
    function = _torch_linear_cross_entropy()
    return step(lambda: function(*problem.inputs, problem.target), problem.inputs)


def torch_linear_chunked(problem: Problem) -> Step:
    """Return ``F.linear_cross_entropy`` with its own choice of chunks."""
    function = _torch_linear_cross_entropy()
    options = torch.nn.LinearCrossEntropyOptions()
    return step(lambda: function(*problem.inputs, problem.target, options=options), problem.inputs)


def torch_linear_best(problem: Problem) -> Step:
    """Return ``F.linear_cross_entropy`` with the fastest number of chunks."""
    function = _torch_linear_cross_entropy()
    candidates = {}
    for chunks in (1, 2, 4, 8):
        size = math.ceil(problem.shape.rows / chunks)
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=size)

        def loss(options: Any = options) -> Tensor:
            return function(*problem.inputs, problem.target, options=options)

        candidates[f"{chunks} chunk{'s' * (chunks > 1)}"] = step(loss, problem.inputs)
    return fastest("torch", candidates, problem)


def _torch_linear_cross_entropy() -> Loss:
    function: Loss | None = getattr(F, "linear_cross_entropy", None)
    if function is None:
        raise NotRunnableError(f"torch {torch.__version__} has no linear_cross_entropy (2.13 has)")
    return function


# plain PyTorch


def top_k(problem: Problem, entries: int) -> Step:
    """Return top-k distillation as trainers write it: chunks of float32 log-probabilities, gather, weighted sum.

    With a linear layer each chunk is checkpointed, so that the logits are computed again in the backward.
    """
    indices, weights = problem.sparse[entries]
    indices = indices.long()

    def chunk_loss(part: slice, hidden: Tensor, *weight: Tensor) -> Tensor:
        logits = F.linear(hidden[part], *weight) if weight else hidden[part]
        log_p = logits.float().log_softmax(-1)
        return -(weights[part] * log_p.gather(-1, indices[part])).sum()

    def loss() -> Tensor:
        total = weights.new_zeros(())
        for start in range(0, problem.shape.rows, TOP_K_CHUNK):
            part = slice(start, start + TOP_K_CHUNK)
            if problem.kind == "linear":
                total = total + checkpoint(chunk_loss, part, *problem.inputs, use_reentrant=False)
            else:
                total = total + chunk_loss(part, *problem.inputs)
        return total / problem.shape.rows

    return step(loss, problem.inputs)


def log_softmax(problem: Problem) -> Step:
    """Return log-probability of the target and entropy through ``log_softmax``, as a policy gradient takes them."""
    return step(lambda: _policy_loss(problem.logits(), problem.target), problem.inputs)


def log_softmax_compiled(problem: Problem) -> Step:
    """Return ``torch.compile`` of `log_softmax`."""
    compiled = torch.compile(_policy_loss, dynamic=False)
    return step(lambda: compiled(problem.logits(), problem.target), problem.inputs)


def _policy_loss(logits: Tensor, target: Tensor) -> Tensor:
    log_p = logits.float().log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return -log_p.gather(-1, target[:, None]).mean() - POLICY_ENTROPY * entropy.mean()


def trl_statistics(problem: Problem) -> Step:
    """Return what TRL's trainers compute: ``selective_log_softmax`` and ``entropy_from_logits``."""
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    def loss() -> Tensor:
        logits = problem.logits()
        log_prob = selective_log_softmax(logits, problem.target)
        return -log_prob.mean() - POLICY_ENTROPY * entropy_from_logits(logits).mean()

    return step(loss, problem.inputs)


def dense_matrix(problem: Problem) -> Step:
    """Return Tok as the authors compute it: rows of a dense (V, V) matrix of cosines, softmaxed, times log-softmax."""
    matrix = problem.vocabulary.matrix

    def loss() -> Tensor:
        log_p = problem.logits().log_softmax(-1)
        similarity = ((matrix[problem.target] - 1) / TAU).exp()
        q = (similarity / similarity.sum(-1, keepdim=True)).to(log_p.dtype)
        hard = -log_p.gather(-1, problem.target[:, None])[:, 0]
        return ((1 - ALPHA) * hard - ALPHA * (q * log_p).sum(-1)).mean()

    return step(loss, problem.inputs)


# Liger-Kernel


def liger(problem: Problem) -> Step:
    """Return ``LigerCrossEntropyLoss``, which writes the gradient over the logits: here over a copy of its own."""
    _need_cuda(problem)
    from liger_kernel.transformers import LigerCrossEntropyLoss

    loss = LigerCrossEntropyLoss()
    doomed = problem.inputs[0].detach().clone().requires_grad_()
    return step(lambda: loss(doomed, problem.target), (doomed,))


def liger_linear(problem: Problem) -> Step:
    """Return ``LigerFusedLinearCrossEntropyLoss`` with its default chunks."""
    _need_cuda(problem)
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss()
    hidden, weight = problem.inputs
    return step(lambda: loss(weight, hidden, problem.target), problem.inputs)


def liger_linear_best(problem: Problem) -> Step:
    """Return Liger's fused linear cross-entropy with the chunk size that is fastest here."""
    _need_cuda(problem)
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction as Function

    parameters = list(inspect.signature(Function.forward).parameters.values())[1:]
    if "chunk_mem_const" not in {parameter.name for parameter in parameters}:
        raise NotRunnableError("this liger-kernel cannot be told its chunk size (0.8 can)")
    given = dict(zip(("_input", "weight", "target"), (*problem.inputs, problem.target), strict=True))

    def loss(factor: int) -> Tensor:
        named = given | {"chunk_mem_const": factor}
        return Function.apply(*(named.get(parameter.name, parameter.default) for parameter in parameters))[0]

    most = math.ceil(problem.shape.classes / problem.shape.hidden)
    factors = [factor for factor in (2, 4, 8, 16, 32, 64) if factor < 2 * most]
    candidates = {f"chunk_mem_const {n}": step(lambda n=n: loss(n), problem.inputs) for n in factors}
    return fastest("liger", candidates, problem)


def liger_statistics(problem: Problem) -> Step:
    """Return Liger's fused linear scaled cross-entropy with the entropy; on the CPU its chunks of 512 in PyTorch."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import (
        LigerFusedLinearScaledCrossEntropyFunction as Function,
    )

    def loss() -> Tensor:
        nll, entropy = Function.apply(*problem.inputs, problem.target, return_entropy=True)
        return nll.mean() - POLICY_ENTROPY * entropy.mean()

    return step(loss, problem.inputs)


# Cut Cross-Entropy and QuACK


def cut_cross_entropy(problem: Problem) -> Step:
    """Return Cut Cross-Entropy's kernels, with its default filter of small gradients."""
    _need_cuda(problem)
    if problem.dtype == torch.float32:
        raise NotRunnableError("its kernels are for 16-bit inputs")
    return _cut_cross_entropy(problem, "cce")


def cut_cross_entropy_compiled(problem: Problem) -> Step:
    """Return Cut Cross-Entropy's ``torch.compile`` implementation."""
    return _cut_cross_entropy(problem, "torch_compile")


def _cut_cross_entropy(problem: Problem, impl: str) -> Step:
    from cut_cross_entropy import linear_cross_entropy

    return step(lambda: linear_cross_entropy(*problem.inputs, problem.target, impl=impl), problem.inputs)


def quack(problem: Problem) -> Step:
    """Return QuACK's cross-entropy, for Hopper and later."""
    _need_hopper(problem)
    from quack.cross_entropy import cross_entropy

    return step(lambda: cross_entropy(*problem.inputs, problem.target), problem.inputs)


def quack_linear(problem: Problem) -> Step:
    """Return QuACK's chunked linear cross-entropy with its default chunks."""
    _need_hopper(problem)
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return step(lambda: chunked_linear_cross_entropy(*problem.inputs, problem.target), problem.inputs)


def _need_cuda(problem: Problem) -> None:
    if problem.device.type != "cuda":
        raise NotRunnableError("its kernels need a GPU")


def _need_hopper(problem: Problem) -> None:
    _need_cuda(problem)
    if torch.cuda.get_device_capability(problem.device) < (9, 0):
        raise NotRunnableError("its kernels need Hopper or later")


def fastest(peer: str, candidates: dict[str, Step], problem: Problem) -> Step:
    """Return the fastest of some steps by a few runs of each, tried on the first batch for all of its shape.

    Its attribute `setting` tells which one it is.
    """
    tuned = problem.vocabulary.tuned
    if peer not in tuned:
        runs = 3 if problem.device.type == "cuda" else 1
        times = {}
        for name, candidate in candidates.items():
            candidate()
            times[name] = statistics.median(time_once(candidate, problem.device) for _ in range(runs))
        tuned[peer] = min(times, key=times.__getitem__)
    chosen = candidates[tuned[peer]]
    chosen.setting = tuned[peer]  # type: ignore[attr-defined]
    return chosen
