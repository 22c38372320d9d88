"""Which implementation runs where, and that every one keeps the contract."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch

import smoothloss.functional as F
from smoothloss import backends
from smoothloss.backends import Backend, Kernels, choose, native, unavailable


@pytest.fixture
def forget() -> None:
    unavailable.cache_clear()
    backends._choose.cache_clear()


@pytest.mark.parametrize("name", backends.IMPLEMENTATIONS[1:])
def test_every_implementation_keeps_the_contract(name: str) -> None:
    if name == "triton":
        pytest.importorskip("triton")
    contract = Backend if name == "reference" else Kernels
    for method, promised in inspect.getmembers(contract, inspect.isfunction):
        if not method.startswith("_"):
            expected = list(inspect.signature(promised).parameters)[1:]
            assert list(inspect.signature(getattr(backends.get(name), method)).parameters) == expected, method


@pytest.mark.parametrize("device_type", ["mps", "xpu", "hpu", "privateuseone"])
def test_devices_without_kernels_take_the_reference_or_say_why_not(device_type: str) -> None:
    assert choose("auto", device_type, torch.float32) == "reference"
    for impl in ("native", "triton"):
        with pytest.raises(RuntimeError, match=rf"impl='{impl}' cannot run here: .+"):
            choose(impl, device_type, torch.float32)


def test_rocm_takes_the_reference(
    monkeypatch: pytest.MonkeyPatch, forget: None, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.2")
    request.addfinalizer(unavailable.cache_clear)
    request.addfinalizer(backends._choose.cache_clear)
    assert choose("auto", "cuda", torch.float32) == "reference"
    assert "ROCm" in str(native.unavailable("cuda", torch.float32))
    with pytest.raises(RuntimeError, match="ROCm"):
        choose("native", "cuda", torch.float32)


def test_a_choice_is_one_of_those_there_are() -> None:
    with pytest.raises(ValueError, match="impl: got 'gpu', expected one of 'auto', 'reference', 'native', 'triton'"):
        F.cross_entropy(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), impl="gpu")


def test_implementations_import_nothing_from_each_other() -> None:
    folder = Path(backends.__file__).parent
    for path in folder.rglob("*.py"):
        own = path.relative_to(folder).parts[0].removesuffix(".py")
        if own in ("__init__", "common"):
            continue
        imported = re.findall(
            r"^from smoothloss[.]backends(?:[.](\w+))?", path.read_text(encoding="utf-8"), re.MULTILINE
        )
        assert set(imported) <= {"common", own}, path
