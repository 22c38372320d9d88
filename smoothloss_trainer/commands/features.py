"""``smoothloss features``."""

from __future__ import annotations

import argparse

from smoothloss_trainer.commands.output import say
from smoothloss_trainer.tasks.captioning.extract import Extraction, extract_features


def run(options: argparse.Namespace) -> None:
    """Extract features from images, and print the file's path and shape."""
    how = Extraction(**{key: value for key, value in vars(options).items() if key in Extraction.__dataclass_fields__})
    shape = extract_features(options.folder, options.out, how)
    say(f"{options.out}: {' x '.join(map(str, shape))}")
