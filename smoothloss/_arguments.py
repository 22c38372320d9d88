"""From what a user passed to a loss to its checked target, classifier and options. Runs before any kernel."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from smoothloss import targets
from smoothloss._validation import check_device, check_number, check_reduction, check_shape, check_tensor
from smoothloss.backends import Implementation
from smoothloss.backends.common import RowOptions
from smoothloss.ops.checks import check_index_values
from smoothloss.ops.linear_layer import default_chunk_bytes
from smoothloss.similarity import SimilarityTable
from smoothloss.targets import SparseTarget

Memory = Literal["fast", "low"]


class Linear(NamedTuple):
    """The classifier of a linear loss: ``weight (V, D)``, ``bias (V,)`` or None, and how it uses memory."""

    weight: Tensor
    bias: Tensor | None
    chunk_bytes: int
    memory: Memory = "fast"

    @property
    def num_classes(self) -> int:
        """V."""
        return self.weight.shape[0]


class Call(NamedTuple):
    """The options of a call."""

    options: RowOptions
    kl: bool
    reduction: str
    inplace: bool
    impl: Implementation


class SequenceSmoothing(NamedTuple):
    """How a sequence loss smooths."""

    alpha: float
    table: SimilarityTable | None
    token_alpha: float
    ignore_index: int
    impl: Implementation = "auto"


def call(
    label_smoothing: float, entropy: float, z_loss: float, logit_scale: float, softcap: float | None,
    kl: bool, reduction: str, inplace: bool, impl: Implementation,
) -> Call:  # fmt: skip
    """Return the checked options; `inplace` is a permission that compiled code does without."""
    check_reduction(reduction)
    options = RowOptions(
        check_number(label_smoothing, "label_smoothing", 0.0, 1.0),
        check_number(entropy, "entropy"),
        check_number(z_loss, "z_loss"),
        check_number(logit_scale, "logit_scale", 0.0, open_low=True),
        0.0 if softcap is None else check_number(softcap, "softcap", 0.0, open_low=True),
    )
    return Call(options, kl, reduction, inplace and not torch.compiler.is_compiling(), impl)


def logits(input: Tensor) -> int:
    """Check logits ``(..., V)`` and return V."""
    check_tensor(input, "input", floating=True)
    if input.dim() < 1 or input.shape[-1] < 1:
        raise ValueError(f"input: got shape {tuple(input.shape)}, expected (..., V) with V >= 1")
    return input.shape[-1]


def linear(
    input: Tensor, weight: Tensor, bias: Tensor | None, chunk_bytes: int | None, memory: Memory = "fast"
) -> tuple[Tensor, Linear]:
    """Check hidden states and classifier, and cast them as autocast would cast `F.linear`'s."""
    check_tensor(input, "input", floating=True)
    check_tensor(weight, "linear_weight", floating=True)
    check_device(weight, "linear_weight", input, "input")
    if weight.dim() != 2 or weight.shape[0] < 1 or input.dim() == 0 or weight.shape[1] != input.shape[-1]:
        raise ValueError(
            f"linear_weight: got shape {tuple(weight.shape)}, expected (V, D) with D the last dimension of input,"
            f" {tuple(input.shape)}"
        )
    if bias is not None:
        check_tensor(bias, "linear_bias", floating=True)
        check_shape(bias, "linear_bias", (weight.shape[0],), "(V,)")
        check_device(bias, "linear_bias", input, "input")
    if chunk_bytes is None:
        chunk_bytes = default_chunk_bytes(input.device)
    size = int(check_number(chunk_bytes, "chunk_bytes", 1))
    if memory not in ("fast", "low"):
        raise ValueError(f"memory: got {memory!r}, expected 'fast' or 'low'")
    if torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, weight = input.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    elif weight.dtype != input.dtype:
        raise TypeError(f"linear_weight: got {weight.dtype}, expected {input.dtype}, the dtype of input")
    return input, Linear(weight, bias, size, memory)


def indices(input: Tensor, num_classes: int, indices: Tensor) -> None:
    """Check the shape and dtype of ``(..., S)`` indices beside `input`; on the CPU their values too."""
    check_tensor(indices, "indices", floating=False)
    if indices.dim() != input.dim() or indices.shape[:-1] != input.shape[:-1]:
        expected = ", ".join(map(str, (*input.shape[:-1], "S")))
        raise ValueError(f"indices: got shape {tuple(indices.shape)}, expected ({expected}) beside input")
    check_device(indices, "indices", input, "input")
    if not torch.compiler.is_compiling():
        check_index_values(indices, num_classes)


def explicit_target(
    input: Tensor, num_classes: int, index: Tensor, weights: Tensor, uniform: Tensor | None
) -> SparseTarget:
    """Check a target that the user gives as entries."""
    indices(input, num_classes, index)
    _constant(weights, "weights", input, tuple(index.shape), "as indices")
    if uniform is not None:
        _constant(uniform, "uniform", input, tuple(input.shape[:-1]), "one number a position")
    return SparseTarget(index, weights, uniform)


def token_target(
    input: Tensor, target: Tensor, num_classes: int, table: SimilarityTable | None, alpha: float, ignore_index: int,
    impl: Implementation,
) -> SparseTarget:  # fmt: skip
    """Check class numbers and return the target of MLE or Tok."""
    check_number(alpha, "alpha", 0.0, 1.0)
    if table is None and alpha:
        raise ValueError(f"alpha: got {alpha} without a table, expected 0, or table= to smooth over")
    _class_numbers(input, target, num_classes, ignore_index, tuple(input.shape[:-1]), "target")
    _table(table, input, num_classes)
    return targets.token_target(target, table, alpha, ignore_index=ignore_index, impl=impl)


def lazy_target(
    input: Tensor, target: Tensor, samples: Tensor, sample_weights: Tensor | None, num_classes: int,
    smoothing: SequenceSmoothing,
) -> SparseTarget:  # fmt: skip
    """Check sequences and return the target of the lazy sequence losses."""
    if input.dim() != 3:
        raise ValueError(f"input: got shape {tuple(input.shape)}, expected (B, T, V), or (B, T, D) for a linear loss")
    if isinstance(samples, Tensor) and samples.dim() == 3 and samples.shape[-1] != input.shape[-2]:
        raise ValueError(
            f"samples: got shape {tuple(samples.shape)}, expected {(samples.shape[0], *input.shape[:2])}: a lazy loss"
            " scores them on the ground truth's states, position by position; an EditSampler's need an exact loss"
        )
    _sequences(input, target, samples, sample_weights, num_classes, smoothing)
    return targets.lazy_sequence_target(target, samples, sample_weights, **smoothing._asdict())


def exact_target(
    input: Tensor, target: Tensor, samples: Tensor, sample_weights: Tensor | None, num_classes: int,
    smoothing: SequenceSmoothing,
) -> SparseTarget:  # fmt: skip
    """Check sequences and return the target of the exact sequence losses, ``(L + 1, B, T)``."""
    if input.dim() != 4:
        raise ValueError(f"input: got shape {tuple(input.shape)}, expected (L + 1, B, T, V), or D for a linear loss")
    _sequences(input, target, samples, sample_weights, num_classes, smoothing)
    check_shape(input, "input", (samples.shape[0] + 1, *input.shape[1:]), "L + 1 forwards for L samples")
    return targets.sequence_target(target, samples, sample_weights, **smoothing._asdict())


def _constant(value: Tensor, name: str, input: Tensor, shape: tuple[int, ...], meaning: str) -> None:
    check_tensor(value, name, floating=True)
    check_shape(value, name, shape, meaning)
    check_device(value, name, input, "input")
    if value.requires_grad:
        raise ValueError(
            f"{name}: got a tensor that requires grad, expected a constant: detach it, or build the loss from"
            " logsumexp_and_select, which is differentiable in what it selects"
        )


def _class_numbers(
    input: Tensor, target: Tensor, num_classes: int, ignore_index: int, shape: tuple[int, ...], name: str
) -> None:
    check_tensor(target, name, floating=False)
    check_shape(target, name, shape, f"beside input {tuple(input.shape)}")
    check_device(target, name, input, "input")
    if not torch.compiler.is_compiling():
        check_index_values(target, num_classes, name, ignore=ignore_index)


def _table(table: SimilarityTable | None, input: Tensor, num_classes: int) -> None:
    if table is None:
        return
    if not isinstance(table, SimilarityTable):
        raise TypeError(f"table: got {type(table).__name__}, expected a smoothloss.SimilarityTable")
    if table.num_tokens != num_classes:
        raise ValueError(f"table: got a table of {table.num_tokens} tokens, expected {num_classes}, the V of input")
    check_device(table.indices, "table", input, "input")


def _sequences(
    input: Tensor, target: Tensor, samples: Tensor, sample_weights: Tensor | None, num_classes: int,
    smoothing: SequenceSmoothing,
) -> None:  # fmt: skip
    check_number(smoothing.alpha, "alpha", 0.0, 1.0)
    check_number(smoothing.token_alpha, "token_alpha", 0.0, 1.0)
    if smoothing.table is None and smoothing.token_alpha:
        raise ValueError(
            f"token_alpha: got {smoothing.token_alpha} without a table, expected 0, or table= to smooth over"
        )
    _table(smoothing.table, input, num_classes)
    check_tensor(samples, "samples", floating=False)
    if samples.dim() != 3:
        raise ValueError(f"samples: got shape {tuple(samples.shape)}, expected (L, B, T)")
    positions = tuple(input.shape[-3:-1])
    _class_numbers(input, target, num_classes, smoothing.ignore_index, positions, "target")
    _class_numbers(input, samples, num_classes, smoothing.ignore_index, (samples.shape[0], *positions), "samples")
    if sample_weights is not None:
        _constant(sample_weights, "sample_weights", input, tuple(samples.shape[:2]), "(L, B) of samples")
