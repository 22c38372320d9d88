"""Processes that a test has started, and where they find each other."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
from collections.abc import Sequence

HANGS = 900.0  # seconds; a busy machine takes its time, and a test of a few seconds has taken 300


def outputs(processes: Sequence[subprocess.Popen[str]], seconds: float = HANGS) -> list[tuple[str, str]]:
    """Wait for all to end, and return what each wrote; none is left running if one hangs."""
    try:
        return [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


def free_port(count: int = 1) -> int:
    """Return the first of so many free ports in a row, below those that a system gives to whoever asks for any.

    The next port after one of those may be at the end of a connection by the time that it is needed.
    """
    while True:
        first = random.randrange(10_000, 32_000)
        with contextlib.ExitStack() as sockets, contextlib.suppress(OSError):
            for port in range(first, first + count):
                sockets.enter_context(socket.socket()).bind(("", port))
            return first
