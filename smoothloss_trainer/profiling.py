"""Where the time of a recipe's training steps goes."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from smoothloss_trainer.config import Recipe
from smoothloss_trainer.distributed import Processes
from smoothloss_trainer.loop import open_trainer
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.trainer import Trainer

PARTS = {
    "data": "data",
    "sampling": "draw",
    "reward": "reward",
    "teacher": "teacher",
    "forward": "forward",
    "loss": "loss",
    "backward": "backward",
    "replay": "replay",
    "optimizer": "optimizer",
}
WARM_UP = 3  # steps that nobody counts: memory is got, kernels are chosen


def profile(recipe: Recipe, steps: int) -> dict[str, Any]:
    """Train so many steps, and tell where their time went. Nothing is written.

    Returns:
        ``ms`` a step (the median of the clock's) and ``tokens_per_second``; ``parts``: for each ``ms`` (the median)
        and ``share`` of the whole, ``other`` being what is in none of them; ``launches`` of kernels a step on a CUDA
        device, elsewhere None; and what was measured: ``recipe``, ``device``, ``processes``, ``threads``, ``steps``.
        Of several processes each tells of itself.
    """
    processes = Processes(recipe.device, recipe.training.parallel)
    with tempfile.TemporaryDirectory() as folder:
        trainer = open_trainer(recipe, RunDirectory(Path(folder) / "run"), processes)
        trainer.prepare()
        plan = trainer.task.train_plan(0)
        groups = [plan[start : start + trainer.width] for start in range(0, len(plan), trainer.width)]
        timed = [groups[number % len(groups)] for number in range(steps)]
        # Each shape is run and recorded before it is replayed.
        before = 2 * timed if recipe.training.graphs else [groups[number % len(groups)] for number in range(WARM_UP)]
        trainer.feed.begin([examples for group in before + timed for _, examples, _ in trainer._own(group)])
        for group in before:
            _time_step(trainer, group)
        trainer.progress.tokens = 0
        times = [_time_step(trainer, group) for group in timed]
        [tokens] = processes.sum([trainer.progress.tokens])
        trainer.feed.end()
        launches = _launches(trainer, timed[-1])
        processes.close()
    seconds = sum(total for total, _ in times)
    return {
        "recipe": recipe.name,
        "device": str(processes.device),
        "processes": processes.count,
        "threads": torch.get_num_threads(),
        "steps": steps,
        "tokens_per_second": tokens / seconds,
        **_summary(times),
        "launches": launches,
    }


def _time_step(trainer: Trainer, group: Any) -> tuple[float, dict[str, float]]:
    """Seconds of a step, and of its parts."""
    start = time.perf_counter()
    trainer._step(group)
    parts = trainer.stopwatch.seconds()  # waits for a GPU
    return time.perf_counter() - start, parts


def _summary(times: list[tuple[float, dict[str, float]]]) -> dict[str, Any]:
    total = statistics.median(each for each, _ in times)
    names = {name for _, parts in times for name in parts}
    rows = [
        {**parts, "other": max(0.0, whole - sum(parts.values()))}  # on a GPU the stream may be ahead of the clock
        for whole, parts in times
    ]
    shown = {PARTS[name]: name for name in PARTS if name in names} | {"other": "other"}
    medians = {word: statistics.median(row.get(name, 0.0) for row in rows) for word, name in shown.items()}
    everything = sum(medians.values())
    parts = {word: {"ms": 1000 * each, "share": each / everything} for word, each in medians.items()}
    return {"ms": 1000 * total, "parts": parts}


def _launches(trainer: Trainer, group: Any) -> int | None:
    """How many kernels and graphs a step puts on a CUDA device."""
    if trainer.device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        trainer._step(group)
        torch.cuda.synchronize()
    launching = ("LaunchKernel", "GraphLaunch")
    return sum(event.count for event in recorded.key_averages() if any(name in event.key for name in launching))


def table(found: dict[str, Any]) -> str:
    """The result as lines of a table."""
    place = f"{found['device']}, {found['processes']} processes of {found['threads']} threads, {found['steps']} steps"
    lines = [f"{found['recipe']} ({place})", f"{'part':<10}{'ms a step':>11}{'share':>9}"]
    lines += [f"{name:<10}{each['ms']:>11.2f}{each['share']:>9.1%}" for name, each in found["parts"].items()]
    lines.append(f"{'step':<10}{found['ms']:>11.2f}   {found['tokens_per_second']:,.0f} tokens a second")
    if found["launches"] is not None:
        lines.append(f"launches  {found['launches']:>11,}")
    return "\n".join(lines)
