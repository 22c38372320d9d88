"""Training runs as processes beside each other, sharing the machine's cores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from smoothloss_trainer.cli.signals import STOPPING

# Not `-m`, which takes a package of this name in the working directory first.
_TRAIN = """import sys
sys.path[:] = filter(None, sys.path)
from smoothloss_trainer.processes import end_with
end_with({parent})
from smoothloss_trainer.cli import main
sys.exit(main())
"""
_PATIENCE = 20.0  # seconds that a process has to end in good order


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


class Children:
    """Training processes that do not outlive the block that starts them, whatever ends it."""

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Children:
        return self

    def start(self, words: Sequence[str], log: Path, jobs: int) -> subprocess.Popen[bytes]:
        """As :func:`start_training`; no signal comes between a process and its being known here."""
        with _signals_later():
            self._running.append(start_training(words, log, jobs))
        return self._running[-1]

    def __exit__(self, *error: object) -> None:
        """End what still runs: with SIGTERM, so that it ends in good order, and if it does not, with SIGKILL."""
        running = [process for process in self._running if process.poll() is None]
        with _signals_later():
            for process in running:
                process.terminate()
            for process in running:
                try:
                    process.wait(_PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@contextmanager
def _signals_later() -> Iterator[None]:
    """Keep signals that would end this process until the block is done. A child is not touched: it has no handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def keep(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.getsignal(number) for number in STOPPING}
    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, keep)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)


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
