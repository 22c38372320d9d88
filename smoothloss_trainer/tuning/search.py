"""Trials: training runs that Optuna chooses and prunes, trained beside each other."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smoothloss_trainer.errors import RecipeError, RunError
from smoothloss_trainer.folder import Folder, folder_of_runs
from smoothloss_trainer.packages import optional_package
from smoothloss_trainer.processes import Children, last_words
from smoothloss_trainer.recipe import load_recipe
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.tasks import task_class
from smoothloss_trainer.tuning.results import FILES, Result, write_results
from smoothloss_trainer.tuning.space import Space, load_space, words

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

STORAGE = "study.db"
WITHOUT_TESTS = ("--training.tests", "false")
_STARTUP_TRIALS = 5  # drawn at random, and run to their end


@dataclass(frozen=True)
class Search:
    """What is searched.

    Args:
        recipe: Its file.
        space: What its keys may be.
        out: The folder.
        overrides: Changes to the recipe, as on the command line.
        metric: The validation score that is tuned on.
        lower_is_better: Whether the least is the best.
    """

    recipe: Path
    space: Space
    out: Path
    overrides: list[str]
    metric: str
    lower_is_better: bool

    def better(self, one: float, other: float) -> bool:
        """Whether the first of two scores is the better one."""
        return one < other if self.lower_is_better else one > other


@dataclass
class _Running:
    trial: Trial
    run: RunDirectory
    process: subprocess.Popen[bytes]
    reported: set[int] = field(default_factory=set)


def tune(
    recipe: Path, space: Path, out: Path, *, trials: int = 20, workers: int = 1, overrides: Sequence[str] = ()
) -> Path:
    """Search the space until there are so many trials, and write what was found.

    Args:
        recipe: The recipe's file.
        space: The space's file.
        out: Gets the storage, the runs, ``tune.md``, ``tune.json``, ``tune.png``, ``report.html`` and ``best.yaml``.
        trials: How many there are to be in the end, those of earlier calls among them.
        workers: Trials beside each other, the machine's cores shared out among them.
        overrides: Changes to the recipe, as on the command line.

    Returns:
        The table's path.

    Raises:
        RecipeError: when recipe or space is wrong, ``out`` holds something else or a search of another recipe or space,
            or another process writes there.
        RunError: when Optuna is not installed, or no trial came to its end.
    """
    optuna = optional_package("optuna", "smoothloss tune", "tune")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    overrides = [*overrides, *WITHOUT_TESTS]
    search = _search(recipe, load_space(space, recipe, overrides), out, overrides)
    with folder_of_runs(out, "tune", [*FILES, STORAGE]):
        study = _open(optuna, search, workers)
        _take_up(optuna, study)
        try:
            _run(optuna, study, search, trials, workers)
        finally:
            results = [_result(search, trial) for trial in study.trials]
            write_results(search.metric, search.lower_is_better, list(search.space), results, out, recipe)
    if not any(result.state == "complete" for result in results):
        failures = [result.error for result in results if result.error]
        raise RunError(f"no trial came to its end: {failures[-1] if failures else 'all were pruned'}")
    return out / "tune.md"


def _search(recipe: Path, space: Space, out: Path, overrides: list[str]) -> Search:
    loaded = load_recipe(recipe, overrides)
    metric = loaded.training.metric or task_class(loaded.task).metric
    return Search(recipe, space, out, overrides, metric, lower_is_better=metric == "loss")


def _open(optuna: Any, search: Search, workers: int) -> Study:
    """The study of the folder, begun or taken up.

    Raises:
        RecipeError: when it is of another recipe or space.
    """
    loaded = load_recipe(search.recipe, search.overrides)
    epochs = loaded.training.epochs
    study: Study = optuna.create_study(
        storage=f"sqlite:///{search.out / STORAGE}",
        study_name="tune",
        load_if_exists=True,
        direction="minimize" if search.lower_is_better else "maximize",
        sampler=optuna.samplers.TPESampler(
            seed=loaded.seed, n_startup_trials=_STARTUP_TRIALS, constant_liar=workers > 1
        ),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=_STARTUP_TRIALS, n_warmup_steps=max(1, epochs // 4)),
    )
    about = {"space": {key: str(domain) for key, domain in search.space.items()}, "metric": search.metric}
    for name, value in about.items():
        before = study.user_attrs.get(name)
        if before not in (None, value):
            raise RecipeError(f"{search.out} is a search with {name} {before}, not {value}: choose another --out")
        if before is None:
            study.set_user_attr(name, value)
    return study


def _take_up(optuna: Any, study: Study) -> None:
    """Let trials that were running when a search was killed go on: with their settings, in their folders."""
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params, user_attrs={"folder": trial.user_attrs.get("folder", "")})


def _run(optuna: Any, study: Study, search: Search, trials: int, workers: int) -> None:
    running: list[_Running] = []
    with Children() as children:
        while True:
            while len(running) < workers and len(_ended(study)) + len(running) < trials:
                started = _start(optuna, study, search, children, workers)
                running += [started] if started else []
            if not running:
                return
            for each in list(running):
                if _follow(optuna, study, search, each):
                    running.remove(each)
            time.sleep(0.2)


def _ended(study: Study) -> list[FrozenTrial]:
    """The trials that count: not those that a kill cut off, which are trained to their end as others."""
    return [trial for trial in study.trials if trial.state.is_finished() and _state(trial) != "cut off"]


def _start(optuna: Any, study: Study, search: Search, children: Children, workers: int) -> _Running | None:
    trial = study.ask()
    values = {key: domain.suggest(trial, key) for key, domain in search.space.items()}
    name = trial.user_attrs.get("folder") or f"trial{trial.number:04}"
    trial.set_user_attr("folder", name)
    chosen = [*search.overrides, *words(values)]
    run = RunDirectory(search.out / name)
    try:
        recipe = load_recipe(search.recipe, chosen)
        if run.folder.is_marked and run.recipe_file.is_file():
            run.check_same(recipe)
    except RecipeError as error:
        trial.set_user_attr("error", str(error))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        return None
    Folder(search.out, "runs").claim([_log(run).name])
    resume = ["--resume"] if run.folder.is_marked else []
    given = [str(search.recipe), "--out", str(run.path), *chosen, *resume]
    return _Running(trial, run, children.start(given, _log(run), workers))


def _log(run: RunDirectory) -> Path:
    return run.path.with_suffix(".log")


def _follow(optuna: Any, study: Study, search: Search, each: _Running) -> bool:
    """Report new validations of a running trial; returns whether it has ended, or was ended."""
    states = optuna.trial.TrialState
    status = each.process.poll()  # before the scores are read: what it wrote last is among them
    scores = list(_scores(search, each.run))
    for epoch, score in scores:
        if epoch not in each.reported:
            each.reported.add(epoch)
            each.trial.report(score, epoch)
    if status is None:
        if not (scores and each.trial.should_prune()):
            return False
        each.process.terminate()  # it writes a checkpoint and ends
        each.process.wait()
        study.tell(each.trial, state=states.PRUNED)
    elif status or not scores:
        said = last_words(_log(each.run))
        each.trial.set_user_attr("error", f"{each.run.path.name} failed: {said} ({_log(each.run)})")
        study.tell(each.trial, state=states.FAIL)
    else:
        best = min if search.lower_is_better else max
        study.tell(each.trial, best(score for _, score in scores))
    return True


def _scores(search: Search, run: RunDirectory) -> Iterator[tuple[int, float]]:
    """The epoch and score of each validation so far."""
    for line in run.metrics():
        key = f"validation_{search.metric}"
        if key in line:
            yield line["epoch"], float(line[key])


def _state(trial: FrozenTrial) -> str:
    """``complete``, ``pruned``, ``running``, ``waiting``, ``failed``, or ``cut off`` by a kill."""
    name = trial.state.name.lower()
    if name == "fail":
        return "failed" if "error" in trial.user_attrs else "cut off"
    return name


def _result(search: Search, trial: FrozenTrial) -> Result:
    scores = dict(sorted(trial.intermediate_values.items()))
    best = (min if search.lower_is_better else max)(scores.values(), default=None)
    folder = trial.user_attrs.get("folder", "")
    return Result(
        number=trial.number,
        state=_state(trial),
        score=best,
        epochs=len(scores),
        values={key: trial.params.get(key) for key in search.space},
        folder=folder,
        error=trial.user_attrs.get("error", ""),
    )
