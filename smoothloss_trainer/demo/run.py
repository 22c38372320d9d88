"""``smoothloss demo``: two runs side by side, the time of a step of each loss, and the report."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from smoothloss.similarity import SimilarityTable
from smoothloss_trainer import report
from smoothloss_trainer.commands.output import say
from smoothloss_trainer.config import LossConfig, LossName
from smoothloss_trainer.demo.task import DemoTask
from smoothloss_trainer.errors import RecipeError, RunError
from smoothloss_trainer.folder import folder_of_runs
from smoothloss_trainer.losses import build_loss
from smoothloss_trainer.processes import Children, last_words
from smoothloss_trainer.recipe import load_recipe
from smoothloss_trainer.run import RunDirectory

RECIPES = Path(__file__).parent
RUNS = ("mle", "tok_seq_lazy")
TIMED_STEPS = 30
TIMED_LOSSES: dict[str, LossName] = {
    "MLE": "mle",
    "Tok": "tok",
    "Seq, lazy": "seq_lazy",
    "Tok-Seq, lazy": "tok_seq_lazy",
    "Seq, exact": "seq",
}
WORDS = ("red", "blue", "circle", "moon", "big", "small", "left", "above", "inside", "lies", "background", "two")
TITLE = "Loss smoothing on little scenes"
INTRODUCTION = (
    "A captioner with top-down attention learns to describe rendered scenes from five captions each, drawn from a "
    "grammar rich in synonyms. It sees regions found in the pixels. One run was trained by maximum likelihood, the "
    "other with lazy Tok-Seq smoothing: the same data, model, number of steps and seed."
)


def run_demo(out: Path, overrides: Sequence[str] = ()) -> Path:
    """Train both recipes of the demo in parallel, one thread each at least, and write ``out/report.html``.

    Args:
        out: Gets a directory per run, its log, and the report. Runs that are there are replaced.
        overrides: Changes to both recipes, as on the command line: ``["--training.epochs", "2"]``.

    Returns:
        The report's path.

    Raises:
        RecipeError: when an override is wrong, ``out`` holds something else, or another process writes there.
        RunError: when a run fails; its last words are in the message.
    """
    for name in RUNS:  # what is wrong is said before anything starts
        RunDirectory(out / name).check(load_recipe(RECIPES / f"{name}.yaml", list(overrides)), overwrite=True)
    with folder_of_runs(out, "demo", ["report.html", *(f"{name}.log" for name in RUNS)]):
        return _run_demo(out, overrides)


def _run_demo(out: Path, overrides: Sequence[str]) -> Path:
    _train(out, overrides)
    runs = [RunDirectory(out / name) for name in RUNS]
    task = DemoTask(runs[0].recipe(), runs[0].vocabularies())
    times = step_times(task, runs[1])
    path = out / "report.html"
    report.write(runs, path, title=TITLE, introduction=INTRODUCTION, task=task, words=WORDS, step_times=times)
    say(str(path))
    return path


def _train(out: Path, overrides: Sequence[str]) -> None:
    """Both runs as processes of their own, their progress in one bar."""
    running: dict[str, subprocess.Popen[bytes]] = {}
    with Children() as children:
        for name in RUNS:
            log = out / f"{name}.log"
            log.unlink(missing_ok=True)
            words = [str(RECIPES / f"{name}.yaml"), "--out", str(out / name), "--overwrite", *overrides]
            running[name] = children.start(words, log, jobs=len(RUNS))
        _watch(out, running)


def _watch(out: Path, running: dict[str, subprocess.Popen[bytes]]) -> None:
    """Show how far the runs are until both have ended."""
    started = {name: time.time() for name in running}
    form = "{desc} {percentage:3.0f}% |{bar}| {elapsed}{postfix}"
    with tqdm(total=1.0, desc="training both", bar_format=form, dynamic_ncols=True, mininterval=1) as bar:
        while running:
            done: dict[str, float] = {}
            for name in RUNS:
                done[name] = _share_done(RunDirectory(out / name), started[name])
            bar.n = sum(done.values()) / len(RUNS)
            bar.set_postfix({name: f"{share:.0%}" for name, share in done.items()})
            for name, process in list(running.items()):
                if process.poll() is None:
                    continue
                if process.returncode:
                    log = out / f"{name}.log"
                    raise RunError(f"the run {name} failed, see {log}: {last_words(log)}")
                del running[name]
            time.sleep(0.3)


def _share_done(run: RunDirectory, started: float) -> float:
    """Share of the epochs that are done; 0 while the directory still holds an older run."""
    try:
        if run.recipe_file.stat().st_mtime < started:
            return 0.0
        lines, epochs = run.metrics(), run.recipe().training.epochs
    except (OSError, RecipeError):  # just being removed or written
        return 0.0
    return min(1.0, lines[-1]["epoch"] / epochs) if lines else 0.0


def step_times(task: DemoTask, smoothed: RunDirectory) -> dict[str, list[float]]:
    """Seconds of single training steps of each loss, on one thread, the losses taking turns.

    Args:
        task: Data and model.
        smoothed: The run whose loss settings and similarity table are used.
    """
    recipe = smoothed.recipe()
    table = SimilarityTable.load(smoothed.table_file, len(task.vocabulary))
    losses = {title: replace(recipe.loss, name=name) for title, name in TIMED_LOSSES.items()}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        steppers = {title: _Stepper(task, config, table) for title, config in losses.items()}
        plan = task.train_plan(0)
        times: dict[str, list[float]] = {title: [] for title in steppers}
        for number in range(TIMED_STEPS + 2):
            for title, stepper in steppers.items():
                seconds = stepper.step(plan[number % len(plan)])
                if number >= 2:  # the first ones warm up
                    times[title].append(seconds)
    finally:
        torch.set_num_threads(threads)
    return times


class _Stepper:
    """A fresh model and optimizer that train with one loss."""

    def __init__(self, task: DemoTask, config: LossConfig, table: SimilarityTable) -> None:
        self.task = task
        self.model = task.build_model().train()
        self.loss = build_loss(config, table, len(task.vocabulary))
        self.optimizer = torch.optim.Adam(self.model.parameters(), task.recipe.optimizer.lr, fused=True)
        self.generator = torch.Generator().manual_seed(task.recipe.seed)

    def step(self, examples: Sequence[int]) -> float:
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.model, self.task.train_batch(examples), self.generator).backward()
        self.optimizer.step()
        return time.perf_counter() - start
