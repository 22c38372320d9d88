"""The package as installed: its compiled module, and what ``python -m smoothloss`` tells."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import smoothloss
from smoothloss import _compiled, _diagnostics
from smoothloss.backends import native


def test_the_compiled_module_is_there() -> None:
    assert native.unavailable("cpu", torch.float32) is None, f"smoothloss was imported from {smoothloss.__file__}"
    assert native.instruction_sets()[-1] == "baseline"


def test_a_source_folder_without_the_compiled_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a checkout's folder it is found before what `pip install .` has installed."""
    monkeypatch.setitem(sys.modules, "smoothloss._C", None)
    module, reason = _compiled.load.__wrapped__("_C")
    assert module is None
    assert f"smoothloss._C is not in {Path(smoothloss.__file__).parent}:" in reason


def test_a_wheel_holds_every_module_template_and_recipe(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")  # what pyproject.toml asks for
    root = Path(__file__).resolve().parents[1]
    build = ["-c", "import setuptools; setuptools.setup()", "-q", "egg_info", "--egg-base", tmp_path, "build_py"]
    subprocess.run([sys.executable, *build, "--build-lib", tmp_path / "lib"], cwd=root, check=True, capture_output=True)
    kept = {".py", ".yaml", ".j2", ".css", ".js", ".typed"}
    for package in ("smoothloss", "smoothloss_trainer"):
        there = {file.relative_to(root) for file in (root / package).rglob("*") if file.suffix in kept}
        assert there == {file.relative_to(tmp_path / "lib") for file in (tmp_path / "lib" / package).rglob("*.*")}


def test_no_source_names_what_clang_cl_declares_otherwise() -> None:
    """There `_mm_prefetch` takes a `const char*` alone; `__builtin_prefetch` is the same everywhere."""
    sources = [file for file in (Path(__file__).resolve().parents[1] / "csrc").rglob("*") if file.is_file()]
    assert sources
    assert not [file.name for file in sources if "_mm_prefetch" in file.read_text("utf-8")]


def test_version_is_that_of_the_distribution() -> None:
    assert smoothloss.__version__ == importlib.metadata.version("smoothloss")


def test_python_m_smoothloss(tmp_path: Path) -> None:
    # The folder of the package under test, lest the subprocess find another one.
    folder = str(Path(smoothloss.__file__).parents[1])
    code = f"import sys, runpy; sys.path.insert(0, {folder!r}); runpy.run_module('smoothloss', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert f"torch        {importlib.metadata.version('torch')}" in lines
    assert any(line.startswith("instruction set of the CPU kernels: ") for line in lines)
    assert any(line.startswith("products of bfloat16 on the CPU: ") for line in lines)
    assert any(line.startswith("  cpu  reference yes: float32, float64, bfloat16, float16") for line in lines)
    native_line = next(line for line in lines if line.startswith("  cpu  native"))
    assert native_line.startswith("  cpu  native    yes: float32, float64, bfloat16 (")
    assert "float16" in native_line.split("(", 1)[1]


def test_report_gives_a_reason_for_whatever_cannot_run() -> None:
    for line in _diagnostics.report().split("implementations\n", 1)[1].splitlines():
        if "no:" in line:
            assert len(line.split("no:", 1)[1].strip()) > 10, line


def test_neither_the_import_nor_a_first_step_waits_for_the_compiler() -> None:
    """``torch._dynamo`` takes longer to import than all that is needed here, and so does triton."""
    program = """
import sys, torch, smoothloss.functional as F
import smoothloss.distillation, smoothloss.nn, smoothloss.rewards, smoothloss.sampling
logits = torch.randn(4, 9, requires_grad=True)
F.cross_entropy(logits, torch.arange(4)).backward()
F.linear_cross_entropy(logits, torch.randn(20, 9), torch.arange(4)).backward()
assert not {"torch._dynamo", "triton"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
