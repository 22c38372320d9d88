"""The trials of ``smoothloss tune``: drawn by Optuna, trained as runs, kept in a storage file.

The folder holds, besides the runs ``trial<n>``: ``study.db``, Optuna's storage (SQLite); ``trial<n>.yaml`` and
``trial<n>.log``, the recipe and what its training said; and what :mod:`.results` writes. A trial that is under way when
the command is killed is noted as running in the storage, and the next command goes on with it from its last checkpoint.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smoothloss._files import write_atomically
from smoothloss_trainer.comparison import FREE_KEYS, recipe_values
from smoothloss_trainer.documents import dump_yaml, flat
from smoothloss_trainer.errors import RecipeError, RunError
from smoothloss_trainer.folder import folder_of_runs
from smoothloss_trainer.packages import optional_package
from smoothloss_trainer.processes import Children, last_words
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.tasks import task_class
from smoothloss_trainer.tuning import results
from smoothloss_trainer.tuning.space import Plan, read_plan, value_of

_LENGTHS = ("training.epochs", "training.max_steps", "training.max_minutes", "training.patience")
_WAIT = 0.2  # seconds between two looks at the trainings


@dataclass
class _Training:
    """A trial that is trained now."""

    trial: Any  # optuna.Trial
    process: subprocess.Popen[bytes]
    run: RunDirectory
    log: Path
    reported: int = 0  # validations that Optuna knows of


def tune(path: Path, out: Path, *, trials: int | None = None, workers: int = 1, overrides: Sequence[str] = ()) -> Path:
    """Try settings of a recipe on the validation part, and write ``tune.md``, its kin and the best ones as a recipe.

    Called again, it goes on: finished trials are kept, those under way go on from their last checkpoint, and more are
    drawn until there are ``trials``.

    Args:
        path: The recipe, which has a ``tune:`` section.
        out: Gets trials and results.
        trials: In place of the recipe's ``tune.trials``.
        workers: Trials trained side by side, the machine's cores shared out among them.
        overrides: Changes to the recipe, as on the command line.

    Returns:
        The Markdown table's path.

    Raises:
        RecipeError: when recipe or space are wrong, before anything is trained; when ``out`` holds something else,
            trials of another recipe or space, or another process writes there.
        RunError: when Optuna is not installed, or no trial has a score.
    """
    plan = read_plan(path, overrides)
    count = trials or plan.config.trials
    names = [*results.FILES, "study.db", *(f"trial{n}.{end}" for n in range(count) for end in ("yaml", "log"))]
    with folder_of_runs(out, "tune", names), _opened(plan, out) as study:
        _train(study, plan, out, count, workers)
        written = results.write(study, plan, path, out, overrides)
        if not results.ranked(study):
            raise RunError(f"no trial came to a score: {_why(study, out)}")
    return written


def _why(study: Any, out: Path) -> str:
    """What the last trial that failed said."""
    logs = [out / f"trial{trial.number}.log" for trial in study.trials]
    return next((last_words(log) for log in reversed(logs) if log.is_file()), "none was trained")


@contextmanager
def _opened(plan: Plan, out: Path) -> Iterator[Any]:
    """The study in ``study.db``, begun where there is none, while the context is open.

    Raises:
        RecipeError: when it is of another recipe or space, or no study.
    """
    optuna = optional_package("optuna", "smoothloss tune", "tune")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    from sqlalchemy import URL  # which comes with Optuna

    file = out / "study.db"
    begun = file.is_file()
    with ExitStack() as stack:
        try:
            # A path is not yet an address: what follows "?" in it would be taken for options, and lead to another file.
            address = URL.create("sqlite", database=str(file.resolve())).render_as_string()
            storage = optuna.storages.RDBStorage(address)
            # Python 3.13 warns of connections that are left to the garbage collector.
            stack.callback(storage.engine.dispose)
            stack.callback(storage.remove_session)
            study = _study(storage, plan)
        except Exception as error:  # SQLAlchemy's, of which there are many
            if not begun:
                raise
            reason = " ".join(str(error).split())[:200]
            raise RecipeError(f"{file} is damaged or no study ({reason}): choose another --out") from None
        _check_same(study, plan, out)
        if not begun:
            own = {key: value_of(plan.recipe, key) for key in plan.space}
            if all(_holds(plan.space[key], value) for key, value in own.items()):
                study.enqueue_trial(own)
        yield study


def _study(storage: Any, plan: Plan) -> Any:
    optuna, config = optional_package("optuna", "smoothloss tune", "tune"), plan.config
    study = optuna.create_study(
        storage=storage,
        study_name="smoothloss",
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(config.startup, config.warmup),
        load_if_exists=True,
    )
    study.sampler = optuna.samplers.TPESampler(seed=config.seed + len(study.trials), n_startup_trials=config.startup)
    return study


def _holds(distribution: Any, value: Any) -> bool:
    """Whether a value is one of those that may be drawn."""
    choices = getattr(distribution, "choices", None)
    if choices is not None:
        return value in choices
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and distribution.low <= value <= distribution.high


def _check_same(study: Any, plan: Plan, out: Path) -> None:
    """Refuse a study of another recipe or space; note those of a new one."""
    facts = flat(recipe_values(plan.recipe)) | {f"tune.space.{key}": value for key, value in plan.config.space.items()}
    facts = {key: value for key, value in facts.items() if key in _LENGTHS or not key.startswith(FREE_KEYS)}
    facts = json.loads(json.dumps(facts))
    known = study.user_attrs.get("recipe")
    if known is None:
        study.set_user_attr("recipe", facts)
        return
    for key in sorted({*facts, *known}):
        if facts.get(key) != known.get(key):
            there = f"{key} is {known.get(key)!r} there and {facts.get(key)!r} in the recipe"
            raise RecipeError(f"{out} holds the trials of another study, {there}: choose another --out")


def _train(study: Any, plan: Plan, out: Path, count: int, workers: int) -> None:
    """Train trials until there are ``count``; those that were under way come first."""
    states = optional_package("optuna", "smoothloss tune", "tune").trial.TrialState
    left = list(study.get_trials(deepcopy=False, states=(states.RUNNING,)))
    running: list[_Training] = []
    with Children() as children:
        while True:
            while len(running) < max(1, workers):
                trial = _next(study, plan, left, count)
                if trial is None:
                    break
                begun = _begin(trial, study, plan, out, children, workers)
                running += [begun] if begun else []
            if not running:
                return
            time.sleep(_WAIT)
            running = [each for each in running if not _look(each, study, plan)]


def _next(study: Any, plan: Plan, left: list[Any], count: int) -> Any:
    """A trial that was under way, or a new one; None: there are enough."""
    optuna = optional_package("optuna", "smoothloss tune", "tune")
    while left:
        frozen = left.pop(0)
        if set(frozen.params) == set(plan.space):
            return optuna.trial.Trial(study, frozen._trial_id)
        # Killed before all its settings were drawn.
        study.tell(frozen.number, state=optuna.trial.TrialState.FAIL)
    started = study.get_trials(deepcopy=False, states=tuple(set(optuna.trial.TrialState) - _waiting()))
    return study.ask(plan.space) if len(started) < count else None


def _waiting() -> set[Any]:
    return {optional_package("optuna", "smoothloss tune", "tune").trial.TrialState.WAITING}


def _begin(trial: Any, study: Any, plan: Plan, out: Path, children: Children, workers: int) -> _Training | None:
    """Start the training of a trial, or go on with it; None: its settings contradict each other."""
    states = optional_package("optuna", "smoothloss tune", "tune").trial.TrialState
    run, log = RunDirectory(out / f"trial{trial.number}"), out / f"trial{trial.number}.log"
    try:
        recipe = plan.recipe_of({**trial.params, "name": f"trial{trial.number}"})
    except RecipeError as error:
        write_atomically(log, f"{error}\n".encode())
        study.tell(trial, state=states.FAIL)
        return None
    file = out / f"trial{trial.number}.yaml"
    write_atomically(file, dump_yaml(recipe_values(recipe)).encode())
    words = [str(file), "--out", str(run.path)]
    words += ["--resume"] if run.folder.is_marked else []
    known = study.trials[trial.number].intermediate_values
    return _Training(trial, children.start(words, log, workers), run, log, len(known))


def _look(training: _Training, study: Any, plan: Plan) -> bool:
    """Tell Optuna what a training has come to; True when the trial is over."""
    states = optional_package("optuna", "smoothloss tune", "tune").trial.TrialState
    trial, status = training.trial, training.process.poll()  # before the scores, which a training writes before its end
    scores = validations(training.run, plan)
    for epoch, best in scores[training.reported :]:
        trial.report(best, epoch)
    fresh = len(scores) > training.reported
    training.reported = max(training.reported, len(scores))
    if status is None:
        at_end = bool(scores) and scores[-1][0] >= plan.recipe.training.epochs
        if not fresh or at_end or not trial.should_prune():
            return False
        training.process.terminate()
        training.process.wait()
        study.tell(trial, state=states.PRUNED)
    elif status == 0 and scores:
        study.tell(trial, scores[-1][1])
    else:
        study.tell(trial, state=states.FAIL)
    return True


def validations(run: RunDirectory, plan: Plan) -> list[tuple[int, float]]:
    """(epoch, best score so far) after each validation of a run; more is better."""
    key = f"validation_{plan.recipe.training.metric or task_class(plan.recipe.task).metric}"
    sign = -1.0 if key == "validation_loss" else 1.0
    found: list[tuple[int, float]] = []
    for line in run.metrics() if run.metrics_file.is_file() else []:
        if key in line:
            score = sign * float(line[key])
            found.append((int(line["epoch"]), max(score, found[-1][1]) if found else score))
    return found
