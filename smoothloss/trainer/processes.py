"""Training runs as processes beside each other, sharing the machine's cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# Not `-m`, which looks into the working directory first: in the source folder that is a package without binaries.
_TRAIN = "import sys; sys.path[:] = filter(None, sys.path); from smoothloss.trainer.cli import main; sys.exit(main())"


def start_training(words: Sequence[str], log: Path, jobs: int) -> subprocess.Popen[bytes]:
    """Start ``smoothloss train WORDS`` as one of ``jobs`` processes; what it says is appended to a log."""
    threads = str(max(1, (os.cpu_count() or 1) // max(1, jobs)))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    command = [sys.executable, "-c", _TRAIN, "train", *words]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)


def last_words(log: Path) -> str:
    """The last line of a log that is not empty."""
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
