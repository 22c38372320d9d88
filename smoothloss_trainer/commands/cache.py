"""``smoothloss cache write | inspect | join | copy``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from smoothloss.distillation import TeacherCache, describe, join, reshard, write_from
from smoothloss_trainer.commands.output import say
from smoothloss_trainer.errors import RecipeError, RunError, one_line


def run(options: argparse.Namespace) -> None:
    """Write a cache, or make one of others, and say what it holds; or say what one holds."""
    if options.action == "write":
        source = _source(options.source)
        with one_line():
            write_from(path=options.out, k=options.k, draws=options.draws, seed=options.seed, **source)
    try:
        with one_line():
            say(_done(options))
    except FileNotFoundError as error:
        if error.filename is not None:
            raise
        raise RecipeError(str(error)) from None


def advice(options: argparse.Namespace) -> str:
    """Writing and copying go on."""
    return "the same command goes on from there" if options.action in ("write", "copy") else ""


def _done(options: argparse.Namespace) -> str:
    if options.action == "inspect":
        return describe(options.path, verify=options.verify)
    if options.action == "join":
        return describe(join(options.path, options.parts).path)
    if options.action == "copy":
        sources = [TeacherCache(path) for path in options.sources]
        total = sum(map(len, sources))
        if options.first > total:
            raise RecipeError(f"--first: got {options.first}, expected at most {total}, the sequences there are")
        last = total if options.count is None else options.first + options.count
        if last > total:
            raise RecipeError(f"--count: got {options.count}, expected at most {total - options.first} from there")
        how = {"fingerprint": options.fingerprint, "shard_bytes": options.shard_bytes}
        reshard(sources, options.out, sequences=range(options.first, last), **how)
    return describe(options.out)


def _source(name: str) -> dict[str, Any]:
    """What the user's function returns."""
    module, _, function = name.partition(":")
    if not module or not function:
        raise RecipeError(f"MODULE:FUNCTION: got {name!r}, expected such as my_teacher:source")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(import_module(module), function, None)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0] and error.name != module:
            raise
        raise RecipeError(f"MODULE:FUNCTION: there is no module {module} in {Path.cwd()} or installed") from None
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise RecipeError(f"MODULE:FUNCTION: {module} has no function {function}")
    with _theirs(name):
        source = found()
    needed = {"teacher", "batches", "vocabulary_size", "fingerprint"}
    allowed = needed | {"lengths", "ids", "log_rest", "num_sequences", "shard_bytes"}
    if not isinstance(source, dict) or not needed <= set(source) <= allowed:
        got = sorted(map(str, source)) if isinstance(source, dict) else type(source).__name__
        raise RecipeError(f"MODULE:FUNCTION: {name} returned {got}, expected a dict with {', '.join(sorted(needed))}")
    return source | {"teacher": _guarded(source["teacher"], f"{name}'s teacher")}


def _guarded(teacher: Any, name: str) -> Callable[[Any], Any]:
    """The same callable, whose errors are not taken for ours."""

    def call(batch: Any) -> Any:
        with _theirs(name):
            return teacher(batch)

    return call


@contextmanager
def _theirs(name: str) -> Iterator[None]:
    """Name the user's code where it fails."""
    try:
        yield
    except (OSError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise RunError(f"{name} raised {type(error).__name__}: {error}") from error
