"""A fingerprint of the code that a run's numbers come from: two runs of one recipe are compared only if it agrees."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

import smoothloss

# What tells, shows and keeps, and has no say in a training's numbers.
_APART: tuple[str, ...] = (
    "cli",
    "commands",
    "demo",
    "recipes",
    "report",
    "tuning",
    "java_metrics.py",
    "metrics_log.py",
    "processes.py",
)
_APART += ("profiling.py", "progress.py", "provenance.py", "recorded.py", "reproduce.py", "result_table.py", "run.py")
_APART += ("ensemble_rows.py", "run_table.py")
_APART += ("documents.py", "errors.py", "files.py", "folder.py", "packages.py", "score.py", "score_inputs.py")
_APART += ("shipped.py", "sources.py", "stopwatch.py", "__init__.py", "__main__.py")


@cache
def code_fingerprint() -> str:
    """The library's version, and a digest of the trainer's modules that take part in training, decoding and scoring.

    Comments, docstrings and layout do not count. Of the library the version stands for its losses, whose definitions
    the tests hold to rounding in every implementation.
    """
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if name.parts[0] not in _APART:
            meaning = _meaning(ast.parse(path.read_bytes()))
            digest.update(f"{name.as_posix()}\n{meaning}\n".encode())
    return f"{smoothloss.__version__}+{digest.hexdigest()[:16]}"


def _meaning(node: object) -> object:
    """A syntax tree without docstrings and places, alike in all versions of Python."""
    if isinstance(node, list):
        return [_meaning(each) for each in node if not _is_text(each)]
    if not isinstance(node, ast.AST):
        return repr(node)
    named = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
    return [type(node).__name__, *([name, _meaning(value)] for name, value in named)]


def _is_text(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
