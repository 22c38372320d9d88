"""How everything here is measured: interleaved runs, medians with percentiles, peak memory, and where it ran."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

import smoothloss

Row = dict[str, Any]


def environment(device: torch.device) -> Row:
    """Return device, versions and commit: what a figure means nothing without."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "smoothloss": smoothloss.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"


def interleaved(
    functions: Mapping[str, Callable[[], object]], device: torch.device, repeats: int, warmup: int = 2
) -> dict[str, Row]:
    """Time each function once a round, round after round, so that drift of the machine hits all alike.

    Returns:
        For each name the median and the 20th and 80th percentile in milliseconds, ``ms``, ``ms_p20``, ``ms_p80``.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_number in range(warmup + repeats):
        for name, function in functions.items():
            elapsed = _time_once(function, device)
            if round_number >= warmup:
                times[name].append(elapsed)
    return {name: _summary(values) for name, values in times.items()}


def _time_once(function: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        function()
        return 1e3 * (time.perf_counter() - start)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def _summary(values: list[float]) -> Row:
    deciles = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
    return {"ms": statistics.median(values), "ms_p20": deciles[1], "ms_p80": deciles[7], "runs": len(values)}


def peak_memory(function: Callable[[], object], device: torch.device) -> float | None:
    """Return the MiB that one call needs at its peak beyond what was there before; None where that cannot be seen."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        return None
    clear.write_text("5")  # Linux: the peak of the resident set starts again from here
    before = _status_kib(status, "VmRSS")
    function()
    return (_status_kib(status, "VmHWM") - before) / 1024


def _status_kib(status: Path, key: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key + ":"))


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
