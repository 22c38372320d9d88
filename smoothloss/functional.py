"""The losses as functions: they validate, build the target, and call the primitive.

Every loss is the cross-entropy of ``p = softmax(z)`` against a sparse soft target (see `sparse_cross_entropy`), on
logits ``(..., V)`` or, as ``linear_*``, on hidden states ``(..., D)`` without the logits ever existing as a whole.
The class dimension is the last one.

Options that all of them share (keyword-only):

* ``label_smoothing`` eps: the share of each target's mass that is spread evenly over all V classes (torch's meaning).
* ``entropy`` gamma: subtracts ``gamma * H(p)``, the entropy over all V classes (Pereyra et al. 2017).
* ``z_loss``: adds ``z_loss * logsumexp(z) ** 2``.
* ``logit_scale``, ``softcap``: ``z = softcap * tanh(logit_scale * input / softcap)``.
* ``kl``: subtracts the target's own entropy, so that the value is ``KL(q || p)``; the gradient stays.
* ``reduction``: "mean" (over the positions whose target has mass; nan when there is none), "sum", "none".
* ``inplace``: the backward may write the gradient over `input`, which must not be used afterwards. A permission, not
  a command: it has no effect under ``torch.compile``, on the reference, or where `input` is not contiguous in memory.
* ``impl``: "reference", "native" (C++, or CUDA C++) or "triton"; a RuntimeError says why where that cannot run. "auto"
  takes the first that can: C++ on the CPU, CUDA C++ and then Triton on NVIDIA GPUs, else the reference.

float16 and bfloat16 inputs are computed and accumulated in float32, and their loss is float32. The kernels are
differentiable once, in `input` and the classifier; ``impl="reference"`` any number of times.

Source: Elbayad, Besacier, Verbeek, "Token-level and Sequence-level Loss Smoothing for RNN Language Models", ACL 2018.
"""

from __future__ import annotations

from torch import Tensor

from smoothloss import _arguments as arguments
from smoothloss._arguments import Memory, SequenceSmoothing
from smoothloss._evaluate import evaluate, evaluate_pair, evaluate_sequence
from smoothloss.backends import Implementation
from smoothloss.similarity import SimilarityTable

__all__ = [
    "cross_entropy",
    "lazy_sequence_cross_entropy",
    "linear_cross_entropy",
    "linear_lazy_sequence_cross_entropy",
    "linear_logsumexp_and_select",
    "linear_sequence_cross_entropy",
    "linear_sparse_cross_entropy",
    "logsumexp_and_select",
    "sequence_cross_entropy",
    "sparse_cross_entropy",
]


def sparse_cross_entropy(
    input: Tensor,
    indices: Tensor,
    weights: Tensor,
    *,
    uniform: Tensor | None = None,
    label_smoothing: float = 0.0,
    entropy: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    kl: bool = False,
    reduction: str = "mean",
    inplace: bool = False,
    impl: Implementation = "auto",
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
        label_smoothing, entropy, z_loss, logit_scale, softcap, kl, reduction, inplace, impl: see the module.

    Returns:
        The loss: a scalar, or ``(...)`` for ``reduction="none"``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes that do not fit, an option out of range.
        IndexError: an index >= V (on CUDA only under `smoothloss.debug()`; otherwise it is an empty slot there).
        RuntimeError: `impl` cannot run here.

    Source: the primitive behind Eq. 4-19 of the paper; also offline top-k knowledge distillation.
    """
    num_classes = arguments.logits(input)
    target = arguments.explicit_target(input, num_classes, indices, weights, uniform)
    call = arguments.call(label_smoothing, entropy, z_loss, logit_scale, softcap, kl, reduction, inplace, impl)
    return evaluate(input, target, None, call)


def linear_sparse_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    indices: Tensor,
    weights: Tensor,
    *,
    linear_bias: Tensor | None = None,
    uniform: Tensor | None = None,
    label_smoothing: float = 0.0,
    entropy: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    kl: bool = False,
    reduction: str = "mean",
    chunk_bytes: int | None = None,
    memory: Memory = "fast",
    impl: Implementation = "auto",
) -> Tensor:
    """``sparse_cross_entropy(F.linear(input, linear_weight, linear_bias), ...)`` that never holds the logits.

    Rows go through in chunks whose logits fit `chunk_bytes`. The logits of a chunk and the sum of the weight gradients
    are float32 for 16-bit inputs. "mean" and "sum" make the gradients in the forward, three GEMMs in all.

    Args:
        input: hidden states ``(..., D)``; under autocast cast as `F.linear` would.
        linear_weight: ``(V, D)``.
        linear_bias: ``(V,)``.
        chunk_bytes: size of the scratch for logits and their gradients in bytes; by default 256 MiB on the CPU and
            1.5 GiB on CUDA.
        memory: "low" computes the logits again in the backward, a slice of the vocabulary at a time: a fourth GEMM,
            and no sum of gradients of the size of `linear_weight` beside the gradient itself. So does
            ``reduction="none"`` always.
        indices, weights, uniform, label_smoothing, entropy, z_loss, logit_scale, softcap, kl, reduction, impl: as in
            `sparse_cross_entropy`.

    Returns, raises: as `sparse_cross_entropy`.
    """
    input, linear = arguments.linear(input, linear_weight, linear_bias, chunk_bytes, memory)
    target = arguments.explicit_target(input, linear.num_classes, indices, weights, uniform)
    call = arguments.call(label_smoothing, entropy, z_loss, logit_scale, softcap, kl, reduction, False, impl)
    return evaluate(input, target, linear, call)


def logsumexp_and_select(input: Tensor, indices: Tensor, *, impl: Implementation = "auto") -> tuple[Tensor, Tensor]:
    """Return ``(input.logsumexp(-1), input.gather(-1, indices))``, differentiable in both, in one pass.

    Other losses are built from this pair: ``lse - selected`` are negative log-probabilities, for example.

    Args:
        input: logits ``(..., V)``.
        indices: ``(..., S)`` int32 or int64; a negative index selects 0.
        impl: see the module.

    Returns:
        ``lse (...)`` and ``selected (..., S)``, float32 (float64 for float64 logits).

    Raises: as `sparse_cross_entropy`.
    """
    arguments.indices(input, arguments.logits(input), indices)
    return evaluate_pair(input, indices, None, impl)


def linear_logsumexp_and_select(
    input: Tensor,
    linear_weight: Tensor,
    indices: Tensor,
    *,
    linear_bias: Tensor | None = None,
    chunk_bytes: int | None = None,
    impl: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """``logsumexp_and_select(F.linear(input, linear_weight, linear_bias), indices)`` that never holds the logits.

    Args:
        input: hidden states ``(..., D)``.
        linear_weight: ``(V, D)``.
        indices: ``(..., S)``.
        linear_bias: ``(V,)``.
        chunk_bytes: as in `linear_sparse_cross_entropy`.
        impl: see the module.

    Returns, raises: as `logsumexp_and_select`.
    """
    input, linear = arguments.linear(input, linear_weight, linear_bias, chunk_bytes)
    arguments.indices(input, linear.num_classes, indices)
    return evaluate_pair(input, indices, linear, impl)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    table: SimilarityTable | None = None,
    alpha: float = 0.0,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    entropy: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    kl: bool = False,
    reduction: str = "mean",
    inplace: bool = False,
    impl: Implementation = "auto",
) -> Tensor:
    """Cross-entropy on class numbers (MLE), smoothed over similar tokens with a table (Tok).

    ::

        q = one_hot(target)                                  # without a table: torch's F.cross_entropy
        q = (1 - alpha) * one_hot(target) + alpha * R[target]   # with one, R its rows
        loss = -(q * log_softmax(z, -1)).sum(-1)

    Without a table values, gradients, `ignore_index`, reductions and label smoothing equal
    ``torch.nn.functional.cross_entropy``, but the class dimension is the last one.

    Args:
        input: logits ``(..., V)``.
        target: ``(...)`` int64 or int32 class numbers.
        table: similarity rows of V tokens.
        alpha: share of the similarity row, in [0, 1].
        ignore_index: positions with this target are ignored.
        label_smoothing, entropy, z_loss, logit_scale, softcap, kl, reduction, inplace, impl: see the module.

    Raises: as `sparse_cross_entropy`; ValueError for a table of another vocabulary's size, IndexError for a target
        outside [0, V) other than `ignore_index` (on CUDA only under `smoothloss.debug()`).

    Source: Eq. 4-7 (MLE), Eq. 13 and 16 (Tok).
    """
    num_classes = arguments.logits(input)
    call = arguments.call(label_smoothing, entropy, z_loss, logit_scale, softcap, kl, reduction, inplace, impl)
    soft = arguments.token_target(input, target, num_classes, table, alpha, ignore_index, impl)
    return evaluate(input, soft, None, call)


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    table: SimilarityTable | None = None,
    alpha: float = 0.0,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    entropy: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    kl: bool = False,
    reduction: str = "mean",
    chunk_bytes: int | None = None,
    memory: Memory = "fast",
    impl: Implementation = "auto",
) -> Tensor:
    """``cross_entropy(F.linear(input, linear_weight, linear_bias), target, ...)`` that never holds the logits.

    Args: as `cross_entropy`, with the classifier of `linear_sparse_cross_entropy`.
    """
    input, linear = arguments.linear(input, linear_weight, linear_bias, chunk_bytes, memory)
    call = arguments.call(label_smoothing, entropy, z_loss, logit_scale, softcap, kl, reduction, False, impl)
    soft = arguments.token_target(input, target, linear.num_classes, table, alpha, ignore_index, impl)
    return evaluate(input, soft, linear, call)


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
    label_smoothing: float = 0.0,
    entropy: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    kl: bool = False,
    reduction: str = "mean",
    inplace: bool = False,
    impl: Implementation = "auto",
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
        label_smoothing, entropy, z_loss, logit_scale, softcap, kl, reduction, inplace, impl: see the module.

    Raises: as `cross_entropy`.

    Source: Eq. 19; with a table Eq. 17 and 19.
    """
    num_classes = arguments.logits(input)
    call = arguments.call(label_smoothing, entropy, z_loss, logit_scale, softcap, kl, reduction, inplace, impl)
    smoothing = SequenceSmoothing(alpha, table, token_alpha, ignore_index, impl)
    soft = arguments.lazy_target(input, target, samples, sample_weights, num_classes, smoothing)
    return evaluate(input, soft, None, call)


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
    label_smoothing: float = 0.0,
    entropy: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    kl: bool = False,
    reduction: str = "mean",
    chunk_bytes: int | None = None,
    memory: Memory = "fast",
    impl: Implementation = "auto",
) -> Tensor:
    """``lazy_sequence_cross_entropy(F.linear(input, linear_weight, linear_bias), ...)`` without the logits.

    Args: as `lazy_sequence_cross_entropy`, with hidden states ``(B, T, D)`` and the classifier of
        `linear_sparse_cross_entropy`.
    """
    input, linear = arguments.linear(input, linear_weight, linear_bias, chunk_bytes, memory)
    call = arguments.call(label_smoothing, entropy, z_loss, logit_scale, softcap, kl, reduction, False, impl)
    smoothing = SequenceSmoothing(alpha, table, token_alpha, ignore_index, impl)
    soft = arguments.lazy_target(input, target, samples, sample_weights, linear.num_classes, smoothing)
    return evaluate(input, soft, linear, call)


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
    label_smoothing: float = 0.0,
    entropy: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    kl: bool = False,
    reduction: str = "mean",
    inplace: bool = False,
    impl: Implementation = "auto",
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
        label_smoothing, entropy, z_loss, logit_scale, softcap, kl, inplace, impl: see the module.
        reduction: "mean" divides the sum by the number of positions of `target` that are not ignored, so that it
            compares with MLE and the lazy loss; "none" gives ``(L + 1, B, T)``.

    Raises: as `cross_entropy`.

    Source: Eq. 9-12 and 15; with a table Eq. 17.
    """
    num_classes = arguments.logits(input)
    call = arguments.call(label_smoothing, entropy, z_loss, logit_scale, softcap, kl, reduction, inplace, impl)
    smoothing = SequenceSmoothing(alpha, table, token_alpha, ignore_index, impl)
    soft = arguments.exact_target(input, target, samples, sample_weights, num_classes, smoothing)
    return evaluate_sequence(input, soft, target != ignore_index, None, call)


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
    label_smoothing: float = 0.0,
    entropy: float = 0.0,
    z_loss: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    kl: bool = False,
    reduction: str = "mean",
    chunk_bytes: int | None = None,
    memory: Memory = "fast",
    impl: Implementation = "auto",
) -> Tensor:
    """``sequence_cross_entropy(F.linear(input, linear_weight, linear_bias), ...)`` without the logits.

    Args: as `sequence_cross_entropy`, with hidden states ``(L + 1, B, T, D)`` and the classifier of
        `linear_sparse_cross_entropy`.
    """
    input, linear = arguments.linear(input, linear_weight, linear_bias, chunk_bytes, memory)
    call = arguments.call(label_smoothing, entropy, z_loss, logit_scale, softcap, kl, reduction, False, impl)
    smoothing = SequenceSmoothing(alpha, table, token_alpha, ignore_index, impl)
    soft = arguments.exact_target(input, target, samples, sample_weights, linear.num_classes, smoothing)
    return evaluate_sequence(input, soft, target != ignore_index, linear, call)
