"""Runs a command, and says in one line what went wrong with which exit status."""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from textwrap import shorten

from smoothloss_trainer.cli.parser import parse
from smoothloss_trainer.cli.signals import Signals, Stop
from smoothloss_trainer.errors import RecipeError, RunError

BROKEN_PIPE = 141  # 128 + SIGPIPE: as of a program that the signal ended
SHOW_TRACEBACK = "SMOOTHLOSS_TRACEBACK"


def run_command(words: Sequence[str], signals: Signals) -> int:
    """Parse the words, import the command and run it; returns the exit status.

    Raises:
        SystemExit: from the parser: 0 after ``--help``, 2 for words that are no command.
    """
    advice: Callable[[], str] = str
    try:
        options = parse(words)
        _check_working_folder()
        command = import_module(f"smoothloss_trainer.commands.{options.command}")
        signals.begin_work()
        if hasattr(command, "advice"):
            advice = lambda: command.advice(options)  # noqa: E731
        command.run(options)
        flush()
    except SystemExit:
        raise
    except BaseException as error:
        signals.ignore()
        status, line = explain(error, advice)
        if os.environ.get(SHOW_TRACEBACK):
            traceback.print_exc()
        if signals.alone:
            _give_up_output()
        if status != BROKEN_PIPE and _speaks():
            _write_error(line)
        return status
    return 0


def _check_working_folder() -> None:
    """Say that there is no working folder any more, where torch would end the process."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise RunError("the working folder has been removed") from None


def explain(error: BaseException, advice: Callable[[], str] = str) -> tuple[int, str]:
    """Exit status and line of what ended a command.

    Args:
        error: What was raised.
        advice: How to go on after an interruption, where something can be gone on with.
    """
    if isinstance(error, KeyboardInterrupt):
        stop = error if isinstance(error, Stop) else Stop(2)
        how = advice()
        return 128 + stop.number, f"{stop.line}; {how}" if how else stop.line
    if isinstance(error, BrokenPipeError) and error.filename is None:
        return BROKEN_PIPE, ""
    if isinstance(error, RecipeError):
        return 2, _one_line(error)
    if isinstance(error, RunError):
        return 1, _one_line(error)
    if isinstance(error, ImportError):
        return 1, _missing_package(error)
    if isinstance(error, OSError):
        return 1, _os_error(error)
    if _is_out_of_memory(error):
        return 1, f"out of memory: {_one_line(error) or 'there is none left'}"
    return 1, _bug(error)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _os_error(error: OSError) -> str:
    if error.strerror is None or error.filename is None:
        return error.strerror or _one_line(error) or type(error).__name__
    return " ".join(f"{os.fsdecode(error.filename)!s}: {error.strerror}".split())


def _missing_package(error: ImportError) -> str:
    line = _one_line(error)
    if "pip install" in line:
        return line
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("smoothloss"):
        return f"the trainer needs the package {error.name.partition('.')[0]}: pip install 'smoothloss[train]'"
    return f"{line}: pip install 'smoothloss[train]'"


def _is_out_of_memory(error: BaseException) -> bool:
    """Python's, and torch's on GPUs (a class of its own) and on the CPU (its words alone tell)."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("can't allocate memory", "not enough memory", "CUDA out of memory")
    )


def _bug(error: BaseException) -> str:
    """A bug is not hidden: a line that says so, and the traceback in a file, since it may not come a second time."""
    words = shorten(str(error), 300, placeholder=" ...")
    what = f"this is a bug in smoothloss: {type(error).__name__}: {words}"
    try:
        descriptor, name = tempfile.mkstemp(prefix="smoothloss-", suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return f"{what} ({SHOW_TRACEBACK}=1 shows the traceback)"
    return f"{what} (traceback: {Path(name)})"


def flush() -> None:
    """Write out what stdout holds, while an error can still be told."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _speaks() -> bool:
    """Whether this process is to tell: of several that train together the first that has something to say."""
    distributed = sys.modules.get("smoothloss_trainer.distributed")
    return distributed is None or bool(distributed.speaks_first())


def _write_error(line: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"smoothloss: error: {line}\n")


def _give_up_output() -> None:
    """Lead stdout into nothing where it cannot be written (a closed pipe, a full disk): the interpreter would complain.

    Nothing is lost: whatever else can be written has been.
    """
    try:
        flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
