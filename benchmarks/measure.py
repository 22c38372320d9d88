"""How everything here is measured: interleaved runs, medians with percentiles, memory, launches, and where it ran.

On CUDA a run is timed by device events. Given work to run `ahead`, the host is ahead of the device when the clock
starts, as it is in training, and the time is the device's; without it the time includes what the host needs to launch.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import smoothloss

Row = dict[str, Any]
Function = Callable[[], object]

_DISTRIBUTIONS = ("triton", "liger-kernel", "cut-cross-entropy", "quack-kernels")
_SETS_BYTES = 256 * 2**20  # several times any second-level cache of today
_AHEAD_BYTES = 512 * 2**20  # leaves nothing else in the cache
_AHEAD_CYCLES = 1 << 23  # about 5 ms, longer than the host needs to launch a step of ours


def environment(device: torch.device) -> Row:
    """Return device, versions and commit: what a figure means nothing without. COMMIT stands in where git is not."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "smoothloss": smoothloss.__version__,
        **{distribution: version(distribution) for distribution in _DISTRIBUTIONS},
        "commit": _commit(),
        "python": platform.python_version(),
    }


def version(distribution: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or os.environ.get("COMMIT", "unknown")


def input_sets(nbytes: int) -> int:
    """Return over how many sets of inputs of `nbytes` to rotate so that a run does not find its own in the cache."""
    return max(1, min(8, -(-_SETS_BYTES // max(nbytes, 1))))


def rotating(functions: Sequence[Function], first: int) -> Function:
    """Return a function that calls the given ones in turn, from number `first` on."""
    first %= len(functions)
    turns = itertools.cycle([*functions[first:], *functions[:first]])
    return lambda: next(turns)()


def work_ahead(device: torch.device) -> Function | None:
    """Return work that keeps a GPU busy for a moment and leaves its cache clean; None on other devices."""
    if device.type != "cuda":
        return None
    buffer = torch.randn(_AHEAD_BYTES // 4, device=device)

    def work() -> None:
        torch.cuda._sleep(_AHEAD_CYCLES)
        buffer.sum()

    return work


def interleaved(
    functions: Mapping[str, Function],
    device: torch.device,
    repeats: int,
    warmup: int = 2,
    *,
    least: int | None = None,
    seconds: float = float("inf"),
    ahead: Function | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Row]:
    """Time each function once a round, round after round, so that drift of the machine hits all alike.

    Args:
        functions: what to time.
        device: where they run.
        repeats: rounds that are timed.
        warmup: rounds before these.
        least: how many rounds are timed even when `seconds` have passed; all by default.
        seconds: when to stop early.
        ahead: work to launch before each run (see the module).
        clock: on the CPU; `time.process_time` counts what the process works, on a machine that does other things too.

    Returns:
        For each name the median and the 20th and 80th percentile in milliseconds, ``ms``, ``ms_p20``, ``ms_p80``.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    least, begin = repeats if least is None else least, time.perf_counter()
    # In another order each round: what runs before leaves its traces in caches, clocks and free memory.
    order, shuffler = list(functions), random.Random(0)
    for round_number in range(warmup + repeats):
        if round_number >= warmup + least and time.perf_counter() - begin > seconds:
            break
        shuffler.shuffle(order)
        for name in order:
            elapsed = time_once(functions[name], device, ahead, clock)
            if round_number >= warmup:
                times[name].append(elapsed)
    return {name: _summary(values) for name, values in times.items()}


def time_once(
    function: Function,
    device: torch.device,
    ahead: Function | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Return the milliseconds that one call takes."""
    if device.type != "cuda":
        start = clock()
        function()
        return 1e3 * (clock() - start)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    if ahead is not None:
        ahead()
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def _summary(values: list[float]) -> Row:
    deciles = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
    return {"ms": statistics.median(values), "ms_p20": deciles[1], "ms_p80": deciles[7], "runs": len(values)}


def peak_memory(function: Function, device: torch.device) -> float | None:
    """Return the MiB that one call needs at its peak beyond what was there before; None where that cannot be seen.

    On the CPU Linux counts resident pages on each processor apart, so that some MiB may be missing, and more where the
    system takes cold pages of files from the process while it runs. What lies free at the end of a heap that cannot
    shrink, since something else has moved the break, is used unseen: a process of its own has none.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        return None
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc: what the heap holds free would otherwise be used unseen
    clear.write_text("5")  # Linux: the peak of the resident set starts again from here
    before = _status_kib(status, "VmRSS")
    function()
    return (_status_kib(status, "VmHWM") - before) / 1024


def _status_kib(status: Path, key: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key + ":"))


def launches(function: Function, device: torch.device) -> int | None:
    """Return how many kernels, copies and fills one call puts on a GPU; None where that is not seen."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        function()
        torch.cuda.synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return count_launches(json.loads(path.read_text())["traceEvents"]) or None  # none: nothing was recorded


def count_launches(events: Sequence[Mapping[str, Any]]) -> int:
    """Return how many events of a profiler's trace ran on a GPU."""
    return sum(event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") for event in events)


def replay(function: Function) -> Function:
    """Capture a CUDA graph of one call and return what replays it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def markdown(rows: list[Row], columns: Mapping[str, str]) -> str:
    """Return rows as a Markdown table; `columns` maps keys to headings."""
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(key)) for key in columns) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_json(path: Path, device: torch.device, rows: list[Row]) -> None:
    """Write rows with the environment they were measured in, the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"environment": environment(device), "rows": rows}, indent=1) + "\n")
    part.replace(path)
