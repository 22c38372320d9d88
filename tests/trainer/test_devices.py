from __future__ import annotations

import pytest
import torch

from smoothloss_trainer.devices import choose_device, sum_dtype
from smoothloss_trainer.errors import RecipeError


@pytest.mark.parametrize("name", ["abacus", "", "cuda:", "cuda:x", "cuda:-1", "cuda:007", "cpu:1", "meta", "xpu"])
def test_other_names_are_refused(name: str) -> None:
    for here in (True, False):
        with pytest.raises(RecipeError, match="device must be auto, cpu, cuda, cuda:<number> or mps, got"):
            choose_device(name, here=here)


def test_a_device_that_is_missing_is_refused_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    for name, reason in (
        ("cuda", "torch sees 0 CUDA"),
        ("cuda:3", "CUDA devices"),
        ("mps", "built without it"),
    ):
        with pytest.raises(RecipeError, match=f"device is '{name}', but .*{reason}"):
            choose_device(name)
        assert choose_device(name, here=False) == torch.device(name)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    with pytest.raises(RecipeError, match="this machine has none"):
        choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps").type == "mps"
    assert choose_device("auto").type == "cpu", "not for all losses, so not unasked"


def test_sums_are_exact_where_the_device_can() -> None:
    assert sum_dtype(torch.device("cpu")) == sum_dtype(torch.device("cuda")) == torch.float64
    assert sum_dtype(torch.device("mps")) == torch.float32
