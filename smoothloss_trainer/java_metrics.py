"""METEOR and SPICE, by the Java programs that pycocoevalcap brings along or downloads."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib import util
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from smoothloss_trainer.errors import RunError

JavaMetric = Literal["meteor", "spice"]
_SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
Captions = dict[str, list[str]]


def missing(metric: JavaMetric) -> str | None:
    """What is missing on this machine for a metric, and how to get it; None: nothing."""
    package = util.find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        return 'pycocoevalcap, which is not installed: pip install "smoothloss[caption]"'
    if shutil.which("java") is None:
        return "Java, which is not on the PATH"
    folder = Path(package.submodule_search_locations[0])
    if metric == "meteor":
        jar = folder / "meteor" / "meteor-1.5.jar"
        return None if jar.is_file() else f"{jar}: install pycocoevalcap again"
    absent = [name for name in _SPICE_MODELS if not (folder / "spice" / "lib" / name).is_file()]
    if absent:
        command = "python -c 'from pycocoevalcap.spice.get_stanford_models import get_stanford_models as get; get()'"
        return f"{absent[0]} in {folder / 'spice' / 'lib'}: {command} downloads it"
    return None


def java_scores(
    metric: JavaMetric, candidates: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, Tensor]:
    """A metric of B texts, tokens separated by spaces: that of the corpus, and ``(B,)`` float64 of each text.

    Both are fractions, not times 100. METEOR's of the corpus is computed from summed statistics; SPICE's is the mean.

    Args:
        metric: ``meteor`` or ``spice``.
        candidates: B texts.
        references: The references of each.

    Raises:
        RunError: one line that says what is missing, or what Java said when it failed.

    Source: Denkowski and Lavie 2014 (METEOR 1.5); Anderson et al. 2016 (SPICE).
    """
    reason = missing(metric)
    if reason is not None:
        raise RunError(f"{metric.upper()} needs {reason}")
    # So wide that names sort like numbers: SPICE sorts them.
    found = {f"{number:09}": [_line(text)] for number, text in enumerate(candidates)}
    given = {f"{number:09}": [_line(text) for text in texts] for number, texts in enumerate(references)}
    corpus, sentences = (_meteor if metric == "meteor" else _spice)(given, found)
    return corpus, torch.tensor(sentences, dtype=torch.float64)


def _line(text: str) -> str:
    """The text as the programs' protocols take it."""
    return " ".join(text.replace("|||", " ").split())


def _meteor(references: Captions, candidates: Captions) -> tuple[float, list[float]]:
    from pycocoevalcap.meteor.meteor import Meteor

    scorer = Meteor()
    process: subprocess.Popen[bytes] = scorer.meteor_p
    try:
        corpus, sentences = scorer.compute_score(references, candidates)
    except (OSError, ValueError) as error:  # it has ended before it gave a number
        if scorer.lock.locked():
            scorer.lock.release()
        process.kill()
        said = process.stderr.read().decode(errors="replace").strip() if process.stderr else ""
        raise RunError(f"METEOR failed: {' '.join((said or str(error)).split())[:500]}") from None
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(OSError):  # what was not read yet
                    pipe.close()
    return float(corpus), [float(score) for score in sentences]


def _spice(references: Captions, candidates: Captions) -> tuple[float, list[float]]:
    from pycocoevalcap.spice.spice import Spice

    try:
        corpus, sentences = Spice().compute_score(references, candidates)
    except (OSError, subprocess.SubprocessError) as error:
        raise RunError(f"SPICE failed (it needs Java 8): {' '.join(str(error).split())[:500]}") from None
    return float(corpus), [float(each["All"]["f"]) for each in sentences]
