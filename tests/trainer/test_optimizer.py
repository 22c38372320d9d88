import math

import pytest

from smoothloss_trainer.config import OptimizerConfig
from smoothloss_trainer.optimizer import learning_rate


def test_step_decays_by_epoch() -> None:
    config = OptimizerConfig(lr=1.0, decay=0.5, decay_every=2, decay_start=3)
    assert [learning_rate(config, epoch) for epoch in range(8)] == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125]


@pytest.mark.parametrize("schedule", ["step", "cosine", "inverse_sqrt"])
def test_warmup_rises_to_the_rate_of_the_recipe(schedule: str) -> None:
    config = OptimizerConfig(lr=2.0, schedule=schedule, warmup_steps=4)  # type: ignore[arg-type]
    assert [learning_rate(config, 0, step, 100) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]


def test_cosine_ends_at_nothing() -> None:
    config = OptimizerConfig(lr=1.0, schedule="cosine", warmup_steps=10)
    assert learning_rate(config, 0, 60, 110) == pytest.approx(0.5)
    assert learning_rate(config, 0, 109, 110) == pytest.approx((1 + math.cos(math.pi * 0.99)) / 2)
    assert learning_rate(config, 0, 110, 110) == learning_rate(config, 0, 500, 110) == 0.0


def test_inverse_sqrt_halves_when_the_steps_are_four_times_as_many() -> None:
    config = OptimizerConfig(lr=1.0, schedule="inverse_sqrt", warmup_steps=100)
    rates = [learning_rate(config, 0, step) for step in (100, 400, 1600)]
    assert rates == pytest.approx([1.0, 0.5, 0.25])
    assert learning_rate(OptimizerConfig(lr=1.0, schedule="inverse_sqrt"), 0, 0) == 1.0
