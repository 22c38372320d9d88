"""What is handed out: the wheel that ``make wheel`` has built, in a bare environment, and the source distribution."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel() -> Path:
    """Return the wheel under test, or skip where none was built: compiling it takes minutes."""
    if "SMOOTHLOSS_WHEEL" not in os.environ:
        pytest.skip("SMOOTHLOSS_WHEEL names no wheel: `make wheel` builds one and runs this")
    return Path(os.environ["SMOOTHLOSS_WHEEL"]).resolve(strict=True)


def _needed(requirements: list[str], found: dict[str, importlib.metadata.Distribution]) -> None:
    """Add the distributions that the requirements name, extras aside, and what they need in turn."""
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        assert name
        if "extra ==" in requirement or name.group() in found:
            continue
        try:
            found[name.group()] = importlib.metadata.distribution(name.group())
        except importlib.metadata.PackageNotFoundError:  # of another system or Python
            continue
        _needed(found[name.group()].requires or [], found)


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment with the wheel and what it asks for: no extra, no pip, no compiler."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    with zipfile.ZipFile(wheel) as content:
        content.extractall(site)  # a wheel is unpacked to be installed, but for the scripts
        metadata = next(name for name in content.namelist() if name.endswith(".dist-info/METADATA"))
        asked = re.findall(r"^Requires-Dist: (.*)$", content.read(metadata).decode(), re.MULTILINE)
    found: dict[str, importlib.metadata.Distribution] = {}
    _needed(asked, found)
    assert {"torch", "numpy", "safetensors"} <= found.keys()
    for distribution in found.values():
        for top in {file.parts[0] for file in distribution.files or [] if ".." not in file.parts}:
            link = site / top
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))))
    return Path(venv.EnvBuilder().ensure_directories(folder).env_exe)


@pytest.mark.slow
def test_a_wheel_works_in_a_bare_environment(bare: Path, tmp_path: Path) -> None:
    nothing = {"PATH": str(bare.parent), "HOME": str(tmp_path)}
    assert shutil.which("c++", path=nothing["PATH"]) is None
    done = subprocess.run(
        [bare, "-I", ROOT / "tests" / "check_wheel.py"], cwd=tmp_path, env=nothing, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_wheel_holds_both_packages_and_the_compiled_module_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = content.namelist()
    tops = {name.split("/")[0].partition("-")[0] for name in names}
    assert {"smoothloss", "smoothloss_trainer"} == tops
    compiled = {Path(name).name.split(".")[0] for name in names if name.endswith((".so", ".pyd"))}
    assert "_C" in compiled
    assert compiled <= {"_C", "_C_cuda"}
    assert not [name for name in names if name.endswith((".cpp", ".h", ".cu", ".o", ".pyc"))]


def test_a_source_distribution_builds_from_its_own_contents(tmp_path: Path) -> None:
    """It holds every file that the build reads: those that git keeps for it, and CMake finds them all."""
    pytest.importorskip("setuptools", minversion="77")  # what pyproject.toml asks for
    setup = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q"]
    subprocess.run(
        [*setup, "egg_info", "--egg-base", tmp_path, "sdist", "--formats", "tar", "--dist-dir", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (archive,) = tmp_path.glob("*.tar")
    with tarfile.open(archive) as content:
        content.extractall(tmp_path, filter="data")
    unpacked = archive.with_suffix("")
    there = {file.relative_to(unpacked).as_posix() for file in unpacked.rglob("*") if file.is_file()}
    for folder in ("csrc", "cmake", "smoothloss", "smoothloss_trainer"):
        files = [file for file in (ROOT / folder).rglob("*") if file.is_file() and "__pycache__" not in file.parts]
        wanted = {file.relative_to(ROOT).as_posix() for file in files if file.suffix not in {".so", ".pyd"}}
        assert wanted <= there, f"missing: {sorted(wanted - there)}"
    assert {"CMakeLists.txt", "pyproject.toml", "setup.py", "README.md", "LICENSE"} <= there
    assert not [name for name in there if name.endswith((".so", ".pyd", ".pyc"))]
    if shutil.which("cmake") and shutil.which("c++"):
        options = ["-DSMOOTHLOSS_PYTHON=OFF", "-DSMOOTHLOSS_TESTS=ON"]
        subprocess.run(["cmake", "-S", unpacked, "-B", tmp_path / "build", *options], check=True, capture_output=True)
