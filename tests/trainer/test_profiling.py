"""``smoothloss profile`` tells where a step's time goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from smoothloss_trainer import profiling
from smoothloss_trainer.cli import main
from smoothloss_trainer.config import Recipe
from smoothloss_trainer.profiling import profile, table
from smoothloss_trainer.tasks import task_class
from smoothloss_trainer.trainer import Trainer

REWARD = {"name": "bleu", "normalize": "batch"}


def test_the_parts_make_up_the_step_and_are_those_of_the_loss(make_recipe: Callable[..., Recipe]) -> None:
    lazy = {"name": "tok_seq_lazy", "alpha": 0.4, "token_alpha": 0.3, "reward": REWARD}
    shared = ["data", "forward", "loss", "backward", "optimizer", "other"]
    for loss, own in ((lazy, ["draw", "reward"]), ({"name": "mle"}, [])):
        found = profile(make_recipe(loss=loss, training={"accumulate": 3}), steps=6)
        assert sorted(found["parts"]) == sorted(shared + own)
        assert sum(part["share"] for part in found["parts"].values()) == pytest.approx(1)
        assert all(part["ms"] > 0 for name, part in found["parts"].items() if name != "other")
        assert found["tokens_per_second"] > 0 and found["launches"] is None
        assert all(f"\n{name} " in table(found) for name in [*found["parts"], "step"])


def test_the_command_prints_a_table_and_writes_json(
    tmp_path: Path, recipe_values: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "mine.yaml", tmp_path / "profile.json"
    recipe.write_text(yaml.safe_dump(recipe_values()))
    words = ["profile", str(recipe), "--steps", "2", "--out", str(out), "--training.workers", "1"]
    assert main(words) == 0
    assert "ms a step" in capsys.readouterr().out
    assert json.loads(out.read_text())["steps"] == 2
    for wrong in (["--steps", "0"], ["--training.worker", "1"], ["--training.workers", "-1"]):
        with_it = [*words[:2], *wrong]
        try:
            assert main(with_it) == 2
        except SystemExit as ended:  # of the parser
            assert ended.code == 2
        assert "Traceback" not in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"mine.yaml", "profile.json"}


def test_tokens_are_those_of_the_steps_that_are_timed(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def a_second(trainer: Trainer, group: Any) -> tuple[float, dict[str, float]]:
        trainer._step(group)
        return 1.0, {"forward": 0.5}

    monkeypatch.setattr(profiling, "_time_step", a_second)
    recipe = make_recipe()
    task = task_class(recipe.task)(recipe)
    lengths = [task.train_batch(examples).lengths for examples in task.train_plan(0)[:4]]
    expected = sum(int(each.sum()) + len(each) for each in lengths) / 4
    assert profile(recipe, steps=4)["tokens_per_second"] == pytest.approx(expected)
