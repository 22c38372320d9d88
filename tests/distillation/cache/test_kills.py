from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).with_name("kill_campaign.py")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_writer_may_be_killed_at_any_moment(tmp_path: Path) -> None:
    command = [sys.executable, str(CAMPAIGN), str(tmp_path), "--kills", "8", "--every", "3"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    seen = {what: int(count) for what, count in re.findall(r"(.+): (\d+)", result.stdout)}
    assert seen["killed at random"] == 8
    assert seen["killed at an event"] > 10
    assert seen["with something left to remove"] > 0, "or the kills came at harmless moments only"
