"""Runs of a table that another machine recorded: taken where recipe, data and code agree, and nowhere else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from smoothloss_trainer import recorded
from smoothloss_trainer.cli import main
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.reproduce import reproduce


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, recipe_values: Callable[..., dict[str, Any]]) -> Path:
    """Return a folder with a table of two rows, ``table.yaml``, and its two seeds, trained, in ``out``."""
    folder = tmp_path_factory.mktemp("table")
    values = recipe_values(training={"max_steps": 12}, optimizer={"lr": 0.03})
    (folder / "mle.yaml").write_text(yaml.safe_dump(values))
    smooth = {"recipe": "mle.yaml", "overrides": {"loss.name": "label_smoothing", "loss.label_smoothing": 0.2}}
    rows = {"mle": {"recipe": "mle.yaml"}, "smooth": smooth}
    content = {"title": "A table", "metrics": {"bleu": "BLEU"}, "baseline": "mle", "rows": rows}
    (folder / "table.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    reproduce(folder / "table.yaml", folder / "out")
    return folder


@pytest.fixture
def record(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole / "out" / "table.json", tmp_path / "record.json"))


def change(record: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(record.read_text())
    edit(content)
    record.write_text(json.dumps(content))


def table_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "table.json").read_text())
    return found


def test_a_record_is_the_table_without_a_run_or_its_data(whole: Path, record: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert (
        main(["reproduce", str(whole / "table.yaml"), "--out", str(out), "--recorded", str(record), "--no-train"]) == 0
    )
    assert table_of(out) == table_of(whole / "out")
    assert (out / "table.md").read_text() == (whole / "out" / "table.md").read_text()
    assert not list(out.rglob("*.safetensors"))


def test_what_a_record_lacks_is_trained_and_comes_to_the_same(whole: Path, record: Path, tmp_path: Path) -> None:
    change(record, lambda content: content["rows"][1]["runs"].pop(0))
    out = tmp_path / "out"
    reproduce(whole / "table.yaml", out, recorded=[record])
    assert [path.parent.name for path in out.rglob("scores.test.json")] == ["seed1"]
    expected, found = table_of(whole / "out"), table_of(out)
    for rows in zip(expected["rows"], found["rows"], strict=True):
        for name in ("key", "scores", "comparison", "interval", "seeds", "recipe", "loss"):
            assert rows[0][name] == rows[1][name]


def test_curve_and_statistics_are_those_of_the_run(whole: Path, record: Path) -> None:
    found = {(each.row, each.seed): each for each in recorded.read(record, "test")}
    run = whole / "out" / "smooth" / "seed2"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected = [line["validation_ece"] for line in lines if "validation_ece" in line]
    one = found["smooth", 2]
    assert [point["validation_ece"] for point in one.curve] == expected
    texts = json.loads((run / "hypotheses.test.json").read_text())
    assert len(one.examples) == min(3, len(texts)) and one.examples.items() <= texts.items()
    assert one.scores.pop("words") == sum(len(text.split()) for text in texts.values()) / len(texts)
    assert one.scores.pop("reference_words") > 1
    written = json.loads((run / "scores.test.json").read_text())
    assert one.scores == {key: value for key, value in written.items() if isinstance(value, float)}
    assert one.statistics.dtype == torch.int32
    assert "command" not in one.environment


@pytest.mark.parametrize("what", ["recipe", "code", "data", "no code"])
def test_runs_of_something_else_are_not_taken(
    whole: Path, record: Path, tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    def edit(content: dict[str, Any]) -> None:
        row = content["rows"][1]
        entry = row["runs"][0]
        if what == "recipe":
            row["recipe"]["optimizer"]["lr"] = 0.04
        elif what == "code":
            entry["environment"]["code"] = "0.0.1+0123456789abcdef"
        elif what == "no code":
            del entry["environment"]["code"]
        else:
            entry["fingerprints"]["train"] = "of another text"

    change(record, edit)
    how = {"recorded": [record], "train": False}
    reproduce(whole / "table.yaml", tmp_path / "out", **how)
    seeds = {row["key"]: row["seeds"] for row in table_of(tmp_path / "out")["rows"]}
    assert seeds == {"mle": [1, 2]} if what == "recipe" else {"mle": [1, 2], "smooth": [2]}
    reason = {"recipe": "optimizer.lr is 0.04 there and 0.03", "code": "0.0.1+0123", "data": "the data of train"}
    assert reason.get(what, "code of an earlier version") in caplog.text
    reproduce(whole / "table.yaml", tmp_path / "out", any_code=True, **how)
    content = table_of(tmp_path / "out")
    taken = "code" in what
    assert ({row["key"]: row["seeds"] for row in content["rows"]}.get("smooth") == [1, 2]) == taken
    assert ("Of other code than the rest: smooth seed 1 (code " in content["note"]) == taken


def test_a_run_that_is_here_comes_before_a_recorded_one(whole: Path, record: Path) -> None:
    before = table_of(whole / "out")
    change(record, lambda content: content["rows"][0]["runs"][0].update(step_ms=1e9))
    reproduce(whole / "table.yaml", whole / "out", recorded=[record])
    assert table_of(whole / "out") == before


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.update(split="validation"), "its split is validation"),
        (lambda content: content["rows"][0]["runs"][0].update(statistics="AAAA"), "damaged"),
        (lambda content: content["rows"][0]["runs"][0]["scores"].update(bleu=99.0), "bleu is 99.0, and its sentences"),
        (lambda content: content["rows"][0]["runs"][0].pop("seed"), "damaged"),
        (lambda content: content.update(rows=7), "damaged"),
        (lambda content: content["rows"][0]["recipe"].update(tusk=1), "tusk"),
    ],
)
def test_a_damaged_record_is_one_line(
    whole: Path, record: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], Any], message: str
) -> None:
    change(record, edit)
    with pytest.raises(RecipeError, match=f"--recorded .*{message}") as caught:
        reproduce(whole / "table.yaml", tmp_path / "out", recorded=[record])
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
