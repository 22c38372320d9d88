"""The fingerprint of the code: what changes it, and what does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import smoothloss
from smoothloss_trainer import sources


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = tmp_path / "smoothloss_trainer"
    shutil.copytree(Path(sources.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__", "*.yaml"))
    monkeypatch.setattr(sources, "__file__", str(copy / "sources.py"))
    return copy


def fingerprint() -> str:
    return sources.code_fingerprint.__wrapped__()


def test_comments_docstrings_and_layout_do_not_count(tree: Path) -> None:
    before = fingerprint()
    path = tree / "optimizer.py"
    text = path.read_text()
    path.write_text(f'"""Other words."""\n\n# A remark.\n{text[text.index("from __future__") :]}\n\n')
    (tree / "report" / "charts.py").write_text("")
    assert fingerprint() == before


@pytest.mark.parametrize("name", ["optimizer.py", "trainer.py", "decoding/beam_search.py", "tasks/recurrence.py"])
def test_a_changed_constant_counts(tree: Path, name: str) -> None:
    before = fingerprint()
    path = tree / name
    path.write_text(path.read_text() + "\n_MORE = 1\n")
    assert fingerprint() != before


def test_it_names_the_librarys_version() -> None:
    assert sources.code_fingerprint().startswith(f"{smoothloss.__version__}+")
