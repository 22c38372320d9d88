import time

import pytest
import torch

from smoothloss_trainer.stopwatch import Stopwatch


def test_shares_are_those_of_the_time_spent() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    assert stopwatch.shares() == {}
    for _ in range(2):
        with stopwatch("long"):
            time.sleep(0.03)
        with stopwatch("short"):
            time.sleep(0.01)
    shares = stopwatch.shares()
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["long"] > 1.5 * shares["short"] > 0
    assert stopwatch.shares() == {}, "counted once"
