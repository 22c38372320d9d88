"""What the kernels are to reach on a GPU, and whether they do: a table from the rows that the suites wrote.

    python -m benchmarks.targets build/benchmarks/*.json

Every target is a ratio or a count from rows of one interleaved run. Where a row is missing the table says why.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks.linear import LIGER, LIGER_BEST, MATMULS, TOP_K
from benchmarks.logits import COPY, TORCH, name
from benchmarks.measure import Row, markdown
from benchmarks.problems import HARD, soft
from benchmarks.rewards import MODES, OURS_ON_GPU

OURS_HARD, OURS_SOFT = name(HARD), name(soft(64))
FRESH = (OURS_HARD, name(soft(21)), OURS_SOFT)
LAZY = "Tok-Seq, lazy, L = 5"
LARGE, LAUNCH_BOUND, LLM = ("32k", "64k", "llama3"), ("coco", "wmt"), "llama3"


class MissingError(Exception):
    """Why a value is not there."""


class Target(NamedTuple):
    """One target: its name, how its value is found, and the bound that the value must keep."""

    name: str
    value: Callable[[Rows], float]
    bound: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Return whether the value keeps the bound."""
        return value >= self.bound if self.at_least else value <= self.bound


class Rows:
    """The bfloat16 rows of all suites, and the rewards', found by suite, shape, name and mode."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = {
            (row["suite"], row["shape"], row["what"], row["mode"]): row
            for row in rows
            if row.get("suite") and row.get("dtype") in ("bfloat16", "int64") and "mode" in row
        }

    def get(self, suite: str, shape: str, what: str, key: str = "ms", mode: str = "eager") -> float:
        """Return a value of a row.

        Raises:
            MissingError: there is no such row, or it was not run.
        """
        row = self._rows.get((suite, shape, what, mode))
        if row is None:
            raise MissingError(f"no row: {suite}, {shape}, {what}, {mode}")
        if row.get(key) is None:
            reason = row.get("not_run") or row.get("not_inspected") or f"no {key}"
            raise MissingError(f"{shape}, {what}: {reason}")
        return float(row[key])

    def ratio(self, suite: str, shape: str, what: str, to: str, key: str = "ms") -> float:
        """Return the ratio of two rows' values."""
        return self.get(suite, shape, what, key) / self.get(suite, shape, to, key)


def _bandwidth(rows: Rows) -> float:
    return min(rows.get("logits", shape, what, "of_floor") for shape in LARGE for what in FRESH)


def _logits_soft_to_hard(rows: Rows) -> float:
    return max(rows.ratio("logits", shape, OURS_SOFT, OURS_HARD) for shape in LARGE)


def _rewards(rows: Rows, key: str) -> float:
    return max(rows.get("rewards", "samples", OURS_ON_GPU, key, mode) for mode in MODES)


def _step(rows: Rows, mode: str) -> float:
    return rows.get("lazy", "coco", LAZY, "relative_to_mle", mode)


def _launches(rows: Rows) -> float:
    return max(rows.get("logits", shape, what, "launches") for shape in LAUNCH_BOUND for what in FRESH)


def _replay(rows: Rows) -> float:
    """Return the largest time of a replay as a share of what it may take: twice the floor, or 20 us if that is more."""

    def share(shape: str, what: str) -> float:
        floor = rows.get("logits", shape, COPY, mode="graph")
        return rows.get("logits", shape, what, mode="graph") / max(2 * floor, 0.020)

    return max(share(shape, what) for shape in LAUNCH_BOUND for what in FRESH)


TARGETS = [
    Target("logits op: share of the copy bandwidth, smallest of V = 32k to 128k", _bandwidth, 0.85, at_least=True),
    Target("logits op: S = 64 to hard labels, largest of V = 32k to 128k", _logits_soft_to_hard, 1.03),
    Target(
        "linear op, 8192x4096x128256: share of the GEMM floor, hard labels",
        lambda rows: rows.ratio("linear", LLM, MATMULS, OURS_HARD),
        0.90,
        at_least=True,
    ),
    Target(
        "linear op, 8192x4096x128256: share of the GEMM floor, S = 64",
        lambda rows: rows.ratio("linear", LLM, MATMULS, OURS_SOFT),
        0.90,
        at_least=True,
    ),
    Target(
        "linear op: S = 64 to hard labels",
        lambda rows: rows.ratio("linear", LLM, OURS_SOFT, OURS_HARD),
        1.03,
    ),
    Target("linear op: time to Liger's, default chunks", lambda rows: rows.ratio("linear", LLM, OURS_HARD, LIGER), 1.0),
    Target(
        "linear op: time to Liger's, its best chunks",
        lambda rows: rows.ratio("linear", LLM, OURS_HARD, LIGER_BEST),
        1.05,
    ),
    Target(
        "linear op: times faster than plain PyTorch top-k, S = 64",
        lambda rows: rows.ratio("linear", LLM, TOP_K, OURS_SOFT),
        2.0,
        at_least=True,
    ),
    Target(
        "linear op: error of dW to Liger's",
        lambda rows: rows.ratio("linear", LLM, OURS_HARD, LIGER, "d_weight_error"),
        1 / 3,
    ),
    Target("logits op, RNN shapes: launches", _launches, 3),
    Target("logits op, RNN shapes: graph replay to twice the floor or 20 us", _replay, 1.0),
    Target("rewards of 320 candidates: ms of the slowest", lambda rows: _rewards(rows, "ms"), 0.1),
    Target("rewards of 320 candidates: launches of each", lambda rows: _rewards(rows, "launches"), 1),
    Target(
        "training step of lazy Tok-Seq, 1280 x 9800: time to MLE's",
        lambda rows: _step(rows, "training step"),
        1.05,
    ),
    Target(
        "training step of lazy Tok-Seq, 1280 x 9800, in a graph: time to MLE's",
        lambda rows: _step(rows, "training step, graph"),
        1.02,
    ),
    Target(
        "logits op, 1280 x 9800: time of an eager step to torch's",
        lambda rows: rows.ratio("logits", "coco", OURS_HARD, TORCH),
        1.0,
    ),
]


def evaluate(rows: Iterable[Row], targets: list[Target] = TARGETS) -> list[Row]:
    """Return for each target its name, bound, measured value (None and a reason where there is none) and verdict."""
    found = Rows(rows)
    results: list[Row] = []
    for target in targets:
        row: Row = {"target": target.name, "bound": f"{'>=' if target.at_least else '<='} {target.bound:.3g}"}
        try:
            value = target.value(found)
        except MissingError as error:
            results.append(row | {"measured": None, "verdict": "not measured", "reason": str(error)})
        else:
            verdict = "pass" if target.met(value) else "FAIL"
            results.append(row | {"measured": value, "verdict": verdict, "reason": ""})
    return results


def main(arguments: list[str] | None = None) -> int:
    """Print the table; return 1 when a target that was measured is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="JSON files that the suites wrote")
    files = [path for path in parser.parse_args(arguments).files if path.exists()]
    contents = [json.loads(path.read_text()) for path in files]
    rows = [row for content in contents if isinstance(content, dict) for row in content.get("rows", [])]
    results = evaluate(rows)
    columns = {"target": "target", "bound": "bound", "measured": "measured", "verdict": "verdict", "reason": "why not"}
    print(markdown(results, columns))
    return int(any(row["verdict"] == "FAIL" for row in results))


if __name__ == "__main__":
    raise SystemExit(main())
