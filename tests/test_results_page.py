from __future__ import annotations

from typing import Any

import pytest

from benchmarks import results_page


def test_the_page_is_what_the_files_say() -> None:
    assert results_page.main(["--check"]) == 0


def row(label: str, difference: float | None, *scores: float) -> dict[str, Any]:
    ends = None if difference is None else {"low": difference - 1, "high": difference + 1}
    return {"label": label, "scores": {"bleu": list(scores)}, "comparison": ends}


def test_a_statement_claims_no_more_than_its_intervals() -> None:
    rows = [
        row("MLE", None, 30, 31, 32),
        row("a", 2.0, 33, 33, 33),
        row("b", 0.5, 31, 31, 32),
        row("c", -2, 28, 29, 29),
    ]
    text = results_page.statement(rows, "bleu")
    assert text == "Above MLE: a. Below MLE: c. Not told apart from MLE: b. The best mean is that of a."
    short = results_page.statement([*rows, row("d", 2.0, 33)], "bleu")
    assert "Above MLE: a; d." in short and "With 1 seed in a row, none of this is known" in short


def test_what_was_not_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_page, "tables", lambda: {})
    assert results_page.page().count("no run of it is recorded") == len(results_page.TABLES)
