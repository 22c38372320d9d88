"""Kill training and `reproduce` at random times, resume, and compare with what nobody killed.

    python tests/trainer/kill_campaign.py --kills 200 --seed 1

Each process is a fork that gets a SIGKILL, with all that it has started, at a random moment between its start and the
time that the whole takes. Then the same command goes on, until it has been killed a few times, and is left to end. What
it leaves must be, bit for bit, what a run leaves that nobody killed: weights, metrics (but for times), scores, outputs,
and no other file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml

from smoothloss._files import write_atomically
from smoothloss_trainer import processes, report
from smoothloss_trainer.checkpoint import load_checkpoint
from smoothloss_trainer.cli import main

WORDS = ["red", "green", "blue", "dog", "cat", "bird", "runs", "sleeps", "sings", "here"]
TIMES = {"seconds", "tokens_per_second", "time"}


def write_recipes(folder: Path) -> tuple[Path, Path]:
    """Write a corpus, a recipe that trains on it within a second, and a table of two such runs."""
    draw = random.Random(0)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(1, 6))) for _ in range(250)]
    (folder / "pairs.tsv").write_text("".join(f"{line.upper()}\t{line}\n" for line in lines))
    data = {"train": str(folder / "pairs.tsv"), "format": "tsv", "columns": ["up", "low"], "source": "up"}
    data |= {"target": "low", "held_out": {"validation": 20, "test": 20}, "min_count": 1}
    loss = {"name": "tok_seq_lazy", "alpha": 0.4, "token_alpha": 0.3, "tau": 0.5}
    training = {"epochs": 3, "batch_size": 16, "log_every": 2, "checkpoint_every": 3, "keep_checkpoints": 1}
    recipe = {
        "task": "translation",
        "device": "cpu",
        "data": data,
        "model": {"embedding": 16, "encoder": 16, "decoder": 16, "attention": 16, "dropout": 0.2},
        "optimizer": {"lr": 0.01},
        "training": training,
        "decoding": {"max_length": 10, "beam_size": 2},
        "loss": {**loss, "embeddings": {"dim": 8, "window": 3, "epochs": 2}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    rows = {"smooth": {"recipe": "recipe.yaml"}, "mle": {"recipe": "recipe.yaml", "overrides": {"loss.name": "mle"}}}
    table = {"title": "T", "rows": rows, "metrics": {"bleu": "BLEU"}, "baseline": "mle", "seeds": [1]}
    (folder / "table.yaml").write_text(yaml.safe_dump({**table, "overrides": {"training.epochs": 1}}))
    return folder / "recipe.yaml", folder / "table.yaml"


def fork(work: Callable[[], int], log: Path, *, group: bool = False) -> int:
    """Do ``work`` in a fork, with a process group of its own; returns its process id."""
    child = os.fork()
    if child:
        if group:  # here too: it may be killed before it has done so itself
            with suppress(ProcessLookupError, PermissionError):
                os.setpgid(child, child)
        return child
    code = 70
    try:
        if group:
            os.setpgid(0, 0)
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        code = work()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class Forked:
    """A fork that looks like a ``subprocess.Popen`` to `reproduce`, which saves importing torch again."""

    def __init__(self, words: Sequence[str], log: Path, jobs: int) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.child, self.returncode = fork(lambda: main(["train", *words]), log), None

    def poll(self) -> int | None:
        """The exit status, when it has ended."""
        if self.returncode is None and (found := os.waitpid(self.child, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(found[1])
        return self.returncode

    def terminate(self) -> None:
        """End it."""
        os.kill(self.child, signal.SIGTERM)

    def kill(self) -> None:
        """Kill it."""
        os.kill(self.child, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        while self.poll() is None:
            time.sleep(0.01)


def attempt(words: Sequence[str], log: Path, seconds: float | None) -> bool:
    """Run a command, killed after so many seconds; whether it had come to its end before."""
    child = fork(lambda: main(words), log, group=True)
    deadline = None if seconds is None else time.monotonic() + seconds
    while deadline is None or time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            assert code == 0, f"{' '.join(words)} ended with {code}: {log.read_text()[-2000:]}"
            return True
        time.sleep(0.003)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def phase(out: Path) -> str:
    """Where a run was killed, as its files tell."""
    if not (out / "run.json").is_file():
        return "before the marker"
    if not (out / "checkpoints" / "last.safetensors").is_file():
        return "before the first checkpoint"
    progress = load_checkpoint(out / "checkpoints" / "last.safetensors")[1]["progress"]
    if progress["finished"]:
        return "while testing"
    lines = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").is_file() else []
    return "while validating" if lines and "validation_loss" in lines[-1] else "while training"


def state(out: Path) -> dict[str, Any]:
    """All that must not depend on kills, by file."""
    found: dict[str, Any] = {}
    for path in sorted(file for file in out.rglob("*") if file.is_file()):
        name = path.relative_to(out).as_posix()
        if path.suffix == ".safetensors":
            tensors, about = load_checkpoint(path) if "checkpoints" in path.parts else ({}, {})
            about.get("progress", {}).pop("seconds", None)
            found[name] = ({key: tensor.numpy().tobytes() for key, tensor in tensors.items()}, about)
        elif path.name == "metrics.jsonl":
            lines = map(json.loads, path.read_text().splitlines())
            found[name] = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
        elif path.name == "run.json":
            marker = json.loads(path.read_text())
            found[name] = [sorted(marker["files"]), marker["fingerprints"], marker["finished"]]
        elif path.suffix == ".json" and path.name.startswith(("scores.", "hypotheses.", "vocabulary.")):
            found[name] = json.loads(path.read_text())
        elif path.suffix in (".txt", ".jsonl", ".yaml"):
            found[name] = path.read_text()
        else:  # reports, logs and environments hold times and commands
            found[name] = None
    return found


def campaign(kills: int, seed: int, folder: Path) -> str:
    """Kill so many times, a fourth of them in `reproduce`; returns what was found.

    Raises:
        AssertionError: when something came out differently.
    """
    recipe, table = write_recipes(folder)
    for name in ("train", "reproduce"):  # so that no fork imports them again
        import_module(f"smoothloss_trainer.commands.{name}")
    # Whose drawing takes longer than the training, and tells of times.
    report.write = lambda runs, path, **_: write_atomically(path, b"report")  # type: ignore[assignment]
    processes.start_training = Forked  # type: ignore[assignment]
    draw, where, done, rounds = random.Random(seed), Counter[str](), 0, Counter[str]()
    expected: dict[str, dict[str, Any]] = {}
    durations: dict[str, float] = {}
    for kind, words in (("train", ["train", str(recipe)]), ("reproduce", ["reproduce", str(table)])):
        attempt([*words, "--out", str(folder / f"first-{kind}")], folder / "log", None)  # fills the cache of vectors
        out, start = folder / f"whole-{kind}", time.monotonic()
        attempt([*words, "--out", str(out)], folder / "log", None)
        durations[kind] = time.monotonic() - start
        expected[kind] = state(out)
    while done < kills:
        kind = "reproduce" if draw.random() < 0.25 else "train"
        number = sum(rounds.values())
        out, log = folder / f"{kind}{number}", folder / f"log{number}"
        words = ["reproduce", str(table)] if kind == "reproduce" else ["train", str(recipe)]
        ended, left = False, min(kills - done, draw.randint(1, 5))
        while not ended:
            resumed = ["--resume"] if kind == "train" and (out / "run.json").is_file() else []
            # A third of them in the beginning, where most different files are written.
            limit = draw.uniform(0, durations[kind] * draw.choice((0.1, 1, 1))) if left else None
            ended = attempt([*words, "--out", str(out), *resumed], log, limit)
            if not ended:
                done, left = done + 1, left - 1
                where["in reproduce" if kind == "reproduce" else phase(out)] += 1
        found = state(out)
        differing = {key for key in {*found, *expected[kind]} if found.get(key, 0) != expected[kind].get(key, 0)}
        assert not differing, f"{out} after kills: {sorted(differing)} differ"
        rounds[kind] += 1
        sys.stderr.write(f"{done} kills, {dict(rounds)}, {dict(where)}\n")
    places = ", ".join(f"{count} {place}" for place, count in where.most_common())
    return f"{done} kills ({places}) in {dict(rounds)}: nothing came out differently"


def run() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", help="keep the runs here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        os.environ["SMOOTHLOSS_CACHE"] = str(folder / "cache")
        sys.stdout.write(f"{campaign(options.kills, options.seed, folder)}\n")


if __name__ == "__main__":
    run()
