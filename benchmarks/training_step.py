"""Time of the trainer's step on recipes, of one or two source trees in turns, on one machine.

    python -m benchmarks.training_step multi30k/mle coco_labels/mle
    python -m benchmarks.training_step multi30k/mle --against ../before --out benchmarks/results/training_step.json

A worker for each tree does the same steps on the same batches, now one, now the other, so that whatever else the
machine does falls on both. What is told are medians, the best times, and the median of the ratios of neighbours.

`products_ms` is a bound from below: the operations of a step's matrix products, at the rate that the largest product of
the classifier reaches alone on this machine. A step cannot be faster than that with the same mathematics.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import write_json

_WORKER = """
import sys, time, tempfile
sys.path.insert(0, sys.argv[1])
from smoothloss_trainer import loop
from smoothloss_trainer.distributed import Processes
from smoothloss_trainer.recipe import load_recipe
from smoothloss_trainer.run import RunDirectory
recipe = load_recipe(sys.argv[2], sys.argv[3:])
with tempfile.TemporaryDirectory() as folder:
    trainer = loop._open(recipe, RunDirectory(folder + "/run"), Processes("cpu"), opened=False)[0]
    plan = trainer.task.train_plan(0)
    steps = 0
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    counter = FlopCounterMode(display=False)
    with counter:
        for batch in plan[:4]:
            trainer._step([batch])
    weight = trainer.model.classifier.weight.detach()
    states = torch.randn(trainer.task.train_batch(plan[0]).target.numel(), weight.shape[1])
    best = 1e9
    for _ in range(10):
        begin = time.perf_counter()
        states @ weight.T
        best = min(best, time.perf_counter() - begin)
    rate = 2 * states.numel() * weight.shape[0] / best
    print(counter.get_total_flops() / 4, 1000 * counter.get_total_flops() / 4 / rate, flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        for _ in range(int(line)):
            trainer._step([plan[steps % 4]])
            steps += 1
        print(time.perf_counter() - begin, flush=True)
"""


class Worker:
    """A process that trains with the sources of a tree."""

    def __init__(self, tree: Path, recipe: str, words: list[str]) -> None:
        command = [sys.executable, "-c", _WORKER, str(tree), recipe, *words]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=tree, env=environment)
        assert self._process.stdout is not None
        self.flops, self.products_ms = map(float, self._process.stdout.readline().split())

    def seconds(self, steps: int) -> float:
        """The time of so many steps."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def in_turns(workers: list[Worker], rounds: int, steps: int) -> list[list[float]]:
    """Milliseconds a step of each worker, a list for each round; the workers end."""
    for worker in workers:
        worker.seconds(4)  # a step on each of its batches
    times = [[1000 * worker.seconds(steps) / steps for worker in workers] for _ in range(rounds)]
    for worker in workers:
        worker.close()
    return times


def measure(recipe: str, trees: list[Path], words: list[str], rounds: int, steps: int) -> dict[str, Any]:
    """Milliseconds a step of each tree, and how many times faster the first one is than the second."""
    workers = [Worker(tree, recipe, words) for tree in trees]
    times = in_turns(workers, rounds, steps)
    found: dict[str, Any] = {"recipe": recipe, "ms": statistics.median(row[0] for row in times)}
    found |= {"gflop": workers[0].flops / 1e9, "products_ms": workers[0].products_ms}
    if len(trees) > 1:
        found["ms_before"] = statistics.median(row[1] for row in times)
        found["faster"] = statistics.median(row[1] / row[0] for row in times)
        found["best_ms"], found["best_ms_before"] = (min(row[number] for row in times) for number in range(2))
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=["multi30k/mle", "coco_labels/mle", "coco_boxes/mle"])
    parser.add_argument("--against", type=Path, help="another source tree, with its compiled modules")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=3, help="of a round")
    parser.add_argument("--out", type=Path, help="a JSON file")
    options, words = parser.parse_known_args()
    here = Path(__file__).resolve().parent.parent
    trees = [here] if options.against is None else [here, options.against.resolve()]
    rows = []
    for recipe in options.recipes:
        rows.append(measure(recipe, trees, words, options.rounds, options.steps))
        print(json.dumps(rows[-1]), flush=True)
    if options.out:
        write_json(options.out, torch.device("cpu"), rows)


if __name__ == "__main__":
    main()
