from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from smoothloss_trainer import reproduce as module
from smoothloss_trainer import shipped
from smoothloss_trainer.cli import main
from smoothloss_trainer.errors import RecipeError, RunError
from smoothloss_trainer.recipe import load_recipe
from smoothloss_trainer.reproduce import reproduce
from smoothloss_trainer.run_table import load_table

Values = Callable[..., dict[str, Any]]


@pytest.fixture
def table(tmp_path: Path, recipe_values: Values) -> Path:
    """Return a table of two rows that each train for a few steps."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    values = recipe_values(training={"max_steps": 24, "log_every": 4}, optimizer={"lr": 0.03})
    (folder / "mle.yaml").write_text(yaml.safe_dump(values))
    content = {
        "title": "A table",
        "metrics": {"bleu": "BLEU"},
        "baseline": "mle",
        "note": "The text is tiny.",
        "rows": {
            "mle": {"recipe": "mle.yaml", "label": "MLE", "paper": {"bleu": 27.55}},
            "smooth": {
                "recipe": "mle.yaml",
                "overrides": {"loss.name": "label_smoothing", "loss.label_smoothing": 0.2},
            },
        },
    }
    path = folder / "table.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}, sort_keys=False))


def test_trains_what_is_missing_and_writes_the_table(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["reproduce", str(table), "--out", str(out), "--jobs", "2"]) == 0
    text = (out / "table.md").read_text()
    assert "| MLE | " in text and "| smooth | " in text and "27.55" in text and "The text is tiny." in text
    content = json.loads((out / "table.json").read_text())
    mle, smooth = content["rows"]
    own = {"embeddings.dim": 8, "embeddings.window": 3, "embeddings.epochs": 2}  # of the small recipe
    assert len(mle["scores"]["bleu"]) == 2 and mle["comparison"] is None
    assert 0 < smooth["comparison"]["p_value"] <= 1
    assert smooth["seeds"] == [1, 2] and smooth["loss"] == {"name": "label_smoothing", "label_smoothing": 0.2, **own}
    assert smooth["recipe"]["training"]["max_steps"] == 24 and set(smooth["fingerprints"]) >= {"train", "test"}
    assert all(
        low <= sum(row["scores"]["bleu"]) / 2 <= high for row in (mle, smooth) for low, high in [row["interval"]]
    )
    # What the runs really had, not what a note says.
    assert "training.epochs 2, training.max_steps 24" in text and "optimizer.lr 0.03" in text
    assert "Not there yet" not in text
    means = [sum(row["scores"]["bleu"]) / 2 for row in (mle, smooth)]
    assert smooth["comparison"]["difference"] == pytest.approx(means[1] - means[0], abs=1e-9)
    assert all(time > 0 for row in content["rows"] for time in row["step_ms"])
    assert "<h2>A table</h2>" in (out / "report.html").read_text()
    # The second time there is nothing to train.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert main(["reproduce", str(table), "--out", str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before
    assert len(before) == 8


def test_a_table_of_the_validation_part(table: Path, tmp_path: Path) -> None:
    rewrite(table, split="validation", seeds=[1])
    out = tmp_path / "out"
    assert main(["reproduce", str(table), "--out", str(out), "--rows", "mle"]) == 0
    content = json.loads((out / "table.json").read_text())
    scores = json.loads((out / "mle" / "seed1" / "scores.validation.json").read_text())
    assert content["split"] == "validation"
    assert "Not there yet" not in content["note"]  # of the rows that were asked for
    assert [row["scores"]["bleu"] for row in content["rows"]] == [[scores["bleu"]]]


def test_a_split_that_is_none(table: Path, tmp_path: Path) -> None:
    rewrite(table, split="test_2015", seeds=[1])
    with pytest.raises(RecipeError, match="test_2015"):
        reproduce(table, tmp_path / "out", rows=["mle"])


def test_a_metric_that_nothing_was_scored_by(table: Path, tmp_path: Path) -> None:
    rewrite(table, metrics={"bleu": "BLEU", "bleau": "BLEAU"}, seeds=[1])
    with pytest.raises(RecipeError, match=r"metrics must be some of bleu, .*got 'bleau'"):
        reproduce(table, tmp_path / "out", rows=["mle"])


def test_finished_runs_are_not_taken_for_those_of_a_changed_table(table: Path, tmp_path: Path) -> None:
    rewrite(table, seeds=[1])
    reproduce(table, tmp_path / "out", rows=["mle"])
    before = (tmp_path / "out" / "table.json").read_bytes()
    for key, value in (("training.max_steps", "30"), ("decoding.beam_size", "7"), ("data.min_count", "3")):
        with pytest.raises(RecipeError, match=rf"mle.seed1.* {key} is .* there and {value}"):
            reproduce(table, tmp_path / "out", rows=["mle"], overrides=[f"--{key}", value])
    assert (tmp_path / "out" / "table.json").read_bytes() == before
    reproduce(table, tmp_path / "out", rows=["mle"], overrides=["--training.checkpoint_every", "5"])


@pytest.mark.parametrize("key", ["table.md", "report.html", "runs.json", ".smoothloss.lock"])
def test_a_row_called_like_a_file_beside_it(table: Path, tmp_path: Path, key: str) -> None:
    rewrite(table, rows={"mle": {"recipe": "mle.yaml"}, key: {"recipe": "mle.yaml"}})
    with pytest.raises(RecipeError, match="another key"):
        reproduce(table, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_seed_twice(table: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="seeds must differ from each other, got 1, 1"):
        reproduce(table, tmp_path / "out", seeds=[1, 1])


def test_an_interrupted_run_goes_on(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(table, seeds=[1])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    reproduce(table, whole, rows=["mle"])
    polls: list[int] = []

    def interrupt(seconds: float) -> None:
        """Stop once the first checkpoint within training is there."""
        polls.append(1)
        if len(polls) > 600:
            raise AssertionError("no checkpoint was written")
        real_sleep(0.05)
        if (cut / "mle" / "seed1" / "metrics.jsonl").is_file():
            module.time.sleep = real_sleep  # type: ignore[assignment]
            raise KeyboardInterrupt

    real_sleep = module.time.sleep
    monkeypatch.setattr(module.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        reproduce(table, cut, rows=["mle"])
    monkeypatch.setattr(module.time, "sleep", real_sleep)
    assert not (cut / "mle" / "seed1" / "scores.test.json").is_file()
    reproduce(table, cut, rows=["mle"])
    losses = [
        [
            line["train_loss"]
            for line in map(json.loads, (out / "mle/seed1/metrics.jsonl").read_text().splitlines())
            if "train_loss" in line
        ]
        for out in (whole, cut)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def test_a_failed_run_leaves_the_others(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(table, seeds=[1])
    real = module.Run.words
    monkeypatch.setattr(module.Run, "words", lambda run: ["no.yaml"] if run.row == "smooth" else real(run))
    with pytest.raises(RunError, match=r"smooth, seed 1 failed: smoothloss: error: no such recipe: .*no.yaml"):
        reproduce(table, tmp_path / "out")
    assert "| MLE | " in (tmp_path / "out" / "table.md").read_text()


def test_the_runs_end_with_reproduce(table: Path, tmp_path: Path) -> None:
    rewrite(table, seeds=[1], overrides={"training.epochs": 100000, "training.max_steps": 10**6})
    command = [sys.executable, "-c", "import sys; from smoothloss_trainer.cli import main; sys.exit(main())"]
    out = tmp_path / "out"
    process = subprocess.Popen([*command, "reproduce", str(table), "--out", str(out)], stderr=subprocess.PIPE)
    metrics = out / "mle" / "seed1" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.decode()) == (
        143,
        "smoothloss: error: terminated; the same command goes on with what is missing\n",
    )
    lines = metrics.read_text()
    time.sleep(1)
    assert metrics.read_text() == lines, "nothing trains any more"


def test_a_row_s_own_overrides_come_after_the_table_s(table: Path, tmp_path: Path) -> None:
    rewrite(table, seeds=[1], overrides={"training.max_steps": 3, "loss.label_smoothing": 0.1})
    reproduce(table, tmp_path / "out", rows=["smooth"])
    recipe = module.RunDirectory(tmp_path / "out" / "smooth" / "seed1").recipe()
    assert (recipe.training.max_steps, recipe.loss.label_smoothing) == (3, 0.2)


def test_rows_seeds_and_overrides_can_be_chosen(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [
        "reproduce",
        str(table),
        "--out",
        str(out),
        "--rows",
        "smooth",
        "--seeds",
        "3",
        "--training.max_steps",
        "4",
    ]
    assert main(words) == 0
    assert sorted(path.name for path in out.glob("*/seed*")) == ["seed3", "seed3", "seed3.log", "seed3.log"]
    assert yaml.safe_load((out / "smooth/seed3/recipe.yaml").read_text())["training"]["max_steps"] == 4


def test_a_row_may_be_the_models_of_another_as_one(table: Path, tmp_path: Path) -> None:
    rows = yaml.safe_load(table.read_text())["rows"]
    rewrite(table, rows={**rows, "all": {"ensemble": "smooth", "label": "All"}}, overrides={"training.max_steps": 12})
    out = tmp_path / "out"
    reproduce(table, out, rows=["all"], train=False)
    assert json.loads((out / "table.json").read_text())["rows"] == []
    reproduce(table, out, rows=["all"])
    assert not (out / "all" / "seed1").exists()
    content = json.loads((out / "table.json").read_text())
    found = {row["key"]: row for row in content["rows"]}
    [run] = found["all"]["runs"]
    assert found.keys() == {"mle", "smooth", "all"} and run["members"] == [1, 2] and not run["curve"]
    assert run["step_ms"] == pytest.approx(sum(found["smooth"]["step_ms"]))
    assert "Not there yet" not in content["note"] and "| 2 in one |" in (out / "table.md").read_text()
    runs = [str(out / "smooth" / f"seed{seed}") for seed in (1, 2)]
    assert main(["evaluate", *runs, "--out", str(tmp_path / "by_hand")]) == 0
    by_hand = json.loads((tmp_path / "by_hand" / "scores.test.json").read_text())
    assert found["all"]["scores"]["bleu"] == [by_hand["bleu"]]
    # A record has it without the models, for a table of the same seeds.
    record, elsewhere = out / "table.json", tmp_path / "elsewhere"
    reproduce(table, elsewhere, recorded=[record], train=False)
    assert json.loads((elsewhere / "table.json").read_text())["rows"] == content["rows"]
    reproduce(table, elsewhere, recorded=[record], train=False, seeds=[1])
    taken = json.loads((elsewhere / "table.json").read_text())
    assert [row["key"] for row in taken["rows"]] == ["mle", "smooth"] and "seed 1 of All" in taken["note"]
    change = json.loads(record.read_text())
    change["rows"][2]["runs"][0]["members"] = [1, 3]
    record.write_text(json.dumps(change))
    reproduce(table, elsewhere, recorded=[record], train=False)
    assert [row["key"] for row in json.loads((elsewhere / "table.json").read_text())["rows"]] == ["mle", "smooth"]


def with_teacher(table: Path) -> None:
    """Add a row that learns from another, and train for a few steps."""
    rows = yaml.safe_load(table.read_text())["rows"]
    taught = {"recipe": "mle.yaml", "teacher": "smooth", "overrides": {"loss.teacher.share": 0.3}}
    rewrite(table, rows={**rows, "taught": taught}, overrides={"training.max_steps": 12})


def test_a_row_may_learn_from_the_models_of_another(table: Path, tmp_path: Path) -> None:
    with_teacher(table)
    out = tmp_path / "out"
    reproduce(table, out, rows=["taught"], jobs=2)
    content = json.loads((out / "table.json").read_text())
    found = {row["key"]: row for row in content["rows"]}
    assert found.keys() == {"mle", "smooth", "taught"} and "Not there yet" not in content["note"]
    assert found["taught"]["loss"]["teacher.runs"] == ["smooth"]  # wherever the table lies
    for seed in (1, 2):
        own = yaml.safe_load((out / f"taught/seed{seed}/recipe.yaml").read_text())["loss"]["teacher"]
        assert own == {"runs": [str(out / f"smooth/seed{seed}")], "share": 0.3, "classes": 32}
        ends = [(out / f"{row}/seed{seed}/report.html").stat().st_mtime_ns for row in ("smooth", "taught")]
        assert ends[0] < ends[1]
    # The folder may move, and nothing is trained again.
    moved = tmp_path / "moved"
    out.rename(moved)
    before = {path: path.stat().st_mtime_ns for path in moved.rglob("*.safetensors")}
    reproduce(table, moved, rows=["taught"])
    assert {path: path.stat().st_mtime_ns for path in moved.rglob("*.safetensors")} == before
    # A record has the student without either model.
    record, elsewhere = moved / "table.json", tmp_path / "elsewhere"
    reproduce(table, elsewhere, recorded=[record])
    assert json.loads((elsewhere / "table.json").read_text())["rows"] == content["rows"]
    assert not [*elsewhere.glob("*/seed1")]
    # Without the student in it, the teacher is trained for it.
    content["rows"] = [row for row in content["rows"] if row["key"] != "taught"]
    record.write_text(json.dumps(content))
    reproduce(table, elsewhere, recorded=[record], seeds=[1])
    again = json.loads((elsewhere / "table.json").read_text())
    assert sorted(path.parent.name for path in elsewhere.glob("*/seed1")) == ["smooth", "taught"]
    assert again["rows"][2]["scores"]["bleu"] == found["taught"]["scores"]["bleu"][:1]
    assert "Of other code" not in again["note"]


def test_a_row_whose_teacher_fails(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_teacher(table)
    real = module.Run.words
    monkeypatch.setattr(module.Run, "words", lambda run: ["no.yaml"] if run.row == "smooth" else real(run))
    with pytest.raises(RunError, match=r"smooth, seed 1 failed: .*; taught, seed 1 has no teacher, which failed$"):
        reproduce(table, tmp_path / "out", seeds=[1])
    assert "| MLE | " in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "nothing"}, "baseline must be one of mle, smooth, got 'nothing'"),
        ({"rows": {"mle": {"recip": "x"}}}, "table"),
        ({"metrics": {}}, "metrics and seeds must not be empty"),
        ({"seeds": "many"}, "seeds"),
        ({"titel": "x"}, "titel"),
        ({"rows": {"mle": {}}}, r"rows\.mle must have either a recipe or an ensemble"),
        ({"rows": {"mle": {"recipe": "mle.yaml", "ensemble": "mle"}}}, "must have either a recipe or an ensemble"),
        (
            {"rows": {"mle": {"recipe": "mle.yaml"}, "five": {"ensemble": "five"}}},
            r"rows\.five\.ensemble must be the key of a row with a recipe \(mle\), got 'five'",
        ),
        (
            {"rows": {"mle": {"recipe": "mle.yaml"}, "five": {"ensemble": "mle", "overrides": {"seed": 3}}}},
            r"rows\.five\.overrides: an ensemble has the settings of mle",
        ),
        (
            {"rows": {"mle": {"recipe": "mle.yaml", "teacher": "mle"}}},
            r"rows\.mle\.teacher must be the key of a row above with a recipe \(there is none\), got 'mle'",
        ),
        (
            {"rows": {"mle": {"recipe": "mle.yaml"}, "taught": {"recipe": "mle.yaml", "teacher": "five"}}},
            r"rows\.taught\.teacher must be the key of a row above with a recipe \(mle\), got 'five'",
        ),
    ],
)
def test_a_wrong_table_is_one_line(table: Path, changes: dict[str, Any], message: str) -> None:
    rewrite(table, **changes)
    with pytest.raises(RecipeError, match=message) as caught:
        load_table(table)
    assert "\n" not in str(caught.value)


def test_what_is_wrong_is_said_before_anything_is_trained(table: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--rows must be some of mle, smooth, got 'tok'"):
        reproduce(table, tmp_path / "out", rows=["tok"])
    rewrite(table, rows={"mle": {"recipe": "missing.yaml"}})
    with pytest.raises(RecipeError, match=r"rows\.mle\.recipe: no such file: .*missing\.yaml"):
        reproduce(table, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["data.train", "data.validation", "data.test.test", "loss.embeddings.path"])
def test_a_variable_that_is_not_set_is_said_before_anything_is_trained(table: Path, tmp_path: Path, key: str) -> None:
    # A name that looks like one is no path.
    overrides = ["--name", "a$b", f"--{key}", "${SMOOTHLOSS_NOWHERE}/train"]
    with pytest.raises(RecipeError, match="variable SMOOTHLOSS_NOWHERE of the path"):
        reproduce(table, tmp_path / "runs", overrides=overrides)
    assert not list((tmp_path / "runs").glob("*/seed*"))


def test_the_recipes_tables_are_readable() -> None:
    """Every table of the repository, with all its recipes."""
    folder = shipped.FOLDER / "tables"
    tables = sorted(folder.glob("*.yaml"))
    assert tables
    for path in tables:
        table = load_table(path)
        for row in table.rows.values():
            if row.recipe is None:
                continue
            words = [
                word for key, value in (table.overrides | row.overrides).items() for word in (f"--{key}", str(value))
            ]
            assert load_recipe(folder / row.recipe, words, here=False).loss.name


def test_table_1_is_whole() -> None:
    """Both models' rows, each with the paper's numbers but for the controls."""
    folder = shipped.FOLDER / "tables"
    plain, attention = (load_table(folder / f"coco_table1{suffix}.yaml").rows for suffix in ("", "_attention"))
    assert list(plain) == list(attention)
    assert len(plain) == 4 + 12 + 6 + 2
    without = {key for key, row in plain.items() if not row.paper}
    assert without == {"label_smoothing", "seq_constant_references_lazy"}
    assert attention["tok_seq_cider_references"].paper["cider"] == 103.81
    assert plain["tok_seq_cider_references"].overrides["loss.reward.clip"] == 1.0
    shares = [row["tok_seq_cider_references"].overrides["loss.alpha"] for row in (plain, attention)]
    assert shares == [0.5, 0.4]


@pytest.mark.parametrize("name", ["notes", "table.md", "table.json", "mle/seed1.log"])
def test_a_folder_of_something_else_is_refused(table: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(RecipeError, match="is not empty and not of `smoothloss reproduce`: choose another --out"):
        reproduce(table, tmp_path / "out")
    assert [file for file in (tmp_path / "out").rglob("*") if file.is_file()] == [path]
    assert path.read_text() == "mine"


def test_a_run_that_was_killed_between_its_scores_and_its_report_goes_on(table: Path, tmp_path: Path) -> None:
    rewrite(table, seeds=[1])
    run = module.RunDirectory(tmp_path / "out" / "mle" / "seed1")
    for _ in range(2):
        reproduce(table, tmp_path / "out", rows=["mle"])
        assert run.finished and (run.path / "report.html").is_file()
        (tmp_path / "out" / "notes").write_text("mine")
        (run.path / "report.html").unlink()
        run.folder.claim([], finished=False)
    assert (tmp_path / "out" / "notes").read_text() == "mine"


@pytest.mark.parametrize("row", ["..", "a/b"])
def test_a_row_that_names_no_folder_is_refused(table: Path, row: str) -> None:
    rewrite(table, rows={"mle": {"recipe": "mle.yaml"}, row: {"recipe": "mle.yaml"}})
    with pytest.raises(RecipeError, match="the key of a row must be part of a file's name"):
        load_table(table)


def test_runs_of_another_recipe_are_not_taken_for_the_table_s(table: Path, tmp_path: Path) -> None:
    rewrite(table, seeds=[1], overrides={"training.max_steps": 2})
    reproduce(table, tmp_path / "out", rows=["mle"])
    before = (tmp_path / "out" / "table.json").read_bytes()
    rewrite(table, overrides={"training.max_steps": 2, "optimizer.lr": 0.5})
    for train in (True, False):
        with pytest.raises(RecipeError, match=r"seed1: optimizer\.lr is 0\.03 there and 0\.5 in the recipe"):
            reproduce(table, tmp_path / "out", rows=["mle"], train=train)
    assert (tmp_path / "out" / "table.json").read_bytes() == before
