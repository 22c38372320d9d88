from __future__ import annotations

import copy
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks import curves, recorded_rows, results_advice, results_page
from smoothloss_trainer.significance import Comparison


def test_the_page_is_what_the_files_say() -> None:
    assert results_page.main(["--check"]) == 0


def row(label: str, difference: float | None, *scores: float) -> dict[str, Any]:
    ends = None
    if difference is not None:
        ends = {"difference": difference, "low": difference - 1, "high": difference + 1, "p_value": 0.5}
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


def test_calibration_and_length_stand_where_the_runs_know_them() -> None:
    curve = [
        {"epoch": 1, "validation_bleu": 20.0, "validation_loss": 3.0, "validation_ece": 0.5},
        {"epoch": 2, "validation_bleu": 30.0, "validation_loss": 2.0, "validation_ece": 0.04},
    ]
    run = {"curve": curve, "scores": {"bleu": 30.0, "words": 11.5, "reference_words": 12.25}}
    content = {"title": "T", "split": "test", "rows": [row("MLE", None, 30), row("a", 2.0, 33)]}
    assert "ECE" not in results_page.section("t", content)
    content["rows"][1]["runs"] = [run]
    lines = results_page.section("t", content).splitlines()
    assert next(line for line in lines if line.startswith("| a |")).endswith("| 4.0 | 11.50 / 12.25 |")
    assert next(line for line in lines if line.startswith("| MLE |")).endswith("| – | – |")


def test_the_advice_says_what_the_tables_bear_out_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    found = recorded_rows.tables()
    [_, text, _] = results_advice.advice(found)
    assert "Begin with label smoothing" in text and "Train to the end" in text
    for content in found.values():
        for each in content["rows"]:
            if each["comparison"]:
                each["comparison"].update(difference=0.0, low=-1.0, high=1.0)
    [_, text, _] = results_advice.advice(found)
    nothing = "+0.0 BLEU [-1.0, +1.0; one seed]"
    assert text == (
        f"Of the paper's losses at its own settings Tok ({nothing}) and exact Tok-Seq ({nothing}) are not told apart "
        "from MLE there."
    )
    assert results_advice.advice({}) == []


def test_more_than_label_smoothing_is_advised_where_it_is_above_that_with_three_seeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = recorded_rows.tables()
    rows = {each["key"]: each for each in found["multi30k_converged"]["rows"]}
    dropped = rows["label_smoothing_0.1_consistency_dropout_0.1"]
    dropped["comparison"].update(difference=2.5, low=1.5, high=3.5)

    def advice(scores: list[float], low: float) -> str:
        over = dict.fromkeys(rows, Comparison(difference=1.25, low=low, high=2.25, p_value=0.01))
        monkeypatch.setattr(results_advice, "over_control", lambda *_: ("label_smoothing_0.3", over))
        dropped["scores"] = {"bleu": scores}
        return results_advice.advice(found)[1]

    gains = "+2.5 BLEU [+1.5, +3.5] over MLE, +1.2 BLEU [+0.2, +2.2] over the label smoothing that validation chooses."
    assert gains in advice([40.0, 41.0, 40.5], low=0.25)
    assert "R-Drop" not in advice([40.0, 41.0, 40.5], low=-0.25) + advice([40.0], low=0.25)


def test_learning_is_told_at_each_quarter() -> None:
    rows = [row("MLE", None, 30), row("a", 2.0, 33), row("b", 2.0, 33)]
    for each, epochs in zip(rows[:2], (8, 5), strict=True):
        curve = [{"epoch": epoch, "validation_bleu": 10.0 + epoch} for epoch in range(1, epochs + 1)]
        each["runs"] = [{"curve": curve}]
    lines = results_page.learning("t", rows, "bleu").splitlines()
    assert lines[2:] == [
        "|  | 2 | 4 | 6 | 8 |",
        "| --- | --: | --: | --: | --: |",
        "| MLE | 12.0 | 14.0 | 16.0 | 18.0 |",
        "| a | 12.0 | 14.0 | – | – |",
    ]
    assert results_page.learning("t", rows[2:], "bleu") == ""


def test_examples_that_agree_stand_once() -> None:
    rows = [row("MLE", None, 30), row("a", 2.0, 33), row("b", 2.0, 33), row("c", 2.0, 33)]
    for each, texts in zip(rows, ({"7": "x", "9": "y"}, {"7": "z", "9": "y"}, {"7": "x"}), strict=False):
        each["runs"] = [{"examples": texts}, {"examples": {"7": "of another seed"}}]
    rows[3]["runs"] = [{}]  # an earlier record
    assert results_page.examples(rows, "test").splitlines()[2:] == [
        "* Input `7`:",
        "  * x (MLE; b)",
        "  * z (a)",
        "* Input `9`:",
        "  * y (MLE; a)",
    ]
    assert results_page.examples(rows[3:], "test") == ""


def test_what_is_missing_is_said_once_and_settings_are_folded_away() -> None:
    note = "Of captions. Settings of these runs: lr 1. Not there yet: seed 2 of a. Of other code than the rest: mle."
    content = {"title": "T", "split": "test", "rows": [row("MLE", None, 30), row("a", 2.0, 33)], "note": note}
    text = results_page.section("t", content)
    assert "Not there yet" not in text and text.index("Of captions.") < text.index("<details>") < text.index("lr 1.")
    assert "<details>" not in results_page.section("t", {**content, "note": "Of captions."})


def test_the_time_of_a_batch_is_that_of_its_own_measurement(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(recorded_rows, "RESULTS", tmp_path)
    rows = [{**row("MLE", None, 30), "key": "mle"}, {**row("a", 2.0, 33), "key": "a"}]
    table = {"title": "T", "split": "test", "rows": rows}
    (tmp_path / "coco_t.json").write_text(json.dumps(table))
    assert "time of a batch" not in results_page.section("coco_t", recorded_rows.tables()["coco_t"])
    times = {"rows": [{"key": "a", "relative": 1.234}, {"key": "other", "relative": 9.0}]}
    (tmp_path / "batch_time_coco_t.json").write_text(json.dumps(times))
    lines = results_page.section("coco_t", recorded_rows.tables()["coco_t"]).splitlines()
    assert next(line for line in lines if line.startswith("| a |")).endswith("| 1.23 |")


def test_rows_are_compared_with_the_label_smoothing_that_validation_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = recorded_rows.tables()["multi30k_converged"]
    rows = {each["key"]: each for each in content["rows"]}
    mle, control = rows["mle"], rows["label_smoothing_0.1"]
    weaker = copy.deepcopy(control)
    weaker.update(key="weaker", label="Weaker")
    for run in weaker["runs"]:
        for point in run["curve"]:
            point["validation_bleu"] /= 2
    same = {**control, "key": "same", "label": "Same", "loss": {"name": "tok"}}
    worse = {**mle, "key": "worse", "label": "Worse", "loss": {"name": "seq"}, "comparison": control["comparison"]}
    content = {**content, "rows": [mle, weaker, control, worse, same]}
    (tmp_path / "t.json").write_text(json.dumps(content))
    monkeypatch.setattr(recorded_rows, "RESULTS", tmp_path)
    text = results_page.beside_control("t", content)
    assert f"validation chooses {control['label']}" in text
    difference = statistics.mean(mle["scores"]["bleu"]) - statistics.mean(control["scores"]["bleu"])
    assert re.search(rf"Same \+0\.00 \[[^;]*; Worse {difference:+.2f} \[", text)
    assert results_page.beside_control("t", {**content, "rows": [mle, control]}) == ""


def test_models_as_one_are_beside_their_own_and_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = recorded_rows.tables()["multi30k_converged"]
    rows = {each["key"]: each for each in content["rows"]}
    together = rows["label_smoothing_0.1_consistency_dropout_0.1_ensemble"]
    alone = rows["label_smoothing_0.1_consistency_dropout_0.1"]
    weaker = {**together, "key": "mle_ensemble", "scores": {"bleu": [1.0]}}
    content = {**content, "rows": [rows["mle"], alone, weaker, together]}
    (tmp_path / "multi30k_converged.json").write_text(json.dumps(content))
    monkeypatch.setattr(recorded_rows, "RESULTS", tmp_path)
    text = results_page.models_as_one("multi30k_converged", content)
    [score] = together["scores"]["bleu"]
    gain = score - statistics.mean(alone["scores"]["bleu"])
    assert f"the 3 models of {alone['label']} have {score:.2f}, {gain:+.2f} [" in text
    assert f"Those of {alone['label']} less the others: MLE +0.00 [+0.00, +0.00]" in text
    for without in ([rows["mle"]], [rows["mle"], together]):  # which has no models of its own beside it
        assert results_page.models_as_one("multi30k_converged", {**content, "rows": without}) == ""
    said = results_page.statement(content["rows"], "bleu")
    assert together["label"] not in said and f"best mean is that of {alone['label']}" in said


def test_curves_are_drawn_of_rows_that_have_some(tmp_path: Path) -> None:
    plain, known = row("MLE", None, 30), row("a", 2.0, 33)
    assert not curves.draw([plain], tmp_path / "none.png") and not (tmp_path / "none.png").exists()
    points = [{"epoch": epoch, "validation_loss": 3.0 - epoch, "validation_bleu": 10.0 * epoch} for epoch in (1, 2)]
    known["runs"] = [{"curve": points}, {"curve": [{**points[0], "validation_bleu": 30.0}]}]
    assert curves.curve(known, "validation_bleu") == [(1, 20.0), (2, 20.0)]
    assert curves.draw([plain, known], tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 5000
    assert curves.curve(plain, "validation_bleu") == []
