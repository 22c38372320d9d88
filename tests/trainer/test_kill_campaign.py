from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_runs_that_are_killed_end_like_those_that_are_not() -> None:
    """A few kills; by hand, 200 of them."""
    script = str(Path(__file__).with_name("kill_campaign.py"))
    command = [sys.executable, script, "--kills", "4", "--seed", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "4 kills" in done.stdout and "nothing came out differently" in done.stdout
