"""The site is built without a warning, and every page opens without complaints at both widths."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
from browser import WIDTHS, chromium, open_page, visit

import smoothloss
from benchmarks import plots

ROOT = Path(__file__).resolve().parents[2]
MADE_OF_SOURCES = ("_modules", "made/results/")  # many pages of one kind: the first of each is opened


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "docs", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def pages(site: Path) -> list[Path]:
    names = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    kinds = {kind: next(name for name in names if name.startswith(kind)) for kind in MADE_OF_SOURCES}
    return [site / name for name in names if not name.startswith(MADE_OF_SOURCES) or name in kinds.values()]


def undocumented(site: Path) -> list[str]:
    """Return the public names of the library that the site's index does not have."""
    from sphinx.util.inventory import InventoryFile

    with (site / "objects.inv").open("rb") as file:
        index = InventoryFile.load(file, "", lambda site, name: name)
    kinds = ("py:class", "py:function", "py:method", "py:exception", "py:data", "py:module")
    known = {name.rpartition(".")[2] for kind in kinds for name in index.get(kind, {})}
    modules = [getattr(smoothloss, name) for name in smoothloss.__all__ if inspect.ismodule(getattr(smoothloss, name))]
    public = {*smoothloss.__all__, *(name for module in modules for name in module.__all__)}
    return sorted(public - known - {"__version__"})


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks/results").glob("*.json")), ids=lambda path: path.stem)
def test_a_file_of_results_becomes_a_page(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "draw", lambda rows, device, figure: None)  # which test_benchmarks tries
    monkeypatch.syspath_prepend(ROOT / "docs")
    name, title = importlib.import_module("made_pages")._result_page(path, tmp_path)
    text = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {title}\n")
    assert "| --- |" in text or "| --: |" in text


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_its_pages_open(tmp_path: Path) -> None:
    for name in ("furo", "myst_parser", "sphinx"):
        pytest.importorskip(name, reason="extra [docs]")
    built = build(tmp_path)
    assert built.returncode == 0, built.stderr
    found = pages(tmp_path)
    assert len(found) > 30
    assert undocumented(tmp_path) == []
    with chromium() as browser:
        for width in WIDTHS:
            page = open_page(browser, found[0], width)
            for file in found[1:]:
                visit(page, file)
        play = open_page(browser, tmp_path / "playground.html", WIDTHS[0])
        play.select_option("#pg-word", label="blue")
        assert "azure" in play.inner_text("#pg-target")
