"""The losses as functions: they validate, build the target, and call the primitive.

Every loss is the cross-entropy of ``p = softmax(z)`` against a sparse soft target (see `sparse_cross_entropy`), on
logits ``(..., V)`` or, as ``linear_*``, on hidden states ``(..., D)`` without the logits ever existing as a whole.
The class dimension is the last one.

What each position is to predict is a target (see `smoothloss.targets`): `cross_entropy` and `linear_cross_entropy` take
any. The other functions are short names of what the paper calls a loss: a target and one of these two calls. Losses
that are none of these are built from `token_statistics` and `linear_token_statistics`.

The options, which all of them share, are declared and described in `smoothloss.options`; each signature shows them.

float16 and bfloat16 inputs are computed and accumulated in float32, and their loss is float32. The kernels are
differentiable once, in `input` and the classifier; ``impl="reference"`` any number of times. Memory layout is of no
account: strided, expanded, transposed and overlapping logits give the same numbers.

Source: Elbayad, Besacier, Verbeek, "Token-level and Sequence-level Loss Smoothing for RNN Language Models", ACL 2018.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from smoothloss import options, targets
from smoothloss._evaluate import (
    check_exact,
    check_lazy,
    check_linear,
    check_logits,
    evaluate,
    evaluate_weighted,
    token_target,
)
from smoothloss._statistics import linear_token_statistics, token_statistics
from smoothloss.backends.common import TokenStatistics
from smoothloss.options import LinearOptions, LogitsOptions
from smoothloss.similarity import SimilarityTable
from smoothloss.targets import Target

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "TokenStatistics",
    "cross_entropy",
    "lazy_sequence_cross_entropy",
    "linear_cross_entropy",
    "linear_lazy_sequence_cross_entropy",
    "linear_sequence_cross_entropy",
    "linear_sparse_cross_entropy",
    "linear_token_statistics",
    "sequence_cross_entropy",
    "sparse_cross_entropy",
    "token_statistics",
]


@options.takes(LogitsOptions)
def sparse_cross_entropy(
    input: Tensor,
    indices: Tensor,
    weights: Tensor,
    *,
    uniform: Tensor | None = None,
    **given: Unpack[LogitsOptions],
) -> Tensor:
    r"""Cross-entropy of ``softmax(input)`` against a sparse soft target plus a uniform mass.

    ::

        lse = z.logsumexp(-1)
        loss = (weights * (lse[..., None] - z.gather(-1, indices))).sum(-1) + uniform * (lse - z.mean(-1))
               + z_loss * lse ** 2 - entropy * H(softmax(z))

    Args:
        input: logits ``(..., V)``.
        indices: ``(..., S)`` int32 or int64. An index may repeat: its weights add up. Negative: an empty slot.
        weights: ``(..., S)``, floating, constant for the gradient. A position whose total mass
            ``weights.sum(-1) + uniform`` is 0 is ignored: its loss is 0, its gradient exactly 0, its logits anything.
        uniform: ``(...)`` mass spread evenly over all V classes.
        given: the options, see `smoothloss.options.LogitsOptions`.

    Returns:
        The loss: a scalar, or ``(...)`` for ``reduction="none"``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes that do not fit, an option out of range.
        IndexError: an index >= V (on CUDA only under `smoothloss.debug()`; otherwise it is an empty slot there).
        RuntimeError: `impl` cannot run here.

    Source: the primitive behind Eq. 4-19 of the paper; also offline top-k knowledge distillation.
    """
    call = options.check(given, options.LOGITS)
    check_logits(input)
    return evaluate(input, targets.entries(indices, weights, uniform), call)


@options.takes(LinearOptions)
def linear_sparse_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    indices: Tensor,
    weights: Tensor,
    *,
    linear_bias: Tensor | None = None,
    uniform: Tensor | None = None,
    **given: Unpack[LinearOptions],
) -> Tensor:
    """``sparse_cross_entropy(F.linear(input, linear_weight, linear_bias), ...)`` that never holds the logits.

    Rows go through in chunks whose logits fit `chunk_bytes`. The logits of a chunk and the sum of the weight gradients
    are float32 for 16-bit inputs. "mean" and "sum" make the gradients in the forward, three GEMMs in all.

    Args:
        input: hidden states ``(..., D)``; under autocast cast as `F.linear` would.
        linear_weight: ``(V, D)``.
        linear_bias: ``(V,)``.
        indices, weights, uniform: as in `sparse_cross_entropy`.
        given: the options, see `smoothloss.options.LinearOptions`.

    Returns, raises: as `sparse_cross_entropy`.
    """
    call = options.check(given, options.LINEAR)
    input, linear = check_linear(input, linear_weight, linear_bias, call)
    return evaluate(input, targets.entries(indices, weights, uniform), call, linear)


@options.takes(LogitsOptions)
def cross_entropy(
    input: Tensor,
    target: Tensor | Target,
    *,
    table: SimilarityTable | None = None,
    alpha: float = 0.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    **given: Unpack[LogitsOptions],
) -> Tensor:
    """Cross-entropy against class numbers (MLE), smoothed over similar tokens with a table (Tok), or any target.

    ::

        q = one_hot(target)                                  # without a table: torch's F.cross_entropy
        q = (1 - alpha) * one_hot(target) + alpha * R[target]   # with one, R its rows
        loss = -(q * log_softmax(z, -1)).sum(-1)

    Without a table values, gradients, `ignore_index`, reductions and label smoothing equal
    ``torch.nn.functional.cross_entropy``, but the class dimension is the last one.

    Args:
        input: logits ``(..., V)``.
        target: ``(...)`` int64 or int32 class numbers, or a `Target` of positions ``(...)``.
        table: similarity rows of V tokens; with class numbers alone.
        alpha: share of the similarity row, in [0, 1].
        weight: ``(V,)`` weights of the classes, as torch has them: each class's share of the target, smoothed labels
            included, is multiplied by its weight, and "mean" divides by the sum of the targets' weights.
        ignore_index: positions with this class number are ignored.
        given: the options, see `smoothloss.options.LogitsOptions`.

    Raises: as `sparse_cross_entropy`; ValueError for a table of another vocabulary's size, IndexError for a target
        outside [0, V) other than `ignore_index` (on CUDA only under `smoothloss.debug()`).

    Source: Eq. 4-7 (MLE), Eq. 13 and 16 (Tok).
    """
    call = options.check(given, options.LOGITS)
    check_logits(input)
    soft = token_target(target, table, alpha, ignore_index, call.impl)
    return evaluate(input, soft, call) if weight is None else evaluate_weighted(input, soft, weight, call)


@options.takes(LinearOptions)
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | Target,
    *,
    linear_bias: Tensor | None = None,
    table: SimilarityTable | None = None,
    alpha: float = 0.0,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    **given: Unpack[LinearOptions],
) -> Tensor:
    """``cross_entropy(F.linear(input, linear_weight, linear_bias), target, ...)`` that never holds the logits.

    Args: as `cross_entropy`, with the classifier of `linear_sparse_cross_entropy`.
    """
    call = options.check(given, options.LINEAR)
    input, linear = check_linear(input, linear_weight, linear_bias, call)
    soft = token_target(target, table, alpha, ignore_index, call.impl)
    if weight is not None:
        return evaluate_weighted(input, soft, weight, call, linear)
    return evaluate(input, soft, call, linear)


@options.takes(LogitsOptions)
def lazy_sequence_cross_entropy(
    input: Tensor,
    target: Tensor,
    samples: Tensor,
    sample_weights: Tensor | None = None,
    *,
    alpha: float,
    table: SimilarityTable | None = None,
    token_alpha: float = 0.0,
    ignore_index: int = -100,
    **given: Unpack[LogitsOptions],
) -> Tensor:
    """Sequence-level smoothing on the states of the one teacher-forced forward ("lazy"; with a table lazy Tok-Seq).

    ::

        d(y) = one_hot(y)                                    # or (1 - token_alpha) one_hot(y) + token_alpha R[y]
        q = (1 - alpha) * d(target) + alpha * sum_l sample_weights[l, :, None] * d(samples[l])
        loss = -(q * log_softmax(z, -1)).sum(-1)

    Args:
        input: logits ``(B, T, V)``, teacher-forced on `target`.
        target: ``(B, T)`` ground truth.
        samples: ``(L, B, T)`` sequences of the same lengths, as `smoothloss.sampling.HammingSampler` draws them.
        sample_weights: ``(L, B)`` importance weights (`smoothloss.sampling.importance_weights`), constant for the
            gradient; None for 1/L (stratified sampling).
        alpha: share of the samples, in [0, 1].
        table: similarity rows of V tokens.
        token_alpha: share of the similarity rows, in [0, 1].
        ignore_index: positions of `target` with this value are ignored, in the samples too.
        given: the options, see `smoothloss.options.LogitsOptions`.

    Raises: as `cross_entropy`.

    Source: Eq. 19; with a table Eq. 17 and 19.
    """
    call = options.check(given, options.LOGITS)
    check_logits(input)
    check_lazy(input, samples)
    soft = targets.lazy_sequence(
        target, samples, sample_weights, alpha=alpha, table=table, token_alpha=token_alpha, ignore_index=ignore_index,
        impl=call.impl,
    )  # fmt: skip
    return evaluate(input, soft, call)


@options.takes(LinearOptions)
def linear_lazy_sequence_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    samples: Tensor,
    sample_weights: Tensor | None = None,
    *,
    alpha: float,
    linear_bias: Tensor | None = None,
    table: SimilarityTable | None = None,
    token_alpha: float = 0.0,
    ignore_index: int = -100,
    **given: Unpack[LinearOptions],
) -> Tensor:
    """``lazy_sequence_cross_entropy(F.linear(input, linear_weight, linear_bias), ...)`` without the logits.

    Args: as `lazy_sequence_cross_entropy`, with hidden states ``(B, T, D)`` and the classifier of
        `linear_sparse_cross_entropy`.
    """
    call = options.check(given, options.LINEAR)
    input, linear = check_linear(input, linear_weight, linear_bias, call)
    check_lazy(input, samples)
    soft = targets.lazy_sequence(
        target, samples, sample_weights, alpha=alpha, table=table, token_alpha=token_alpha, ignore_index=ignore_index,
        impl=call.impl,
    )  # fmt: skip
    return evaluate(input, soft, call, linear)


@options.takes(LogitsOptions)
def sequence_cross_entropy(
    input: Tensor,
    target: Tensor,
    samples: Tensor,
    sample_weights: Tensor | None = None,
    *,
    alpha: float,
    table: SimilarityTable | None = None,
    token_alpha: float = 0.0,
    ignore_index: int = -100,
    **given: Unpack[LogitsOptions],
) -> Tensor:
    """Sequence-level smoothing with every sample on its own hidden states (Seq; Tok-Seq with a table).

    ::

        nll(z, y) = -(d(y) * log_softmax(z, -1)).sum(-1)     # d as in lazy_sequence_cross_entropy
        loss = (1 - alpha) * nll(input[0], target) + alpha * sum_l sample_weights[l] * nll(input[1 + l], samples[l])

    With ``alpha=1`` and Hamming samples from the whole vocabulary this is RAML (Norouzi et al. 2016).

    Args:
        input: logits ``(L + 1, B, T, V)``: of the forward on `target`, then of those on each sample.
        target: ``(B, T)`` ground truth.
        samples: ``(L, B, T)``; shorter and longer samples are padded with `ignore_index` to a common T.
        sample_weights: ``(L, B)``, constant for the gradient; None for 1/L.
        alpha, table, token_alpha, ignore_index: as in `lazy_sequence_cross_entropy`.
        given: the options, see `smoothloss.options.LogitsOptions`. ``reduction="mean"`` divides the sum by the number
            of positions of `target` that are not ignored, so that it compares with MLE and the lazy loss (of a sentence
            that is ignored throughout, by that of the positions at which a sample has mass); "none" gives
            ``(L + 1, B, T)``.

    Raises: as `cross_entropy`.

    Source: Eq. 9-12 and 15; with a table Eq. 17.
    """
    call = options.check(given, options.LOGITS)
    check_logits(input)
    check_exact(input, samples)
    soft = targets.sequence(
        target, samples, sample_weights, alpha=alpha, table=table, token_alpha=token_alpha, ignore_index=ignore_index,
        impl=call.impl,
    )  # fmt: skip
    return evaluate(input, soft, call)


@options.takes(LinearOptions)
def linear_sequence_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    samples: Tensor,
    sample_weights: Tensor | None = None,
    *,
    alpha: float,
    linear_bias: Tensor | None = None,
    table: SimilarityTable | None = None,
    token_alpha: float = 0.0,
    ignore_index: int = -100,
    **given: Unpack[LinearOptions],
) -> Tensor:
    """``sequence_cross_entropy(F.linear(input, linear_weight, linear_bias), ...)`` without the logits.

    Args: as `sequence_cross_entropy`, with hidden states ``(L + 1, B, T, D)`` and the classifier of
        `linear_sparse_cross_entropy`.
    """
    call = options.check(given, options.LINEAR)
    input, linear = check_linear(input, linear_weight, linear_bias, call)
    check_exact(input, samples)
    soft = targets.sequence(
        target, samples, sample_weights, alpha=alpha, table=table, token_alpha=token_alpha, ignore_index=ignore_index,
        impl=call.impl,
    )  # fmt: skip
    return evaluate(input, soft, call, linear)
