"""``smoothloss reproduce TABLE``: the runs behind a table of the paper, and the table.

A table is a YAML file with the fields of :class:`Table`. Its runs lie under the output directory as ``<row>/seed<n>``;
those that are done are skipped and those that were interrupted go on, so the same command can be given again and again.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from smoothloss._files import write_atomically
from smoothloss_trainer import report
from smoothloss_trainer.checkpoint import write_json
from smoothloss_trainer.comparison import recipe_values
from smoothloss_trainer.config import Recipe
from smoothloss_trainer.ensemble_rows import EnsembleRow, score
from smoothloss_trainer.errors import RecipeError, RunError
from smoothloss_trainer.files import expand_path
from smoothloss_trainer.folder import folder_of_runs
from smoothloss_trainer.models import open_task
from smoothloss_trainer.processes import Children, last_words
from smoothloss_trainer.provenance import loss_settings, settings_note
from smoothloss_trainer.recipe import load_recipe
from smoothloss_trainer.recorded import Finished, Recorded, of_ensemble, of_run, read, take
from smoothloss_trainer.result_table import Result, base_ms_of, cells, headings, legend, markdown
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.run_table import FILES, Table, TableRow, load_table, override_words
from smoothloss_trainer.schema import paths_of
from smoothloss_trainer.significance import interval, paired_bootstrap
from smoothloss_trainer.tasks import task_class


@dataclass(frozen=True)
class Run:
    """One training run of a table."""

    row: str
    seed: int
    recipe: Path
    overrides: list[str]
    directory: RunDirectory
    teacher: Run | None = None

    def is_done(self, split: str) -> bool:
        """Whether it was trained to its end and scored."""
        return (self.directory.path / f"scores.{split}.json").is_file() and self.directory.finished

    def wanted(self) -> Recipe:
        """The recipe that the table asks for."""
        return load_recipe(self.recipe, ["--seed", str(self.seed), *self.overrides])

    def in_table(self, recipe: Recipe) -> Recipe:
        """The recipe as a table tells it, whose rows have one for all seeds: a teacher is called by its row."""
        if self.teacher is None:
            return recipe
        teacher = replace(recipe.loss.teacher, runs=[self.teacher.row])
        return replace(recipe, loss=replace(recipe.loss, teacher=teacher))

    def words(self) -> list[str]:
        """What ``smoothloss train`` is told, to train it from where it stands."""
        words = [str(self.recipe), "--out", str(self.directory.path), "--seed", str(self.seed), *self.overrides]
        return [*words, "--resume"] if self.directory.folder.is_marked else words


@dataclass(frozen=True)
class Plan:
    """What a table needs, and where."""

    table: Table
    runs: list[Run]
    ensembles: list[EnsembleRow]
    out: Path

    def done(self) -> list[Run]:
        """The runs that are done."""
        return [run for run in self.runs if run.is_done(self.table.split)]

    def score_ensembles(self) -> None:
        """Score those whose models are all there."""
        for each in self.ensembles:
            members = [run for run in self.done() if run.row == each.of]
            if len(members) == len(each.seeds) and not each.is_done(self.table.split):
                score([run.directory.path for run in members], each.folder, self.table.split)


def reproduce(
    path: Path,
    out: Path,
    *,
    rows: Sequence[str] = (),
    seeds: Sequence[int] = (),
    jobs: int = 1,
    overrides: Sequence[str] = (),
    train: bool = True,
    recorded: Sequence[Path] = (),
    any_code: bool = False,
) -> Path:
    """Train what is missing of a table, and write ``table.md``, ``table.json`` and ``report.html`` of what is there.

    Args:
        path: The table's file.
        out: Gets the runs and the table.
        rows: Only these rows; all when empty. The baseline is always among them.
        seeds: Instead of the table's.
        jobs: Runs trained side by side, the machine's cores shared out among them.
        overrides: Changes to every recipe, as on the command line.
        train: False only writes the table.
        recorded: Files ``table.json`` of other machines. Their runs are taken for the table's where recipe, data and
            code agree; what is not taken is said, and trained here.
        any_code: Take runs of other code too; the table's note says which.

    Returns:
        The Markdown table's path.

    Raises:
        RecipeError: when the table or a recipe is wrong, an environment variable of a path is not set, or a run that
            is there is of another recipe, before anything is trained; when the data have no such split, or the scores
            no such metric, once the first run is trained; when ``out`` holds something else, or another process writes
            there.
        RunError: when a run failed, after the others were trained and the table was written.
    """
    table = load_table(path)
    table.seeds = list(seeds) or table.seeds
    if len({*table.seeds}) < len(table.seeds):
        raise RecipeError(f"seeds must differ from each other, got {', '.join(map(str, table.seeds))}")
    table.rows = _chosen(table, rows)
    runs = _runs(table, path.parent, out, overrides)
    ensembles = [
        EnsembleRow.below(out, row, config.ensemble, table.seeds)
        for row, config in table.rows.items()
        if config.ensemble is not None and len(table.seeds) > 1
    ]
    plan = Plan(table, runs, ensembles, out)
    recipes = {(run.row, run.seed): run.wanted() for run in runs}
    for run in runs:  # what is wrong is said before anything starts
        recipe = recipes[run.row, run.seed]
        if run.directory.folder.is_marked and run.directory.recipe_file.is_file():
            # A table must not mix runs of then with those of now.
            run.directory.check_same(recipe)
            if run.is_done(table.split):
                run.directory.check_result(recipe)
    found = [each for file in recorded for each in read(file, table.split)]
    names = [*FILES, *(_log(run).relative_to(out).as_posix() for run in runs)]
    # The table of runs of an earlier version, which has no list of its files.
    known = FILES if not train and (out / "table.json").is_file() else ()
    with folder_of_runs(out, "reproduce", names, known):
        data = _fingerprints(plan, found, train=train) if found else {}
        return _reproduce(plan, jobs, _taken(plan, recipes, found, data, train=train, any_code=any_code), train=train)


def _taken(
    plan: Plan,
    recipes: Mapping[tuple[str, int], Recipe],
    found: Sequence[Finished],
    data: Mapping[str, str],
    *,
    train: bool,
    any_code: bool,
) -> Recorded:
    """What records have of a table that is not there."""
    first = plan.table.seeds[0]
    lacking = {(run.row, run.seed): run.in_table(recipes[run.row, run.seed]) for run in plan.runs}
    lacking |= {(each.key, first): lacking[each.of, first] for each in plan.ensembles}
    for run in plan.done():
        del lacking[run.row, run.seed]
    for each in plan.ensembles:
        if each.is_done(plan.table.split):
            del lacking[each.key, first]
    members = {(each.key, first): each.seeds for each in plan.ensembles}
    recorded = take(found, lacking, data, members, any_code=any_code)
    for run in reversed(plan.runs) if train else ():
        there = run.is_done(plan.table.split) or (run.row, run.seed) in recorded.runs
        if run.teacher is not None and not there:  # it is trained here, and no record has its teacher's model
            recorded.drop(run.teacher.row, run.teacher.seed)
    return recorded


def _fingerprints(plan: Plan, found: Sequence[Finished], *, train: bool) -> dict[str, str]:
    """Those of the data that are here, as far as records have them: of a run that is done, or read anew."""
    done = plan.done()
    if done:
        return dict(done[0].directory.folder.facts().get("fingerprints", {}))
    if not train:
        return {}
    recipe = plan.runs[0].wanted()
    task = task_class(recipe.task)(recipe)
    return {part: task.fingerprint(part) for part in found[0].fingerprints}


def _reproduce(plan: Plan, jobs: int, recorded: Recorded, *, train: bool) -> Path:
    split = plan.table.split

    def finish(run: Run) -> None:
        if not run.is_done(split):  # training scores the test splits
            score([run.directory.path], run.directory.path, split)
        plan.score_ensembles()
        _write(plan, recorded)

    lacking = [run for run in plan.runs if not run.is_done(split) and (run.row, run.seed) not in recorded.runs]
    failed = []
    if train:
        for run in lacking:  # a variable that is not set would stop all of them, one after the other
            for path in paths_of(run.wanted()):
                expand_path(path)
        plan.score_ensembles()
        failed = _train_all(lacking, jobs, finish, lambda run: run.is_done(split))
    written = _write(plan, recorded)
    if failed:
        raise RunError("; ".join(failed))
    return written


def _chosen(table: Table, rows: Sequence[str]) -> dict[str, TableRow]:
    unknown = [row for row in rows if row not in table.rows]
    if unknown:
        raise RecipeError(f"--rows must be some of {', '.join(table.rows)}, got {unknown[0]!r}")
    chosen = {*(rows or table.rows), table.baseline}
    while more := {name for key in chosen for name in table.rows[key].needs} - chosen:
        chosen |= more
    return {key: row for key, row in table.rows.items() if key in chosen}


def _runs(table: Table, folder: Path, out: Path, overrides: Sequence[str]) -> list[Run]:
    """The runs of a table whose file is in a folder, teachers before those that learn from them."""
    runs: dict[tuple[str, int], Run] = {}
    for seed in table.seeds:
        for key, row in table.rows.items():
            if row.recipe is None:
                continue
            teacher = None if row.teacher is None else runs[row.teacher, seed]
            words = override_words(table.overrides | row.overrides)
            if teacher is not None:
                words += ["--loss.teacher.runs", json.dumps([str(teacher.directory.path.absolute())])]
            place = RunDirectory(out / key / f"seed{seed}")
            runs[key, seed] = Run(key, seed, folder / row.recipe, [*words, *overrides], place, teacher)
    return list(runs.values())


def _train_all(runs: list[Run], jobs: int, finish: Callable[[Run], None], is_done: Callable[[Run], bool]) -> list[str]:
    """Train the runs, ``jobs`` at a time, each after its teacher.

    Returns:
        A line for each that failed; ``finish`` is called for each other.
    """
    waiting, failed = list(runs), []
    running: list[tuple[Run, subprocess.Popen[bytes]]] = []
    with Children() as children:  # each goes on from its last checkpoint next time
        while waiting or running:
            ready = [run for run in waiting if run.teacher is None or is_done(run.teacher)]
            for run in ready[: max(1, jobs) - len(running)]:
                waiting.remove(run)
                running.append((run, children.start(run.words(), _log(run), jobs)))
            if not running:
                failed += [f"{run.row}, seed {run.seed} has no teacher, which failed" for run in waiting]
                break
            ended = [(run, process) for run, process in running if process.poll() is not None]
            for run, process in ended:
                running.remove((run, process))
                if process.returncode:
                    failed.append(f"{run.row}, seed {run.seed} failed: {last_words(_log(run))} ({_log(run)})")
                else:
                    finish(run)
            if not ended:
                time.sleep(0.2)
    return failed


def _log(run: Run) -> Path:
    return run.directory.path.with_suffix(".log")


def _write(plan: Plan, recorded: Recorded) -> Path:
    """Write the table of the runs that are done, here or elsewhere."""
    table, out, here = plan.table, plan.out, plan.done()
    done = sorted([*_finished(plan, here), *recorded.runs.values()], key=lambda each: table.seeds.index(each.seed))
    results = _results(table, done)
    table = replace(table, note=_note(table, done, recorded.other_code))
    text = f"# {table.title}\n\n{markdown(table, results)}\n"
    write_atomically(out / "table.md", text.encode())
    content = {"title": table.title, "split": table.split, "rows": [asdict(result) for result in results]}
    environments = {each.row: each.environment for each in done}
    write_json(out / "table.json", {**content, "note": table.note, "environments": environments})
    shown = [run for run in here if run.seed == table.seeds[0]]
    if shown:
        _write_report(table, results, [run.directory for run in shown], out)
    return out / "table.md"


def _finished(plan: Plan, here: list[Run]) -> list[Finished]:
    if not here:
        return []
    split = plan.table.split
    task = open_task(here[0].directory, split)
    for run in here:
        run.directory.check_data(task, [split])
    found = [of_run(run.row, run.seed, run.directory, task, split) for run in here]
    found = [replace(each, recipe=run.in_table(each.recipe)) for run, each in zip(here, found, strict=True)]
    for each in plan.ensembles:
        members = [one for one in found if one.row == each.of]
        if each.is_done(split) and len(members) == len(each.seeds):
            found.append(of_ensemble(each.key, members, each.folder, task, split))
    return found


def _results(table: Table, done: list[Finished]) -> list[Result]:
    by_row = {key: [each for each in done if each.row == key] for key in table.rows}
    baseline = by_row[table.baseline]
    found = []
    for key, row in table.rows.items():
        if not by_row[key]:
            continue
        scores = [each.scores for each in by_row[key]]
        for metric in table.metrics:
            if not any(metric in values for values in scores):
                raise RecipeError(f"metrics must be some of {', '.join(scores[0])}, got {metric!r}")
        by_metric = {metric: [values[metric] for values in scores if metric in values] for metric in table.metrics}
        first = by_row[key][0]
        metric_of, own = task_class(first.recipe.task).metric_of, _statistics(by_row[key])
        compared = baseline and key != table.baseline
        comparison = paired_bootstrap(metric_of, own, _statistics(baseline)) if compared else None
        found.append(
            Result(
                key, row.label or key, by_metric, row.paper, [each.step_ms for each in by_row[key]], comparison,
                interval=interval(metric_of, own), seeds=[each.seed for each in by_row[key]],
                loss=loss_settings(first.recipe), recipe=recipe_values(first.recipe), fingerprints=first.fingerprints,
                runs=[each.entry() for each in by_row[key]],
            )
        )  # fmt: skip
    return found


def _statistics(runs: list[Finished]) -> Tensor:
    """``(S, N, K)`` what the metric adds up, for each run and input."""
    return torch.stack([each.statistics for each in runs])


def missing(table: Table, done: list[Finished]) -> list[str]:
    """What of a table is not there yet: the rows that lack the same seeds in one line."""
    there = {(each.row, each.seed) for each in done}
    rows: dict[str, list[str]] = defaultdict(list)
    for key, row in table.rows.items():
        wanted = table.seeds if row.ensemble is None else table.seeds[:1]
        seeds = ", ".join(str(seed) for seed in wanted if (key, seed) not in there)
        rows[seeds].append(row.label or key)
    return [f"seed {seeds} of {'; '.join(labels)}" for seeds, labels in rows.items() if seeds]


def _note(table: Table, done: list[Finished], other_code: Mapping[str, Sequence[str]]) -> str:
    """The table's own note, what its runs were trained with, and what is missing or of other code."""
    labels = {key: row.label or key for key, row in table.rows.items()}
    recipes = {labels[key]: [each.recipe for each in done if each.row == key] for key in table.rows}
    lacking = missing(table, done)
    gaps = " ".join(f"Not there yet: {each}." for each in lacking)
    groups = "; ".join(f"{', '.join(names)} ({code})" for code, names in other_code.items())
    others = f"Of other code than the rest: {groups}." if groups else ""
    return " ".join(part for part in (table.note, settings_note(recipes), gaps, others) if part)


def _write_report(table: Table, results: list[Result], runs: list[RunDirectory], out: Path) -> None:
    base_ms = base_ms_of(table, results)
    rows = [cells(table, result, base_ms) for result in results]
    section = report.section(table.title, headings(table), rows, legend(table))
    introduction = f"Curves, examples and settings below are of seed {table.seeds[0]}."
    report.write(
        runs,
        out / "report.html",
        title=table.title,
        introduction=introduction,
        split=table.split,
        sections=[section],
    )
