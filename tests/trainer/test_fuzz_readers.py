"""Damaged and hostile files: every reader takes them, or refuses them by one line of its own.

Half a second of changes at random for each reader. With ``SMOOTHLOSS_FUZZ_SECONDS`` so many seconds of atheris, which
follows the branches that a file takes, or of the changes at random where it is not installed.
"""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import time
from importlib import util
from pathlib import Path

import fuzzed_readers
import pytest
from fuzzed_readers import READERS, changed

SECONDS = float(os.environ.get("SMOOTHLOSS_FUZZ_SECONDS", "0"))
HAS_ATHERIS = util.find_spec("atheris") is not None


@pytest.mark.parametrize("name", READERS)
def test_seeds_are_read(tmp_path: Path, name: str) -> None:
    assert READERS[name](tmp_path, READERS[name].seeds[0])


@pytest.mark.parametrize("name", READERS)
def test_changed_files_are_read_or_refused_in_one_line(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    seconds = max(0.5, 0 if HAS_ATHERIS else SECONDS)
    draw, end = random.Random(os.environ.get("SMOOTHLOSS_FUZZ_SEED", "0")), time.monotonic() + seconds
    outcomes = {True: 0, False: 0}
    while (now := time.monotonic()) < end or (not all(outcomes.values()) and now < end + 20):
        content = changed(READERS[name], draw)
        try:
            outcomes[READERS[name](tmp_path, content)] += 1
        except Exception as error:
            raise AssertionError(f"{name} fails on {content!r}") from error
    assert all(outcomes.values()), outcomes


@pytest.mark.slow
@pytest.mark.skipif(not SECONDS, reason="SMOOTHLOSS_FUZZ_SECONDS says for how long")
@pytest.mark.skipif(not HAS_ATHERIS, reason="atheris is not installed")
@pytest.mark.parametrize("name", READERS)
def test_atheris_finds_no_other_error(tmp_path: Path, name: str) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "error", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", fuzzed_readers.__file__, name, str(SECONDS)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert "number_of_executed_units" in done.stdout + done.stderr
