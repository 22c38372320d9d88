"""Token statistics as functions: they validate, and call the operation (see `smoothloss.functional`)."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from smoothloss._evaluate import check_linear, check_logits, classes_of, implementation, rows_of
from smoothloss._validation import check_choice, check_device, check_group, check_integer, check_local, check_tensor
from smoothloss.backends import IMPLEMENTATIONS, Implementation
from smoothloss.backends.common import OutOfRange, RowOptions, TokenStatistics
from smoothloss.ops import linear_token_statistics as linear_ops
from smoothloss.ops import token_statistics as ops
from smoothloss.ops import vocabulary_parallel_statistics as parallel
from smoothloss.ops.checks import check_index_values, is_debugging
from smoothloss.ops.linear_cross_entropy import Linear
from smoothloss.options import Options
from smoothloss.row_options import check_row_options


def token_statistics(
    input: Tensor,
    indices: Tensor,
    *,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    impl: Implementation = "auto",
    group: Any = None,
) -> TokenStatistics:
    """What other losses are built from: log-probabilities, the rest's, entropy, logsumexp and argmax, in one pass.

    ::

        log_p = z.log_softmax(-1)
        log_prob = log_p.gather(-1, indices)                       # 0 where an index is negative
        log_rest = log_p.scatter(-1, indices, -inf).logsumexp(-1)  # of the classes that no index names
        entropy = -(log_p.exp() * log_p).sum(-1)
        logsumexp = z.logsumexp(-1);  argmax = input.argmax(-1)

    Differentiable in the first four; what is not used costs nothing in the backward. The rest is summed over the rest
    itself, not taken as ``1 - sum p``: its mass and its gradient are right however small it is. Log-probabilities are
    not differences of two returned numbers, and so none of their digits is lost where all logits share a large offset.

    Args:
        input: logits ``(..., V)``.
        indices: ``(..., S)`` int32 or int64; S may be 0. An index may repeat, and counts once in the rest. Negative: an
            empty slot, whose log_prob is 0 and has no gradient.
        logit_scale, softcap, impl, group: see `smoothloss.options`.

    Returns:
        ``log_prob (..., S)``; ``log_rest``, ``entropy`` and ``logsumexp`` ``(...)``, float32 (float64 for float64
        logits); and ``argmax (...)``, the first largest class. A rest of no class has log_rest -inf and no gradient.

    Raises:
        TypeError, ValueError: naming the argument, what was got and what was expected.
        IndexError: an index of V or more (on CUDA, where it is an empty slot, only under `smoothloss.debug()`).
        RuntimeError: `impl` cannot run here.

    Source: the quantities of policy gradients with an entropy bonus (Williams and Peng 1991) and of top-k distillation.
    """
    row, impl, _ = _check_options(logit_scale, softcap, impl, None)
    check_group(group)
    check_logits(input)
    return evaluate(input, indices, Options(row=row, impl=impl, group=group), None)


def linear_token_statistics(
    input: Tensor,
    linear_weight: Tensor,
    indices: Tensor,
    *,
    linear_bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    chunk_bytes: int | None = None,
    impl: Implementation = "auto",
    group: Any = None,
) -> TokenStatistics:
    """``token_statistics(F.linear(input, linear_weight, linear_bias), indices)`` that never holds the logits.

    The backward computes the logits again: four matrix products in all. A position that nothing comes back for may hold
    any hidden state, NaN too.

    Args:
        input: hidden states ``(..., D)``.
        linear_weight: ``(V, D)``.
        indices: ``(..., S)``.
        linear_bias: ``(V,)``.
        logit_scale, softcap, impl, group: see `smoothloss.options`.
        chunk_bytes: size of the scratch for logits and their gradients in bytes; by default 256 MiB on the CPU and
            1.5 GiB on CUDA.

    Returns, raises: as `token_statistics`.
    """
    row, impl, chunk_bytes = _check_options(logit_scale, softcap, impl, chunk_bytes)
    check_group(group)
    how = Options(row=row, impl=impl, chunk_bytes=chunk_bytes, group=group)
    input, linear = check_linear(input, linear_weight, linear_bias, how)
    return evaluate(input, indices, how, linear)


_Checked = tuple[RowOptions, Implementation, int | None]


def _check_options(logit_scale: Any, softcap: Any, impl: Any, chunk_bytes: Any) -> _Checked:
    if torch.compiler.is_compiling():
        return _check(logit_scale, softcap, impl, chunk_bytes)
    try:
        return _remembered(logit_scale, softcap, impl, chunk_bytes)
    except TypeError:  # something that cannot be remembered, which is something that is wrong
        return _check(logit_scale, softcap, impl, chunk_bytes)


def _check(logit_scale: Any, softcap: Any, impl: Any, chunk_bytes: Any) -> _Checked:
    check_choice(impl, "impl", IMPLEMENTATIONS)
    row = check_row_options(logit_scale=logit_scale, softcap=softcap)
    return row, impl, None if chunk_bytes is None else check_integer(chunk_bytes, "chunk_bytes", 1)


# A training run calls with the same options every step.
_remembered = functools.lru_cache(maxsize=256, typed=True)(_check)


def evaluate(input: Tensor, indices: Tensor, options: Options, linear: Linear | None) -> TokenStatistics:
    """Return the statistics of logits, or of hidden states with `linear`, in the shape of the positions."""
    input, split, num_classes = classes_of(input, options, linear)
    row, shape = options.row, input.shape[:-1]
    check_tensor(indices, "indices", floating=False)
    check_local(indices, "indices")
    if indices.dim() != input.dim() or indices.shape[:-1] != shape:
        expected = ", ".join(map(str, (*shape, "S")))
        raise ValueError(f"indices: got shape {tuple(indices.shape)}, expected ({expected}) beside input")
    check_device(indices, "indices", input, "input")
    kind = implementation(input, options.impl)
    if kind == "reference" or split is not None or is_debugging():
        check_index_values(indices, num_classes)
    rows, slots = rows_of(input), rows_of(indices)
    try:
        if split is not None:
            statistics = parallel.statistics(rows, linear, slots, row, kind, split)
        elif linear is None:
            statistics = ops.token_statistics(rows, slots, row, kind)
        else:
            statistics = linear_ops.linear_token_statistics(rows, linear, slots, row, kind)
    except OutOfRange:
        check_index_values(indices, num_classes)  # names the offender as the user gave it
        raise
    if input.dim() == 2:
        return statistics
    log_prob, *of_rows = statistics
    log_rest, entropy, logsumexp, argmax = (values.reshape(shape) for values in of_rows)
    return TokenStatistics(log_prob.reshape(indices.shape), log_rest, entropy, logsumexp, argmax)
