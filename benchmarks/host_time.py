"""What a call costs the host: losses so small (8 x 64) that nothing but overhead is measured, beside torch's own.

One thread, forward and backward, all in one process and interleaved. ``python -m benchmarks.host_time [--out FILE]``
writes the rows to ``benchmarks/results/host_time_cpu.json`` by default.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import smoothloss.functional as F
from benchmarks.measure import Row, environment

ROWS, CLASSES, SIZE, ENTRIES, SAMPLES = 8, 64, 32, 4, 3
ROUNDS, CALLS, WARMUP = 1500, 8, 60
RESULTS = Path(__file__).parent / "results" / "host_time_cpu.json"
# The yardstick of each case, and how many times its time the case may take.
GOALS = {"labels": ("torch", 3.0), "sparse": ("torch", 3.5), "lazy": ("torch", 5.0), "linear": ("torch linear", 3.5)}


def cases() -> dict[str, tuple[Callable[[], Tensor], list[Tensor]]]:
    """Return for each case the loss and what it is differentiated in."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, CLASSES, generator=generator).requires_grad_()
    target = torch.randint(CLASSES, (ROWS,), generator=generator)
    hidden = torch.randn(ROWS, SIZE, generator=generator).requires_grad_()
    weight = torch.randn(CLASSES, SIZE, generator=generator).requires_grad_()
    indices = torch.randint(CLASSES, (ROWS, ENTRIES), generator=generator)
    weights = torch.rand(ROWS, ENTRIES, generator=generator)
    batch = 2, ROWS // 2
    states = torch.randn(*batch, CLASSES, generator=generator).requires_grad_()
    truth = torch.randint(CLASSES, batch, generator=generator)
    samples = torch.randint(CLASSES, (SAMPLES, *batch), generator=generator)
    omega = torch.rand(SAMPLES, batch[0], generator=generator).softmax(0)
    theirs = torch.nn.functional
    return {
        "torch": (lambda: theirs.cross_entropy(logits, target), [logits]),
        "labels": (lambda: F.cross_entropy(logits, target), [logits]),
        "sparse": (lambda: F.sparse_cross_entropy(logits, indices, weights), [logits]),
        "lazy": (lambda: F.lazy_sequence_cross_entropy(states, truth, samples, omega, alpha=0.4), [states]),
        "torch linear": (lambda: theirs.cross_entropy(theirs.linear(hidden, weight), target), [hidden, weight]),
        "linear": (lambda: F.linear_cross_entropy(hidden, weight, target), [hidden, weight]),
    }


def seconds(step: Callable[[], object]) -> float:
    """Return how long one call takes, of a few."""
    start = time.perf_counter()
    for _ in range(CALLS):
        step()
    return (time.perf_counter() - start) / CALLS


def measure(rounds: int = ROUNDS) -> list[Row]:
    """Return a row for each case, in microseconds, and how many times its yardstick it takes."""
    torch.set_num_threads(1)
    steps = {
        name: lambda loss=loss, leaves=leaves: torch.autograd.grad(loss(), leaves)
        for name, (loss, leaves) in cases().items()
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + WARMUP):
        for name, step in steps.items():
            taken = seconds(step)
            if number >= WARMUP:
                times[name].append(taken * 1e6)
    rows = []
    for name, values in times.items():
        yardstick, goal = GOALS.get(name, (name, None))
        tenths = statistics.quantiles(values, n=10)
        # The lowest tenth: whatever else the machine does only adds to a time.
        ratio = tenths[0] / statistics.quantiles(times[yardstick], n=10)[0]
        row = {"case": name, "us_p10": round(tenths[0], 2), "us_median": round(statistics.median(values), 2)}
        rows.append({**row, "yardstick": yardstick, "times": round(ratio, 3), "goal": goal})
    return rows


def main() -> None:
    """Measure, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of the rows (default: %(default)s)")
    arguments = parser.parse_args()
    rows = measure()
    for row in rows:
        print(f"{row['case']:14} {row['us_p10']:8.1f} us   {row['times']:5.2f} x {row['yardstick']}")
    shape = {"rows": ROWS, "classes": CLASSES, "size": SIZE, "entries": ENTRIES, "samples": SAMPLES}
    document = {"environment": environment(torch.device("cpu")), "shape": shape, "rows": rows}
    arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
