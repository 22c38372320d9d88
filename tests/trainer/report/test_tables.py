from __future__ import annotations

import json
from dataclasses import replace

import pytest

from smoothloss_trainer.report import tables
from smoothloss_trainer.report.inputs import open_data, read_data
from smoothloss_trainer.report.runs import RunResults, read_runs

from .conftest import MakeRun


@pytest.fixture(scope="module")
def results(make_run: MakeRun) -> list[RunResults]:
    return read_runs([make_run("a"), make_run("b", bleu=31.0, table=True)], "test")


def text(table: tables.Table | None) -> list[list[str]]:
    assert table is not None
    return [[cell.text for cell in row] for row in [table.head, *table.rows]]


def test_the_runs_table_says_how_long_and_how_large(results: list[RunResults]) -> None:
    head, first, _ = text(tables.run_table(results, "test"))
    shown = dict(zip(head, first, strict=True))
    assert shown == {
        "run": "a", "state": "finished: epoch 2 of 2", "loss": "mle", "steps": "20", "training time": "40.0 s",
        "tokens a second": "12,500", "parameters": "25", "device": "CPU", "seed": "1",
    }  # fmt: skip


def test_the_best_is_marked_up_for_scores_and_down_for_the_loss(results: list[RunResults]) -> None:
    lower = [{**line, "validation_loss": line.get("validation_loss", 9) - 1} for line in results[0].metrics]
    table = tables.score_table([replace(results[0], metrics=lower), results[1]], "test")
    best = {head.text: [cell.best for cell in column] for head, *column in zip(table.head, *table.rows, strict=True)}
    assert best["BLEU"] == [False, True] and best["validation NLL"] == [True, False]
    assert not any(best["words used"] + best["best epoch"] + best["words a text"])
    alone = tables.score_table(results[:1], "test")
    assert not alone.has_best


def test_unknown_metrics_are_shown_too_and_settings_are_none(results: list[RunResults]) -> None:
    scored = replace(results[0], results={"new_metric": 1.0, "bleu_4": 2.0, "cider": 3.0, "length_penalty": 4.0})
    head = text(tables.score_table([scored], "test"))[0]
    assert head[1:4] == ["BLEU-4", "CIDEr-D", "new metric"] and "length penalty" not in head


def test_decoding_shows_what_matters_to_its_method(results: list[RunResults]) -> None:
    head, row = text(tables.decoding_table(results))
    assert dict(zip(head, row, strict=True)) == {"run": "all runs", "method": "beam", "beam_size": "7"}
    drawn = replace(results[1], results={"method": "sample", "beam_size": 7, "top_k": 5, "temperature": 0.5})
    head, *rows = text(tables.decoding_table([results[0], drawn]))
    assert head == ["run", "method", "beam_size", "top_k", "temperature"]
    assert rows == [["a", "beam", "7", "–", "–"], ["b", "sample", "–", "5", "0.5"]]
    assert "seed" in text(tables.decoding_table([replace(drawn, results={"method": "sample", "seed": 1})]))[0]


def test_data_have_sizes_vocabularies_and_sources(results: list[RunResults]) -> None:
    data = read_data(results, "test", open_data(results[0].run))
    shown = {row[0]: row[1] for row in text(tables.data_table(data))[1:]}
    assert (shown["train, inputs"], shown["validation, inputs"], shown["test, inputs"]) == ("200", "20", "30")
    assert shown["target vocabulary, words"] == str(len(results[0].vocabularies["target"]))
    assert shown["data.train"].endswith("/train") and shown["data.min_count"] == "1"


def test_signatures_name_the_runs_they_are_of(results: list[RunResults]) -> None:
    data = read_data(results, "test", open_data(results[0].run))[0]
    other = replace(results[1], results={"cider": 1.0})
    found = tables.signatures([results[0], other], data)
    assert found[0] == ("BLEU", "tok:none|smooth:exp", [results[0]])
    metric, line, runs = found[1]
    assert metric == "BLEU-n, ROUGE-L and CIDEr-D" and runs == [other] and "df:refs[30]" in line


def test_shares_of_time_are_averaged_over_the_lines_that_have_them(results: list[RunResults]) -> None:
    times = [{"forward": 0.5, "loss": 0.5}, {"forward": 0.3, "loss": 0.5, "reward": 0.2}, "none", {"loss": None}]
    logged = replace(results[0], metrics=[{"step": 1, "epoch": 1, "time": time} for time in times])
    assert text(tables.time_share_table([logged, results[1]])) == [
        ["run", "forward", "loss", "reward"], ["a", "40.0 %", "50.0 %", "10.0 %"], ["b", "–", "–", "–"],
    ]  # fmt: skip
    assert tables.time_share_table(results) is None


def test_step_times_are_compared_with_the_first() -> None:
    shown = text(tables.step_time_table({"MLE": [0.010, 0.012, 0.011], "none": [], "Tok": [0.022, 0.022]}))
    assert [row[:2] + row[3:] for row in shown[1:]] == [["MLE", "11.0", "1.00", "3"], ["Tok", "22.0", "2.00", "2"]]
    assert tables.step_time_table({"none": []}) is None


def test_differences_are_the_settings_that_differ(results: list[RunResults]) -> None:
    head, *rows = text(tables.difference_table(results))
    assert head == ["run", "loss.alpha", "loss.name", "loss.token_tau"]
    assert rows == [["a", "0.0", "mle", "0.1"], ["b", "0.25", "tok", "0.2"]]
    assert tables.difference_table(results[:1]) is None


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0, "–"), (1.25, "1.2 s"), (61.0, "1 min 01 s"), (3600 * 25 + 65, "25 h 01 min")]
)
def test_durations_are_read_at_a_glance(seconds: float, shown: str) -> None:
    assert tables.duration(seconds) == shown


def test_a_section_is_plain_text(results: list[RunResults]) -> None:
    made = tables.section("t", ["", "n"], [["row", "1"]], "note")
    assert text(made.table) == [["", "n"], ["row", "1"]] and made.table.rows[0][1].number
    environment = text(tables.environment_table(results[0]))
    assert json.dumps(environment) == '[["what", "value"], ["torch", "2.9.9"], ["commit", "abc123"]]'
