"""Two processes of one thread beside one process of two: tokens a second of a recipe, in turns, with one global batch.

python -m benchmarks.training_processes multi30k/mle --out benchmarks/results/training_processes.json
python -m benchmarks.training_processes multi30k/mle --processes 2 --parallel ddp fsdp --steps 60
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.measure import Row, write_json


def _free_port() -> str:
    with socket.socket() as place:
        place.bind(("", 0))
        return str(place.getsockname()[1])


def tokens_per_second(recipe: str, words: list[str], processes: int, threads: int, steps: int) -> float:
    """Train in so many processes of so many threads; the median of what ``metrics.jsonl`` says after the first line."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "smoothloss_trainer", "train", recipe, "--out", str(out), *words]
        command += ["--training.max_steps", str(steps), "--training.log_every", str(max(1, steps // 6))]
        command += ["--device", "cpu", "--training.validate_every", "1000000"]
        shared = {
            **os.environ,
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": _free_port(),
            "OMP_NUM_THREADS": str(threads),
        }
        running = []
        for rank in range(processes):
            numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            quiet = subprocess.DEVNULL
            running.append(subprocess.Popen(command, env={**shared, **numbers}, stdout=quiet, stderr=quiet))
        lines = out / "metrics.jsonl"
        statuses = [process.wait() for process in running]
        if any(statuses) or not lines.exists():
            raise SystemExit(f"{recipe} in {processes} processes failed")
        rates = [json.loads(line).get("tokens_per_second") for line in lines.read_text().splitlines()]
    return statistics.median([rate for rate in rates if rate][1:])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="multi30k/mle")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--parallel", nargs="+", default=["ddp", "fsdp"])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file")
    options, words = parser.parse_known_args()
    count, rounds = options.processes, []
    alone = [*words, "--training.accumulate", str(count)]
    for _ in range(options.rounds):
        rates = {"one": tokens_per_second(options.recipe, alone, 1, count, options.steps)}
        for kind in options.parallel:
            shared = [*words, "--training.parallel", kind]
            rates[kind] = tokens_per_second(options.recipe, shared, count, 1, options.steps)
        rounds.append(rates)
        print(json.dumps(rates), flush=True)
    found: Row = {"recipe": options.recipe, "processes": count, "steps": options.steps}
    found |= {name: statistics.median(rates[name] for rates in rounds) for name in rounds[0]}
    found |= {f"{kind}_over_one": found[kind] / found["one"] for kind in options.parallel}
    print(json.dumps(found))
    if options.out:
        write_json(options.out, torch.device("cpu"), [found])


if __name__ == "__main__":
    main()
