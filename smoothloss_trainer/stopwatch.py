"""Where the time of training steps goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Stopwatch:
    """Times the parts of training steps: ``with stopwatch("forward"): ...``.

    On CUDA it is the stream's time, between events, and nothing waits for the device before :meth:`shares` does: what
    the host does while the device still works costs no time there.

    Args:
        device: Where training runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add what is done inside to the part of this name."""
        if self.device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():  # a CUDA graph, of which its replays are timed
                yield
                return
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
            return
        start = time.perf_counter()
        yield
        self._add(name, time.perf_counter() - start)

    def _add(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def seconds(self) -> dict[str, float]:
        """Seconds of each part that was timed since the last call of this or of :meth:`shares`."""
        for name, begin, end in self._events:
            end.synchronize()
            self._add(name, begin.elapsed_time(end) / 1000)
        seconds, self._seconds, self._events = self._seconds, {}, []
        return seconds

    def shares(self) -> dict[str, float]:
        """Share of each part, one in all, of what was timed since the last call."""
        seconds = self.seconds()
        total = sum(seconds.values())
        return {name: each / total for name, each in seconds.items() if total > 0}
