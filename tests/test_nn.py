"""Every module computes what the function of its name computes."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest
import torch

import smoothloss.functional as F
from smoothloss import distillation, nn, targets
from smoothloss.testing import make_sequences, make_table

B, T, V, L = 3, 5, 60, 4
OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.01}


def arguments(name: str) -> tuple[list[torch.Tensor], dict[str, object]]:
    """Return inputs for the module of this name, and its construction arguments."""
    target, samples, omega = make_sequences(B, T, V, L)
    torch.manual_seed(0)
    forwards = (L + 1, *target.shape) if "sequence" in name and "lazy" not in name else tuple(target.shape)
    inputs = [torch.randn(*forwards, 8), torch.randn(V, 8)] if "linear" in name else [torch.randn(*forwards, V)]
    if "sparse" in name:
        indices = samples.movedim(0, -1)
        return [*inputs, indices, torch.rand(indices.shape)], {}
    smoothing: dict[str, object] = {"table": make_table(V), "alpha": 0.5}
    if "sequence" in name:
        return [*inputs, target, samples, omega], smoothing | {"token_alpha": 0.2}
    return [*inputs, target], smoothing


@pytest.mark.parametrize("name", [name for name in F.__all__ if name.endswith("cross_entropy")])
def test_module_and_function_agree(name: str) -> None:
    camel = "".join(part.capitalize() for part in name.split("_")) + "Loss"
    assert camel in nn.__all__
    inputs, options = arguments(name)
    module = getattr(nn, camel)(**options, **OPTIONS)
    torch.testing.assert_close(module(*inputs), getattr(F, name)(*inputs, **options, **OPTIONS))


def test_every_module_has_a_function() -> None:
    for name in nn.__all__:
        function = re.sub(r"(?<!^)(?=[A-Z])", "_", name.removesuffix("Loss")).lower()
        assert function in F.__all__ or function.replace("distillation", "loss") in distillation.__all__


WRONG: dict[str, tuple[object, type[Exception], str]] = {
    "reduction": ("avg", ValueError, "reduction: got 'avg'"),
    "impl": ("gpu", ValueError, "impl: got 'gpu'"),
    "label_smoothing": (-1.0, ValueError, "label_smoothing: got -1"),
    "entropy": ("1", TypeError, "entropy: got '1' .str., expected a number"),
    "z_loss": (torch.ones(1), TypeError, r"z_loss: got tensor\(\[1\.\]\) \(Tensor\), expected a number"),
    "logit_scale": (0, ValueError, "logit_scale: got 0"),
    "softcap": (-1, ValueError, "softcap: got -1"),
    "kl": ("no", TypeError, "kl: got str"),
    "inplace": (1, TypeError, "inplace: got int"),
    "chunk_bytes": (-1, ValueError, "chunk_bytes: got -1"),
    "memory": ("x", ValueError, "memory: got 'x'"),
    "alpha": (2.0, ValueError, "alpha: got 2"),
    "token_alpha": (0.5, ValueError, "token_alpha: got 0.5 without a table"),
    "ignore_index": (None, TypeError, "ignore_index: got None"),
    "table": ({}, TypeError, "table: got dict"),
    "label_smooting": (0.1, TypeError, "label_smooting"),
}


@pytest.mark.parametrize("option", WRONG)
@pytest.mark.parametrize("name", nn.__all__)
def test_options_are_named_and_checked_at_construction(name: str, option: str) -> None:
    module, (value, error, message) = getattr(nn, name), WRONG[option]
    required = {"alpha": 0.5} if "Sequence" in name else {}
    if option not in inspect.signature(module).parameters:
        error, message = TypeError, f"unexpected keyword argument '{option}'"
    with pytest.raises(error, match=message):
        module(**{**required, option: value})
    assert module(**required).training


def test_alpha_needs_a_table() -> None:
    with pytest.raises(ValueError, match=r"alpha: got 0\.1 without a table"):
        nn.CrossEntropyLoss(alpha=0.1)


def test_numpy_numbers_are_numbers() -> None:
    module = nn.LinearCrossEntropyLoss(
        make_table(V), alpha=np.float32(0.5), ignore_index=np.int64(-1), label_smoothing=np.float64(0.1),
        chunk_bytes=np.int32(4096), kl=np.bool_(True),
    )  # fmt: skip
    target, *_ = make_sequences(B, T, V, L)
    hidden, weight = torch.randn(B, T, 8), torch.randn(V, 8)
    expected = F.linear_cross_entropy(
        hidden, weight, target.where(target >= 0, -1), table=make_table(V), alpha=0.5, ignore_index=-1,
        label_smoothing=float(np.float64(0.1)), chunk_bytes=4096, kl=True,
    )  # fmt: skip
    torch.testing.assert_close(module(hidden, weight, target.where(target >= 0, -1)), expected)


def test_class_weights_move_with_the_module() -> None:
    module, target = nn.CrossEntropyLoss(weight=torch.rand(V)), torch.randint(V, (4,))
    logits = torch.randn(4, V)
    expected = torch.nn.functional.cross_entropy(logits, target, weight=module.weight)
    torch.testing.assert_close(module(logits, target), expected)
    assert module.to("meta").weight.device.type == "meta"


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        ([1.0, 2.0], TypeError, "weight: got list, expected a torch.Tensor"),
        (torch.ones(V, dtype=torch.long), TypeError, "weight: got torch.int64, expected a floating-point dtype"),
        (torch.ones(V, 2), ValueError, rf"weight: got shape \({V}, 2\), expected \(V,\)"),
        (torch.ones(V, requires_grad=True), ValueError, "weight: got a tensor that requires grad"),
    ],
)
def test_class_weights_are_checked_at_construction(weight: Any, error: type[Exception], message: str) -> None:
    for module in (nn.CrossEntropyLoss, nn.LinearCrossEntropyLoss):
        with pytest.raises(error, match=message):
            module(weight=weight)
        with pytest.raises(ValueError, match="kl: got True together with weight"):
            module(weight=torch.ones(V), kl=True)


def test_a_module_takes_a_target() -> None:
    target, samples, omega = make_sequences(B, T, V, L)
    logits = torch.randn(B, T, V)
    value = targets.lazy_sequence(target, samples, omega, alpha=0.5)
    torch.testing.assert_close(nn.CrossEntropyLoss()(logits, value), F.cross_entropy(logits, value))


def test_a_module_with_a_table_on_meta_can_be_printed() -> None:
    assert "meta" in repr(nn.CrossEntropyLoss(make_table(V), alpha=0.5).to("meta"))


def test_the_table_moves_with_the_module() -> None:
    module = nn.CrossEntropyLoss(make_table(V), alpha=0.5).to("meta")
    assert module.table is not None
    assert module.table.indices.device.type == "meta"


def test_repr_names_what_is_set() -> None:
    assert "alpha=0.5" in repr(nn.LazySequenceCrossEntropyLoss(alpha=0.5))
    assert "ignore_index=0" in repr(nn.CrossEntropyLoss(ignore_index=0))
