"""``smoothloss evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path

from smoothloss_trainer.commands.decoding import decoding_of
from smoothloss_trainer.commands.output import say, scores_line
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.evaluation import evaluate_into
from smoothloss_trainer.models import open_checkpoints


def run(options: argparse.Namespace) -> None:
    """Score the best checkpoint of a run, or an ensemble, on the test splits."""
    checkpoints = options.checkpoints
    if options.out is None and (len(checkpoints) > 1 or Path(checkpoints[0]).is_file()):
        raise RecipeError("evaluating other than a run's best checkpoint needs --out, where the scores go")
    decoding = decoding_of(checkpoints[0], options)
    splits = [options.split] if options.split else None
    _, task, model, device = open_checkpoints(checkpoints, options.device, splits)
    folder = Path(options.out or checkpoints[0])
    for split, scores in evaluate_into(folder, task, model, splits or task.test_splits, decoding, device):
        say(scores_line(split, scores))
