"""Runs contenders against each other on one shape: times, floors, errors, memory and launches as rows."""

from __future__ import annotations

import contextlib
import gc
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import measure
from benchmarks.measure import Row
from benchmarks.peers import Step
from benchmarks.problems import NotRunnableError, Problem, Shape, Vocabulary, errors, small

OURS, PEER, FLOOR = "smoothloss", "peer", "floor"
NO_TIME = "no time was left for it"


class Contender(NamedTuple):
    """Something to time.

    Attributes:
        what: its name in tables and plots.
        kind: OURS, PEER or FLOOR.
        prepare: makes a step for a problem, or raises `NotRunnableError`.
        target: name of the oracle its errors are measured against; empty for none.
        graph: whether it is also replayed as a CUDA graph where shapes are launch-bound.
    """

    what: str
    kind: str
    prepare: Callable[[Problem], Step]
    target: str = ""
    graph: bool = False


class Settings(NamedTuple):
    """How to measure: device, number of runs (None: by the device), seconds for all shapes of a suite."""

    device: torch.device
    repeats: int | None = None
    seconds: float = float("inf")

    @property
    def rounds(self) -> tuple[int, int]:
        """Return how many runs are made at most and at least."""
        if self.repeats is not None:
            return self.repeats, self.repeats
        return (50, 30) if self.device.type == "cuda" else (30, 3)


class Suite(NamedTuple):
    """A question: its name, "logits" or "linear" inputs, its contenders, and the floor that the times are held against.

    Attributes:
        floor: `what` of the floor.
        floor_factor: how many times the floor's traffic the op needs to move (or its arithmetic to do).
        products: matrix products of the op with the linear layer.
    """

    name: str
    kind: str
    contenders: list[Contender]
    floor: str
    floor_factor: float = 1.0
    products: int = 3


class Run:
    """One suite at one shape and dtype."""

    def __init__(self, suite: Suite, shape: Shape, dtype: torch.dtype, settings: Settings) -> None:
        self.suite, self.shape, self.dtype, self.settings = suite, shape, dtype, settings
        self.device = settings.device
        self.vocabulary = Vocabulary(shape.classes, self.device)
        first = self._problem(shape)
        # The logits count for the linear op too: it makes them.
        nbytes = sum(tensor.nbytes for tensor in first.inputs)
        nbytes += shape.rows * shape.classes * dtype.itemsize if suite.kind == "linear" else 0
        others = range(1, measure.input_sets(nbytes))
        self.problems = [first, *(self._problem(shape, seed) for seed in others)]
        self.steps: dict[str, list[Step]] = {}
        self.failures: dict[str, str] = {}

    def _problem(self, shape: Shape, seed: int = 0, vocabulary: Vocabulary | None = None) -> Problem:
        return Problem(self.suite.kind, shape, self.dtype, vocabulary or self.vocabulary, seed)

    def rows(self) -> list[Row]:
        """Prepare, time, measure; a row for every contender, whether it ran or not."""
        torch.compiler.reset()  # each shape is compiled for itself, and none counts against the limit of another
        for contender in self.suite.contenders:
            note(f"  {contender.what}")
            reason = attempt(lambda contender=contender: self._prepare(contender))
            if reason is not None:
                self.failures[contender.what] = reason
                release(self.device)
        ahead = measure.work_ahead(self.device)
        # Where the shape is launch-bound the host's share of the time is what an eager step costs.
        eager = self._timings(self.steps, None if self.shape.rnn else ahead)
        rows = self._as_rows(self.suite.contenders, "eager", eager, self.failures)
        if self.shape.rnn and self.device.type == "cuda":
            rows += self._graph_rows(ahead)
        for row in rows:
            self._compare(row, rows)
        self._inspect(rows)
        return rows

    def _prepare(self, contender: Contender) -> None:
        steps = [contender.prepare(problem) for problem in self.problems]
        steps[0]()  # compiles what compiles, and fails here if it fails
        self.steps[contender.what] = steps

    def _timings(self, steps: dict[str, list[Step]], ahead: measure.Function | None) -> dict[str, Row]:
        functions = {what: measure.rotating(sets, first) for first, (what, sets) in enumerate(steps.items())}
        most, least = self.settings.rounds
        # A CPU needs none beyond the trial of each step, and a round can take a minute.
        warmup = 3 if self.device.type == "cuda" else int(len(self.problems) > 1)
        return measure.interleaved(
            functions, self.device, most, warmup, least=least, seconds=self._seconds(), ahead=ahead
        )

    def _seconds(self) -> float:
        """Return after how many seconds the timing of one shape ends on its own."""
        return min(self.settings.seconds, 20.0 if self.device.type == "cuda" else 60.0)

    def _as_rows(
        self, contenders: list[Contender], mode: str, timings: dict[str, Row], failures: dict[str, str]
    ) -> list[Row]:
        head = {"suite": self.suite.name, **self.shape.label, "dtype": str(self.dtype).removeprefix("torch.")}
        rows = []
        for contender in contenders:
            row = head | {"what": contender.what, "kind": contender.kind, "mode": mode}
            if contender.what in timings:
                setting = getattr(self.steps[contender.what][0], "setting", None)
                rows.append(row | timings[contender.what] | ({} if setting is None else {"setting": setting}))
            else:
                rows.append(row | {"not_run": failures[contender.what]})
        return rows

    def _graph_rows(self, ahead: measure.Function | None) -> list[Row]:
        """Time the replay of CUDA graphs; on the device alone, because a graph is there to hide the host."""
        contenders = [contender for contender in self.suite.contenders if contender.graph]
        replays: dict[str, list[Step]] = {}
        failures = dict(self.failures)

        def capture(what: str) -> None:
            replays[what] = [measure.replay(one) for one in self.steps[what]]

        for what in (contender.what for contender in contenders if contender.what in self.steps):
            note(f"  {what}, graph")
            reason = attempt(lambda what=what: capture(what))
            if reason is not None:
                failures[what] = reason
        return self._as_rows(contenders, "graph", self._timings(replays, ahead), failures)

    def _compare(self, row: Row, rows: list[Row]) -> None:
        """Add rates, and the share of the floor."""
        if "ms" not in row:
            return
        n, v, d = self.shape.rows, self.shape.classes, self.shape.hidden
        if self.suite.kind == "linear":
            row["tflops"] = 2e-9 * self.suite.products * n * v * d / row["ms"]
        else:
            factor = 2 if row["kind"] == FLOOR else 2 * self.suite.floor_factor
            row["gb_per_s"] = factor * 1e-6 * n * v * self.dtype.itemsize / row["ms"]
        floor = next((r for r in rows if (r["what"], r["mode"]) == (self.suite.floor, row["mode"])), {})
        if row["kind"] != FLOOR and "ms" in floor:
            row["of_floor"] = self.suite.floor_factor * floor["ms"] / row["ms"]

    def _inspect(self, rows: list[Row]) -> None:
        """Add memory, launches and errors of each contender that ran."""
        shape = small(self.shape)
        problem = self._problem(shape, vocabulary=Vocabulary(shape.classes, self.device))
        for row, contender in zip(rows, self.suite.contenders, strict=False):  # the eager rows come first
            if contender.what in self.steps and contender.kind != FLOOR:
                reason = attempt(lambda row=row, contender=contender: self._inspect_one(row, contender, problem))
                if reason is not None:
                    row["not_inspected"] = reason

    def _inspect_one(self, row: Row, contender: Contender, problem: Problem) -> None:
        one = self.steps[contender.what][0]
        row["extra_mib"] = extra_memory(one, self.device)
        row["launches"] = measure.launches(one, self.device)
        if contender.target:
            row.update(errors(problem, contender.target, contender.prepare(problem)()))


def attempt(action: Callable[[], None]) -> str | None:
    """Run `action`; return why it could not run, opening with "failed" where nobody expected that; or None."""
    try:
        action()
    except NotRunnableError as error:
        return str(error)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    except Exception as error:  # whatever a peer raises is the reason why its row is empty
        first_line = next(iter(str(error).strip().splitlines()), "")
        return f"failed: {type(error).__name__}: {first_line[:200]}"
    return None


def extra_memory(one: Step, device: torch.device) -> float | None:
    """Return the MiB that a step needs at its peak beyond its inputs and the gradients that it returns."""
    results: list[Tensor] = []
    peak = measure.peak_memory(lambda: results.extend(one()), device)
    if peak is None:
        return None
    known = {tensor.untyped_storage().data_ptr() for tensor in one.inputs}  # type: ignore[attr-defined]
    grads = [tensor for tensor in results[1:] if tensor.untyped_storage().data_ptr() not in known]
    return max(0.0, peak - sum(grad.nbytes for grad in grads) / 2**20)


def run_suite(suite: Callable[[torch.device], Suite], shapes: list[Shape], dtypes: list[torch.dtype],
              settings: Settings) -> list[Row]:  # fmt: skip
    """Run a suite at all shapes and dtypes; shapes that the budget leaves no time for are rows that say so."""
    rows: list[Row] = []
    begin = time.perf_counter()
    made = suite(settings.device)
    for shape in shapes:
        for dtype in dtypes:
            left = settings.seconds - (time.perf_counter() - begin)
            note(f"{made.name}, {shape.name}, {dtype}")
            if left > 0:
                rows += Run(made, shape, dtype, settings._replace(seconds=left)).rows()
            else:
                rows += _unmeasured(made, shape, dtype, NO_TIME)
            release(settings.device)
    return rows


def _unmeasured(suite: Suite, shape: Shape, dtype: torch.dtype, reason: str) -> list[Row]:
    head = {"suite": suite.name, **shape.label, "dtype": str(dtype).removeprefix("torch.")}
    return [head | {"what": c.what, "kind": c.kind, "mode": "eager", "not_run": reason} for c in suite.contenders]


def broken(row: Row) -> bool:
    """Return whether the row is one of ours and something in it went wrong."""
    reasons = (row.get("not_run"), row.get("not_inspected"))
    return row.get("kind") == OURS and any(str(reason).startswith("failed") for reason in reasons)


def release(device: torch.device) -> None:
    """Give memory back between shapes, so that none starves the next."""
    gc.collect()
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


def note(line: str) -> None:
    """Tell on stderr what is running."""
    print(line, file=sys.stderr, flush=True)
