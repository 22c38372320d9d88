"""The table of a distillation run: means and deviations over seeds, in JSON and Markdown."""

from __future__ import annotations

import platform
import statistics
import subprocess
from pathlib import Path
from typing import Any

import torch

import smoothloss

Result = dict[str, Any]

HEADINGS = ("learns from", "perplexity", "entropy less loss, nats", "accuracy, %", "bytes a token", "seeds")


def environment() -> dict[str, str]:
    """Return what a figure means nothing without."""
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip()
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return {
        "device": names[0].split(": ", 1)[1] if names else platform.machine(),
        "torch": torch.__version__,
        "smoothloss": smoothloss.__version__,
        "commit": commit or "unknown",
    }


def summary(title: str, runs: list[Result], bytes_a_token: float | None) -> Result:
    """Return a row of the table: each figure's mean over the runs, its deviation where there are several."""
    figures = {
        "perplexity": [run["perplexity"] for run in runs],
        "entropy_less_loss": [run["entropy"] - run["loss"] for run in runs],
        "accuracy_percent": [100 * run["accuracy"] for run in runs],
    }
    return {
        "title": title,
        **{name: statistics.mean(values) for name, values in figures.items()},
        **{f"{name}_sd": statistics.stdev(values) for name, values in figures.items() if len(values) > 1},
        "bytes_a_token": bytes_a_token,
        "runs": runs,
    }


def markdown(rows: list[Result]) -> str:
    """Return the table."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    for row in rows:
        figures = (
            _figure(row, "perplexity", 2),
            _figure(row, "entropy_less_loss", 3),
            _figure(row, "accuracy_percent", 2),
        )
        size = "" if row["bytes_a_token"] is None else f"{row['bytes_a_token']:.1f}"
        lines.append("| " + " | ".join([row["title"], *figures, size, str(len(row["runs"]))]) + " |")
    return "\n".join([*lines, ""])


def _figure(row: Result, name: str, digits: int) -> str:
    deviation = row.get(f"{name}_sd")
    return f"{row[name]:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")
