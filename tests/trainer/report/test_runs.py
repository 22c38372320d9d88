from __future__ import annotations

import json
from pathlib import Path

import pytest

from smoothloss_trainer.report.runs import distinct_labels, read_runs

from .conftest import MakeRun

DAMAGE = [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"null", b'"text"', b"[" * 100_000, b'{"a": 1} trailing', b"\x00" * 10]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "name",
    ["scores.test.json", "hypotheses.test.json", "environment.json", "vocabulary.target.json", "table.safetensors"],
)
def test_a_damaged_file_is_noted_and_left_out(make_run: MakeRun, name: str, damage: bytes) -> None:
    run = make_run(table=True)
    (run.path / name).write_bytes(damage)
    [result] = read_runs([run], "test")
    assert result.table is None or name not in ("table.safetensors", "vocabulary.target.json")
    assert any(note.startswith(name) for note in result.notes)
    assert all("\n" not in note for note in result.notes)


def test_values_of_the_wrong_type_are_left_out(make_run: MakeRun) -> None:
    run = make_run()
    scores = {
        "bleu": "high",
        "cider": None,
        "rouge_l": True,
        "meteor": 12,
        "spice": 10**400,
        "bleu_1": 1e31,
        "bleu_signature": 3,
        "beam_size": 4,
    }
    (run.path / "scores.test.json").write_text(json.dumps(scores))
    (run.path / "hypotheses.test.json").write_text('{"0": "a", "1": null, "2": ["b"]}')
    [result] = read_runs([run], "test")
    assert result.scores == {"meteor": 12.0} and result.signatures == {} and result.hypotheses == {"0": "a"}
    assert result.decoding == {"beam_size": 4}


def test_damaged_lines_of_metrics_are_left_out_and_counted(make_run: MakeRun) -> None:
    run = make_run()
    whole = read_runs([run], "test")[0].metrics
    bad = [
        b"\xff\xfe",
        b'{"step": 1}',
        b'{"step": "1", "epoch": 2}',
        b'{"step": 1, "epoch": 1' + b"0" * 400 + b"}",
        b'{"step": 21, "epo',
    ]
    lines = run.metrics_file.read_bytes().splitlines()
    run.metrics_file.write_bytes(b"\n".join([*bad[:4], *lines, bad[4]]))
    [result] = read_runs([run], "test")
    assert result.metrics == whole
    assert f"5 of {len(lines) + 5} lines of metrics.jsonl cannot be read and are left out" in result.notes


def test_curves_skip_what_is_no_number(make_run: MakeRun) -> None:
    run = make_run()
    with run.metrics_file.open("a") as file:
        file.write('{"step": 30, "epoch": 3, "validation_loss": NaN, "validation_bleu": null, "train_loss": "low"}\n')
    [result] = read_runs([run], "test")
    assert result.curve("validation_loss") == [(1.0, 2.375), (2.0, 2.25)]
    assert result.curve("train_loss") == [(0.5, 2.9), (1.0, 2.9), (1.5, 2.8), (2.0, 2.8)]
    assert result.best["epoch"] == 2


@pytest.mark.parametrize(("metric", "epoch"), [(None, 1), ("loss", 2), ("bleu", 1)])
def test_the_best_epoch_is_found_by_the_metric_that_chose_it(make_run: MakeRun, metric: str | None, epoch: int) -> None:
    run = make_run(bleu=-10.0, training={"metric": metric})  # falls from epoch to epoch, as the loss does
    assert read_runs([run], "test")[0].best["epoch"] == epoch


def test_labels_tell_runs_of_one_name_apart() -> None:
    paths = [Path("x/a"), Path("x/b"), Path("y/b"), Path("y/b")]
    assert distinct_labels(["one", "two", "", "  three\n"], paths) == ["one", "two", "b", "three"]
    assert distinct_labels(["one", "one", "two", "two"], paths[:4]) == [
        "one (a)", "one (b)", "two (b) (y/b) [3]", "two (b) (y/b) [4]",
    ]  # fmt: skip
    assert len(set(distinct_labels(["n"] * 20, [Path("same")] * 20))) == 20
