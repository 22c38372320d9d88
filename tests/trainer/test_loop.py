from __future__ import annotations

import errno
import gzip
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from smoothloss.rewards import Cider
from smoothloss_trainer import checkpoint, loss_inputs, trainer
from smoothloss_trainer.config import Recipe
from smoothloss_trainer.distributed import Processes
from smoothloss_trainer.errors import RecipeError, RunError
from smoothloss_trainer.loop import train
from smoothloss_trainer.models import open_task
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.table import table_of
from smoothloss_trainer.tasks import task_class
from smoothloss_trainer.trainer import Trainer

Make = Callable[..., Recipe]
TIMES = {"seconds", "tokens_per_second", "time"}


class Killed(Exception):
    """Stands in for a crash."""


def losses(run: RunDirectory) -> list[dict[str, Any]]:
    """The run's metrics without what depends on the clock."""
    return [{key: value for key, value in line.items() if key not in TIMES} for line in run.metrics()]


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let training crash after so many steps."""
    step, done = Trainer._step, []

    def crashing(self: Trainer, examples: Any) -> None:
        if len(done) == steps:
            raise Killed
        done.append(step(self, examples))

    monkeypatch.setattr(Trainer, "_step", crashing)


def test_a_copying_task_is_learnt(tmp_path: Path, make_recipe: Make) -> None:
    recipe = make_recipe(
        training={"epochs": 24, "log_every": 13, "validate_every": 8},
        optimizer={"decay": 0.5, "decay_every": 4, "decay_start": 12},
        model={"dropout": 0.0, "embedding": 32, "encoder": 32, "decoder": 32, "attention": 32},
    )
    run = RunDirectory(tmp_path / "run")
    scores = train(recipe, run)
    training = [line["train_loss"] for line in run.metrics() if "train_loss" in line]
    assert training[-1] < 0.3 < 2.0 < training[0]
    assert float(scores["test"]["bleu"]) > 60
    assert json.loads((run.path / "scores.test.json").read_text())["beam_size"] == 2
    assert len(json.loads((run.path / "hypotheses.test.json").read_text())) == 30
    best = max(line["validation_bleu"] for line in run.metrics() if "validation_bleu" in line)
    assert checkpoint.load_checkpoint(run.best)[1]["validation_bleu"] == best


@pytest.mark.parametrize("loss", ["mle", "tok_seq_lazy"])
@pytest.mark.parametrize("steps", [3, 7, 12, 17])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, make_recipe: Make, monkeypatch: pytest.MonkeyPatch, loss: str, steps: int
) -> None:
    recipe = make_recipe(loss={"name": loss, "alpha": 0.4, "token_alpha": 0.3, "tau": 0.5})
    whole, broken = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "broken")
    expected = train(recipe, whole)
    with monkeypatch.context() as patch:
        kill_after(patch, steps)
        with pytest.raises(Killed):
            train(recipe, broken)
    torch.rand(100)  # the process's own random numbers have moved on
    assert train(recipe, broken, resume=True) == expected
    assert losses(broken) == losses(whole)
    first, second = checkpoint.load_checkpoint(whole.last)[0], checkpoint.load_checkpoint(broken.last)[0]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("reward", "settings"),
    [
        ("bleu", {"name": "seq_lazy", "pool": "similar"}),
        ("cider", {"name": "tok_seq", "token_alpha": 0.3, "sampler": "edit"}),
    ],
)
def test_a_resumed_run_with_a_reward_equals_an_uninterrupted_one(
    tmp_path: Path, make_recipe: Make, monkeypatch: pytest.MonkeyPatch, reward: str, settings: dict[str, Any]
) -> None:
    weighing = {"name": reward, "normalize": "batch", "clip": 1.0}
    loss = {**settings, "alpha": 0.4, "tau": 0.5, "reward": weighing, "num_samples": 2}
    recipe = make_recipe(loss=loss, training={"log_every": 3, "checkpoint_every": 5})
    whole, broken = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "broken")
    expected = train(recipe, whole)
    lines = [line for line in whole.metrics() if "train_loss" in line]
    assert all(line["reward"] > 0 and 0 < line["effective_samples"] <= 2 for line in lines)
    assert len({line["reward"] for line in lines}) > 1
    with monkeypatch.context() as patch:
        kill_after(patch, 7)  # the checkpoint at step 5 lies between two lines
        with pytest.raises(Killed):
            train(recipe, broken)
    assert broken.cider_file.is_file() == (reward == "cider")
    assert broken.table_file.is_file(), "for the pool, or to smooth tokens"
    with monkeypatch.context() as patch:
        # The document frequencies are those of the run directory.
        patch.setattr(loss_inputs, "Cider", SimpleNamespace(load=Cider.load))
        assert train(recipe, broken, resume=True) == expected
    assert losses(broken) == losses(whole)
    first, second = checkpoint.load_checkpoint(whole.last)[0], checkpoint.load_checkpoint(broken.last)[0]
    assert all(torch.equal(first[name], second[name]) for name in first)


CHANGING = {
    "name": "tok_seq", "pool": "similar", "tau": 0.5, "alpha": 0.4, "token_alpha": 0.3, "label_smoothing": 0.2,
    "final_share": 0.25, "embeddings": {"dim": 8, "window": 3, "epochs": 2, "refresh": True},
}  # fmt: skip


@pytest.mark.parametrize("steps", [12, 13, 17])
def test_a_resumed_run_whose_loss_changes_equals_an_uninterrupted_one(
    tmp_path: Path, make_recipe: Make, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Interrupted in the last step of the first epoch, before the first of the second, and within that."""
    recipe, losses_of = make_recipe(loss=CHANGING), []
    begin = Trainer._begin_epoch

    def noting(self: Trainer) -> None:
        weight = self.model.classifier.weight.detach().clone()
        begin(self)
        losses_of.append((self.progress.epoch, self._objective.loss, weight))

    monkeypatch.setattr(Trainer, "_begin_epoch", noting)
    whole, broken = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "broken")
    expected = train(recipe, whole)
    [(_, first, weight), (_, second, later)] = losses_of
    shares = [(each.config.alpha, each.config.token_alpha, each.config.label_smoothing) for each in (first, second)]
    assert shares == [(0.4, 0.3, 0.2), (0.1, 0.075, 0.05)]
    vocabulary = task_class(recipe.task)(recipe).vocabulary
    assert not torch.equal(first.table.unit_vectors, table_of(recipe.loss, weight, vocabulary).unit_vectors)
    refreshed = table_of(recipe.loss, later, vocabulary)
    assert torch.equal(second.table.indices, refreshed.indices) and torch.equal(second.table.weights, refreshed.weights)
    assert second.sampler.pool.table is second.table
    with monkeypatch.context() as patch:
        kill_after(patch, steps)
        with pytest.raises(Killed):
            train(recipe, broken)
    assert train(recipe, broken, resume=True) == expected
    assert losses_of[-1][1].config == second.config
    assert losses(broken) == losses(whole)
    tensors, others = (checkpoint.load_checkpoint(each.last)[0] for each in (whole, broken))
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


def test_a_run_killed_by_sigkill_resumes(tmp_path: Path, make_recipe: Make, recipe_values: Any) -> None:
    # Long enough that the signal falls into an epoch.
    values = recipe_values(training={"epochs": 4, "checkpoint_every": 3})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    run = RunDirectory(tmp_path / "run")
    command = [sys.executable, "-m", "smoothloss_trainer", "train", str(path), "--out", str(run.path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if run.last.is_file() and checkpoint.load_checkpoint(run.last)[1]["progress"]["step"] >= 3:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    at = checkpoint.load_checkpoint(run.last)[1]["progress"]
    assert 3 <= at["step"] < 4 * 13
    done = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole = RunDirectory(tmp_path / "whole")
    train(make_recipe(training={"epochs": 4, "checkpoint_every": 3}), whole)
    assert losses(run) == losses(whole)


def test_a_finished_run_can_go_on(tmp_path: Path, make_recipe: Make) -> None:
    run, whole = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "whole")
    train(make_recipe(training={"epochs": 1}), run)
    train(make_recipe(training={"epochs": 2}), run, resume=True)
    train(make_recipe(training={"epochs": 2}), whole)
    assert losses(run) == losses(whole)


def test_budgets_end_a_run(tmp_path: Path, make_recipe: Make) -> None:
    for name, training in (("steps", {"max_steps": 4}), ("time", {"max_minutes": 0.01, "epochs": 1_000_000})):
        run = RunDirectory(tmp_path / name)
        train(make_recipe(training=training), run)
        last = run.metrics()[-1]
        assert last["step"] == 4 if name == "steps" else last["step"] >= 1
        assert "validation_bleu" in last


def test_a_larger_budget_goes_on_in_mid_epoch(tmp_path: Path, make_recipe: Make) -> None:
    run, whole = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "whole")
    train(make_recipe(training={"max_steps": 5}), run)
    train(make_recipe(training={"max_steps": 16}), run, resume=True)
    train(make_recipe(training={"max_steps": 16}), whole)
    extra = [line for line in losses(run) if line not in losses(whole)]
    assert [line["step"] for line in extra] == [5], "only the first run's own validation"
    lines = train(make_recipe(training={"max_steps": 16}), run, resume=True)
    assert lines == train(make_recipe(training={"max_steps": 16}), whole, resume=True), "nothing is left to do"
    assert [line["step"] for line in losses(whole)].count(16) == 2


def test_the_last_validated_models_are_kept(tmp_path: Path, make_recipe: Make) -> None:
    run = RunDirectory(tmp_path / "run")
    train(make_recipe(training={"epochs": 4, "keep_checkpoints": 2}), run)
    assert run.step_files() == [run.step_file(3 * 13), run.step_file(4 * 13)]
    last = checkpoint.load_checkpoint(run.last)[0]
    kept, about = checkpoint.load_checkpoint(run.step_file(4 * 13))
    assert all(torch.equal(kept[name], last[name]) for name in kept)
    assert about["epoch"] == 4
    none = RunDirectory(tmp_path / "none")
    train(make_recipe(training={"epochs": 2}), none)
    assert none.step_files() == []


def test_a_resumed_run_keeps_what_an_uninterrupted_one_keeps(
    tmp_path: Path, make_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(training={"epochs": 3, "keep_checkpoints": 2, "checkpoint_every": 0})
    whole, broken = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "broken")
    train(recipe, whole)
    with monkeypatch.context() as patch:

        def full(self: Trainer) -> None:
            if self.progress.step == 2 * 13:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            save(self)

        save = Trainer.save
        patch.setattr(Trainer, "save", full)
        with pytest.raises(OSError, match="No space left"):
            train(recipe, broken)
    assert broken.step_files() == [broken.step_file(13), broken.step_file(2 * 13)]
    task = task_class(recipe.task)(recipe, broken.vocabularies())
    trainer = Trainer(recipe, broken, task, None, Processes("cpu"))
    trainer.restore()
    assert broken.step_files() == [broken.step_file(13)], "step 26 is to come again"
    train(recipe, broken, resume=True)
    assert [file.name for file in broken.step_files()] == [file.name for file in whole.step_files()]
    for ours, theirs in zip(broken.step_files(), whole.step_files(), strict=True):
        first, second = checkpoint.load_checkpoint(ours)[0], checkpoint.load_checkpoint(theirs)[0]
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_full_disk_leaves_the_models_that_were_kept(
    tmp_path: Path, make_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path / "run")
    recipe = make_recipe(training={"epochs": 3, "keep_checkpoints": 1})
    write = checkpoint.write_atomically

    def full(path: Path, content: bytes) -> None:
        if path == run.step_file(2 * 13):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", full)
        with pytest.raises(OSError, match="No space left"):
            train(recipe, run)
    assert run.step_files() == [run.step_file(13)]
    checkpoint.load_checkpoint(run.step_file(13))


def test_a_damaged_file_of_a_run_is_one_line_on_resumption(tmp_path: Path, make_recipe: Make) -> None:
    reward = {"name": "cider", "normalize": "batch"}
    loss = {"name": "tok_seq_lazy", "alpha": 0.4, "token_alpha": 0.3, "reward": reward}
    recipe, run = make_recipe(loss=loss, training={"max_steps": 3}), RunDirectory(tmp_path / "run")
    train(recipe, run)
    best = run.best.read_bytes()
    for file, content in ((run.table_file, b"x" * 50), (run.cider_file, b""), (run.last, best)):
        before = file.read_bytes()
        file.write_bytes(content)
        with pytest.raises(RecipeError, match=file.name.replace(".", r"\.")) as caught:
            train(recipe, run, resume=True)
        assert "\n" not in str(caught.value)
        file.write_bytes(before)
    train(recipe, run, resume=True)
    (run.path / "vocabulary.target.json").unlink()
    with pytest.raises(RecipeError, match=r"run has no vocabulary\.target\.json"):
        train(recipe, run, resume=True)


def test_the_metric_that_chooses_can_be_chosen(tmp_path: Path, make_recipe: Make) -> None:
    run = RunDirectory(tmp_path / "run")
    train(make_recipe(training={"epochs": 5, "metric": "loss"}), run)
    validated = [line for line in run.metrics() if "validation_loss" in line]
    best = min(validated, key=lambda line: line["validation_loss"])
    assert checkpoint.load_checkpoint(run.best)[1]["step"] == best["step"]
    assert checkpoint.load_checkpoint(run.last)[1]["progress"]["best"] == -best["validation_loss"]
    other = RunDirectory(tmp_path / "other")
    with pytest.raises(RecipeError, match=r"training\.metric must be one of loss, bleu, got 'bleu_signature'"):
        train(make_recipe(training={"metric": "bleu_signature"}), other)
    assert not other.path.exists()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="/proc says how much memory a process has")
def test_memory_is_flat(tmp_path: Path, make_recipe: Make) -> None:
    """A tensor of a batch's states is 64 KiB here: kept at each step, it would add 12 MiB."""
    loss = {"name": "tok_seq_lazy", "alpha": 0.4, "token_alpha": 0.3, "num_samples": 4, "reward": {"name": "bleu"}}
    sizes = dict.fromkeys(("embedding", "encoder", "decoder", "attention"), 64)
    recipe = make_recipe(loss=loss, model=sizes, training={"batch_size": 64, "epochs": 60, "checkpoint_every": 0})
    resident: list[int] = []

    class Measured(RunDirectory):
        """Notes the memory at each line of ``metrics.jsonl``."""

        @property
        def metrics_file(self) -> Path:  # type: ignore[override]
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
            return self.path / "metrics.jsonl"

        @metrics_file.setter
        def metrics_file(self, path: Path) -> None: ...

    train(recipe, Measured(tmp_path / "run"))
    third = len(resident) // 3  # what torch and the allocator set up
    assert len(resident) > 150
    assert max(resident[third:]) - resident[third] < 5 * 2**20


def test_a_loss_that_is_no_number_ends_the_run(
    tmp_path: Path, make_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = trainer.build_loss
    monkeypatch.setattr(trainer, "build_loss", lambda *given: lambda *batch: build(*given)(*batch) * math.nan)
    with pytest.raises(RunError, match=r"training diverged: the loss is nan before step \d+"):
        train(make_recipe(), RunDirectory(tmp_path / "run"))


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_weights_that_are_not_finite_make_no_table(
    tmp_path: Path, make_recipe: Make, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    begin = Trainer._begin_epoch

    def spoilt(self: Trainer) -> None:
        with torch.no_grad():
            self.model.classifier.weight[7, 0] = weight if self.progress.epoch else 0.0
        begin(self)

    monkeypatch.setattr(Trainer, "_begin_epoch", spoilt)
    with pytest.raises(RunError, match=r"training diverged: the classifier has weights that are not finite before st"):
        train(make_recipe(loss=CHANGING), RunDirectory(tmp_path / "run"))


def test_patience_ends_a_run(tmp_path: Path, make_recipe: Make) -> None:
    recipe = make_recipe(training={"epochs": 9, "patience": 2}, optimizer={"lr": 1e-9})
    run = RunDirectory(tmp_path / "run")
    train(recipe, run)
    assert sum("validation_bleu" in line for line in run.metrics()) == 3


def test_a_run_is_not_overwritten_by_accident(tmp_path: Path, make_recipe: Make) -> None:
    recipe, run = make_recipe(training={"max_steps": 2}), RunDirectory(tmp_path / "run")
    train(recipe, run)
    with pytest.raises(RecipeError, match="--resume or start anew with --overwrite"):
        train(recipe, run)
    before = run.metrics()
    train(make_recipe(training={"max_steps": 3}), run, overwrite=True)
    assert [line["step"] for line in run.metrics()] == [2, 3] != [line["step"] for line in before]


def test_resuming_with_another_recipe_is_refused(tmp_path: Path, make_recipe: Make) -> None:
    run = RunDirectory(tmp_path / "run")
    train(make_recipe(training={"max_steps": 2}), run)
    with pytest.raises(RecipeError, match=r"loss\.alpha is 0\.0 there and 0\.5 in the recipe"):
        train(make_recipe(loss={"alpha": 0.5}), run, resume=True)
    with pytest.raises(RecipeError, match="is not a run"):
        train(make_recipe(), RunDirectory(tmp_path / "nothing"), resume=True)


@pytest.mark.parametrize("content", [None, b"", bytes(1000)])
def test_resuming_without_the_best_checkpoint_is_refused_before_training(
    tmp_path: Path, make_recipe: Make, content: bytes | None
) -> None:
    run = RunDirectory(tmp_path / "run")
    train(make_recipe(training={"max_steps": 2}), run)
    before = run.metrics()
    run.best.unlink()
    if content is not None:
        run.best.write_bytes(content)
    with pytest.raises(RecipeError, match=r"best\.safetensors"):
        train(make_recipe(training={"max_steps": 4}), run, resume=True)
    assert run.metrics() == before


def test_validation_loss_is_that_of_mle_whatever_is_trained(tmp_path: Path, make_recipe: Make) -> None:
    found = []
    for name in ("mle", "label_smoothing"):
        recipe = make_recipe(loss={"name": name, "label_smoothing": 0.3 * (name != "mle")}, optimizer={"lr": 1e-9})
        run = RunDirectory(tmp_path / name)
        train(recipe, run)
        found.append(run.metrics()[-1]["validation_loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def grown(path: Path, words: str) -> None:
    with path.open("a") as file:
        file.write(f"{words.upper()}\t{words}\n")


@pytest.fixture
def tsv(tmp_path: Path, corpus: Path) -> dict[str, Any]:
    """Return the data section of pairs in one file, of which parts are held out."""
    lines = (corpus / "train.low").read_text().splitlines()
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{line.upper()}\t{line}\n" for line in lines))
    data = {"format": "tsv", "train": str(path), "columns": ["up", "low"], "held_out": {"validation": 10, "test": 10}}
    return {**data, "validation": None, "test": {}}


def test_data_that_have_grown_are_noticed_on_resumption(tmp_path: Path, make_recipe: Make, tsv: dict[str, Any]) -> None:
    recipe, run = make_recipe(data=tsv, training={"max_steps": 2}), RunDirectory(tmp_path / "run")
    train(recipe, run)
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    grown(tmp_path / "pairs.tsv", "red red red red dog")
    with pytest.raises(
        RecipeError, match=r"the data of train are not those .* tested may have been trained on"
    ) as caught:
        train(recipe, run, resume=True)
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()} == before
    with pytest.raises(RecipeError, match=r"the data of test are not those"):
        open_task(run, "test")


def test_data_may_move_and_be_packed(tmp_path: Path, make_recipe: Make, tsv: dict[str, Any]) -> None:
    run, moved = RunDirectory(tmp_path / "run"), tmp_path / "moved" / "pairs.tsv.gz"
    train(make_recipe(data=tsv, training={"max_steps": 2}), run)
    moved.parent.mkdir()
    moved.write_bytes(gzip.compress((tmp_path / "pairs.tsv").read_bytes()))
    (tmp_path / "pairs.tsv").unlink()
    train(make_recipe(data={**tsv, "train": str(moved)}, training={"max_steps": 3}), run, resume=True)
    assert run.recipe().data.train == str(moved), "and the run knows where"
    assert run.recipe().training.max_steps == 3
    open_task(run, "test")


def test_a_vocabulary_in_another_order_is_noticed(tmp_path: Path, make_recipe: Make) -> None:
    recipe, run = make_recipe(training={"max_steps": 2}), RunDirectory(tmp_path / "run")
    train(recipe, run)
    file = run.path / "vocabulary.target.json"
    content = json.loads(file.read_text())
    content["words"][4], content["words"][5] = content["words"][5], content["words"][4]
    file.write_text(json.dumps(content))
    for ask in (lambda: train(recipe, run, resume=True), lambda: open_task(run, "test")):
        with pytest.raises(RecipeError, match=r"vocabulary\.target\.json was changed since the run began"):
            ask()


def test_without_a_test_split_the_validation_part_is_reported(
    tmp_path: Path, make_recipe: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path / "run")
    scores = train(make_recipe(data={"test": {}}, training={"max_steps": 2}), run)
    assert scores.keys() == {"validation"}
    assert "Scores on validation" in (run.path / "report.html").read_text()
    said = capsys.readouterr().err.splitlines()
    assert f"report: {run.path / 'report.html'}" in said
    assert f"best checkpoint: {run.best}" in said


def test_a_run_lists_all_that_it_writes(tmp_path: Path, make_recipe: Make) -> None:
    loss = {"name": "tok_seq_lazy", "alpha": 0.4, "token_alpha": 0.3, "reward": {"name": "cider", "normalize": "batch"}}
    run = RunDirectory(tmp_path / "run")
    train(make_recipe(loss=loss, training={"keep_checkpoints": 1}), run)
    written = {file.relative_to(run.path).as_posix() for file in run.path.rglob("*") if file.is_file()}
    assert written == {*run.folder.names(), "run.json"}
    assert run.finished
    marker = run.folder.facts()
    assert marker["fingerprints"].keys() == {"train", "validation", "test", "vocabulary.source", "vocabulary.target"}


@pytest.mark.parametrize("end", ["before", "after"])
def test_what_is_the_users_survives_all(tmp_path: Path, make_recipe: Make, end: str) -> None:
    recipe, run = make_recipe(training={"max_steps": 2, "keep_checkpoints": 1}), RunDirectory(tmp_path / "run")
    train(recipe, run)
    mine = [run.path / name for name in ("notes", "checkpoints/mine.safetensors", "checkpoints/step_9.safetensors")]
    for path in mine:
        path.write_text("mine")
    if end == "before":  # as if it had been killed before its first checkpoint
        for file in (run.last, run.best, run.metrics_file):
            file.unlink()
    train(recipe, run, resume=True)
    train(recipe, run, overwrite=True)
    assert [path.read_text() for path in mine] == ["mine"] * 3


def test_a_folder_that_is_no_run_survives_training(tmp_path: Path, make_recipe: Make) -> None:
    (tmp_path / "recipe.yaml").write_text("task: translation")
    (tmp_path / "thesis.tex").write_text("years of work")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(RecipeError, match="not a run"):
            train(make_recipe(), RunDirectory(tmp_path), **options)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["recipe.yaml", "thesis.tex"]


def test_a_users_file_in_the_way_is_said_before_training(tmp_path: Path, make_recipe: Make) -> None:
    run = RunDirectory(tmp_path / "run")
    train(make_recipe(training={"max_steps": 2}), run)
    before = run.metrics_file.read_bytes()
    (run.path / "hypotheses.late.txt").write_text("mine")
    tests = dict.fromkeys(("test", "late"), make_recipe().data.test["test"])
    recipe = make_recipe(data={"test": tests}, training={"max_steps": 3})
    for options in ({"resume": True}, {"overwrite": True}):
        with pytest.raises(RecipeError, match=r"hypotheses\.late\.txt is not of smoothloss and in the way"):
            train(recipe, run, **options)
    assert run.metrics_file.read_bytes() == before
    assert (run.path / "hypotheses.late.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["a/b", "..", "a\0b", "", "x" * 250])
def test_a_split_that_can_name_no_file_is_refused_before_training(tmp_path: Path, make_recipe: Make, name: str) -> None:
    path = make_recipe().data.test["test"]
    with pytest.raises(RecipeError) as caught:
        train(make_recipe(data={"test": {name: path}}), RunDirectory(tmp_path / "run"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_second_process_gets_one_line(tmp_path: Path, make_recipe: Make) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.lock():
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(RecipeError, match="is in use, another process is writing there"):
                train(make_recipe(), run, **options)


def test_a_kill_while_old_models_are_removed_leaves_no_name_of_them(tmp_path: Path, make_recipe: Make) -> None:
    recipe, run = make_recipe(training={"keep_checkpoints": 1}), RunDirectory(tmp_path / "run")
    train(recipe, run)
    names = run.folder.names()
    run.folder.claim(["checkpoints/step_0000000001.safetensors"])
    train(recipe, run, resume=True)
    assert sorted(run.folder.names()) == sorted(names)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_checkpoint_of_an_earlier_version_is_gone_on_with(tmp_path: Path, make_recipe: Make, processes: int) -> None:
    """It holds the random states of its processes, and from their number follows how many batches made a step."""
    run = RunDirectory(tmp_path / "run")
    train(make_recipe(training={"max_steps": 2, "accumulate": 2}), run)
    tensors, state = checkpoint.load_checkpoint(run.last)
    del state["width"]
    tensors["random.cpu"] = torch.zeros(processes, 5056, dtype=torch.uint8)
    checkpoint.save_checkpoint(run.last, tensors, state)
    train(make_recipe(training={"epochs": 1, "accumulate": 2, "log_every": 2}), run, resume=True)
    # Of 13 batches 4 are done; then 9 in steps of 2 or 4.
    assert checkpoint.load_checkpoint(run.last)[1]["progress"]["step"] == 2 + {1: 5, 2: 3}[processes]
