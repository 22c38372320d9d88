"""``smoothloss demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

from smoothloss_trainer.demo import run_demo


def run(options: argparse.Namespace) -> None:
    """Train the demo's two runs and write the report."""
    run_demo(Path(options.out))
