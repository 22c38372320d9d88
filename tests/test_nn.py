"""Every module computes what the function of its name computes."""

from __future__ import annotations

import re

import pytest
import torch

import smoothloss.functional as F
from smoothloss import nn
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


@pytest.mark.parametrize("name", [name for name in F.__all__ if "select" not in name])
def test_module_and_function_agree(name: str) -> None:
    camel = "".join(part.capitalize() for part in name.split("_")) + "Loss"
    assert camel in nn.__all__
    inputs, options = arguments(name)
    module = getattr(nn, camel)(**options, **OPTIONS)
    torch.testing.assert_close(module(*inputs), getattr(F, name)(*inputs, **options, **OPTIONS))


def test_every_module_has_a_function() -> None:
    for name in nn.__all__:
        function = re.sub(r"(?<!^)(?=[A-Z])", "_", name.removesuffix("Loss")).lower()
        assert function in F.__all__


def test_options_are_checked_at_construction() -> None:
    with pytest.raises(ValueError, match="reduction: got 'avg'"):
        nn.CrossEntropyLoss(reduction="avg")
    with pytest.raises(ValueError, match="label_smoothing: got -1"):
        nn.SparseCrossEntropyLoss(label_smoothing=-1.0)


def test_the_table_moves_with_the_module() -> None:
    module = nn.CrossEntropyLoss(make_table(V), alpha=0.5).to("meta")
    assert module.table is not None
    assert module.table.indices.device.type == "meta"


def test_repr_names_what_is_set() -> None:
    assert "alpha=0.5" in repr(nn.LazySequenceCrossEntropyLoss(alpha=0.5))
