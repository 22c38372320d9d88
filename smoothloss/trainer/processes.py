"""Training runs as processes beside each other, sharing the machine's cores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

# Not `-m`, which looks into the working directory first: in the source folder that is a package without binaries.
_TRAIN = """import sys
sys.path[:] = filter(None, sys.path)
from smoothloss.trainer.processes import end_with
end_with({parent})
from smoothloss.trainer.cli import main
sys.exit(main())
"""


def start_training(words: Sequence[str], log: Path, jobs: int) -> subprocess.Popen[bytes]:
    """Start ``smoothloss train WORDS`` as one of ``jobs`` processes; what it says is appended to a log.

    It ends when this process does, also when that is killed.
    """
    threads = str(max(1, (os.cpu_count() or 1) // max(1, jobs)))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    command = [sys.executable, "-c", _TRAIN.format(parent=os.getpid()), "train", *words]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)


def end_with(parent: int) -> None:
    """Let this process get a SIGTERM when its parent is gone: nobody would look after it, and it holds a lock."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def last_words(log: Path) -> str:
    """The last line of a log that is not empty."""
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
