"""Tiny models of random weights, and what a test compares of a step: its loss and its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let warnings of other packages be: they are not ours to mend."""
    for item in items:
        if "integrations" in item.path.parts:
            for category in ("DeprecationWarning", "FutureWarning", "UserWarning", "RuntimeWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{category}"))


@pytest.fixture
def tiny() -> Callable[..., Any]:
    """Return a maker of models."""
    from integrations.tiny_models import make

    pytest.importorskip("transformers", reason="transformers is not installed")
    return make


@pytest.fixture
def step() -> Callable[..., tuple[float, dict[str, Tensor]]]:
    """Return a function that gives a batch's loss and the gradients."""

    def of(model: Any, batch: dict[str, Any], **more: Any) -> tuple[float, dict[str, Tensor]]:
        model.zero_grad()
        loss = model(**batch, **more).loss
        loss.backward()
        found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
        return loss.item(), found

    return of


@pytest.fixture
def apart() -> Callable[[dict[str, Tensor], dict[str, Tensor]], float]:
    """Return a function that tells how far gradients are apart, in relation to the size of the second."""

    def of(got: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
        assert got.keys() == expected.keys()
        squares = sum(((got[name].double() - value.double()) ** 2).sum() for name, value in expected.items())
        return float((squares / sum((value.double() ** 2).sum() for value in expected.values())) ** 0.5)

    return of
