"""The modules compute what the functions compute, and check their options when they are given."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from smoothloss import distillation
from smoothloss.distillation import DistillationLoss, LinearDistillationLoss, Teacher

OPTIONS: dict[str, Any] = {
    "divergence": "jensen_shannon", "beta": 0.3, "temperature": 2.0, "missing": "drop", "logit_scale": 0.5,
    "softcap": 4.0, "reduction": "sum", "impl": "reference",
}  # fmt: skip
PAIRS = [(DistillationLoss, distillation.loss), (LinearDistillationLoss, distillation.linear_loss)]


def inputs() -> tuple[torch.Tensor, torch.Tensor, Teacher, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, q = (torch.randn(shape, generator=generator) for shape in ((2, 3, 4), (9, 4), (2, 3, 9)))
    return hidden, weight, Teacher.from_logits(q, 3), torch.rand(9, generator=generator), torch.rand(2, 3)


def test_module_and_function_agree() -> None:
    hidden, weight, teacher, bias, factors = inputs()
    logits = torch.nn.functional.linear(hidden, weight, bias)
    for options in ({}, OPTIONS):
        expected = distillation.loss(logits, teacher, weight=factors, **options)
        torch.testing.assert_close(DistillationLoss(**options)(logits, teacher, factors), expected)
        module = LinearDistillationLoss(**options, chunk_bytes=256, memory="low")
        torch.testing.assert_close(module(hidden, weight, teacher, bias, factors), expected)


@pytest.mark.parametrize(("module", "function"), PAIRS)
def test_a_module_has_the_options_of_its_function(module: type, function: Any) -> None:
    theirs, ours = inspect.signature(function).parameters, inspect.signature(module).parameters
    keywords = [name for name, each in theirs.items() if each.kind is each.KEYWORD_ONLY]
    assert list(ours) == [name for name in keywords if name not in ("weight", "linear_bias")]
    assert all(ours[name].default == theirs[name].default for name in ours)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("divergence", "kl", "divergence: got 'kl'"), ("beta", 2.0, "beta: got 2"),
        ("missing", None, "missing: got None"), ("temperature", -1.0, "temperature: got -1"),
        ("reduction", "avg", "reduction: got 'avg'"), ("impl", "gpu", "impl: got 'gpu'"),
        ("softcap", 0, "softcap: got 0"), ("logit_scale", -1, "logit_scale: got -1"),
    ],
)  # fmt: skip
def test_options_are_checked_at_construction(option: str, value: object, message: str) -> None:
    for module, _ in PAIRS:
        with pytest.raises(ValueError, match=f"^{message}"):
            module(**{option: value})
    for wrong, text in (({"chunk_bytes": 0}, "chunk_bytes: got 0"), ({"memory": "x"}, "memory: got 'x'")):
        with pytest.raises(ValueError, match=f"^{text}"):
            LinearDistillationLoss(**wrong)


def test_repr_names_what_is_set() -> None:
    assert "divergence='reverse_kl'" in repr(LinearDistillationLoss(divergence="reverse_kl"))
