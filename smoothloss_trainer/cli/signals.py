"""What a signal does to a command: Ctrl-C, SIGTERM and SIGHUP end it with one line."""

from __future__ import annotations

import math
import os
import signal
import sys
import time

TYPE_CHECKING = False  # not of typing: until signals are handled, every import counts
if TYPE_CHECKING:
    from types import FrameType, TracebackType
    from typing import Any

AT_ONCE = 1.0  # seconds within which signals count as one: `timeout` and impatient people send two
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stop(KeyboardInterrupt):
    """Raised where a signal finds a command at work, so that what is to be done on the way out is done.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def line(self) -> str:
        """What happened, in a word."""
        return {"SIGINT": "interrupted", "SIGTERM": "terminated"}.get(signal.Signals(self.number).name, "hung up")


class Signals:
    """Handlers of the signals that end a command; a signal that is ignored (``nohup``) stays so.

    While packages are imported, a signal ends the process at once: nothing was begun that must be ended, and an
    exception there may be caught, turned into another one or printed by whatever is being imported. Then, at work, it
    raises :class:`Stop`; a second one at once does not, so that it does not end what the first one has begun.

    Args:
        alone: Whether the process is the command's own. If not, handlers raise from the start, and are put back.
    """

    def __init__(self, *, alone: bool) -> None:
        self.alone = alone
        self._before: dict[int, Any] = {}
        self._hook = sys.unraisablehook
        self._stopped = -math.inf

    def __enter__(self) -> Signals:
        handlers = {number: signal.getsignal(number) for number in STOPPING}
        self._before = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
        try:
            self._install(_leave if self.alone else self._stop)
        except ValueError:  # not in the main thread, which alone gets signals
            self._before = {}
        return self

    def begin_work(self) -> None:
        """From here on a signal raises :class:`Stop`."""
        if self.alone and self._before:
            sys.unraisablehook = self._unraisable
        self._install(self._stop)

    def ignore(self) -> None:
        """From here on nothing happens: the command is ending already."""
        self._install(signal.SIG_IGN)

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        if self.alone:
            self._install(signal.SIG_DFL)  # while the interpreter ends, an exception would be printed
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _install(self, handler: Any) -> None:
        for number in self._before:
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._stopped >= AT_ONCE:
            self._stopped = now
            raise Stop(number)

    def _unraisable(self, unraisable: Any) -> None:
        """Raise a stop again, a moment later, that came where no exception can be raised (in ``__del__``, say)."""
        if isinstance(unraisable.exc_value, Stop):
            from threading import Timer

            self._stopped = -math.inf
            again = Timer(0.02, os.kill, [os.getpid(), unraisable.exc_value.number])
            again.daemon = True
            again.start()
        else:
            self._hook(unraisable)


def _leave(number: int, frame: FrameType | None) -> None:
    try:
        os.write(2, f"smoothloss: error: {Stop(number).line}\n".encode())
    finally:  # also where nobody takes it
        os._exit(128 + number)
