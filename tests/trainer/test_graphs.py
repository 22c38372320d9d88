"""A recorded step is the step, in the imagination of :mod:`trainer.recorded`; test_gpu_graphs.py has real graphs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smoothloss_trainer import checkpoint, devices, graphs
from smoothloss_trainer.config import Recipe
from smoothloss_trainer.distributed import Processes
from smoothloss_trainer.errors import RecipeError, RunError
from smoothloss_trainer.loop import open_trainer, train
from smoothloss_trainer.recipe import parse_recipe
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.tasks import Batch
from smoothloss_trainer.tasks.translation.data import bucketed_plan
from smoothloss_trainer.trainer import Trainer
from trainer.recorded import Recorder

Make = Callable[..., Recipe]

RATE = 2**-7  # the same in float32, in which a recorded optimizer has it
BLEU = {"name": "bleu", "normalize": "batch"}
SEQUENCES = {"alpha": 0.4, "tau": 0.5}
LOSSES: dict[str, dict[str, Any]] = {
    "mle": {"name": "mle"},
    "smoothed": {"name": "label_smoothing", "label_smoothing": 0.2, "entropy": 0.05, "prior": "unigram"},
    "tok": {"name": "tok", "alpha": 0.3, "token_tau": 0.3},
    "seq": {"name": "seq", "num_samples": 2, **SEQUENCES},
    "seq_lazy": {"name": "seq_lazy", "label_smoothing": 0.1, **SEQUENCES},
    "edit": {"name": "seq", "sampler": "edit", "pool": "vocabulary", **SEQUENCES},
    "references": {"name": "seq_lazy", "pool": "references", **SEQUENCES},
    "similar": {"name": "seq", "pool": "similar", **SEQUENCES},
    "bleu": {"name": "tok_seq_lazy", "token_alpha": 0.3, "reward": BLEU, **SEQUENCES},
    "cider": {"name": "seq", "num_samples": 3, "reward": {"name": "cider"}, **SEQUENCES},
    "consistency": {"name": "mle", "consistency": 1.0, "label_smoothing": 0.1},
    "consistent_seq": {"name": "seq", "consistency": 1.0, "label_smoothing": 0.1, **SEQUENCES},
}


def captioning(attention: bool, **sections: Any) -> Recipe:
    """Return a recipe on a few rendered scenes."""
    values: dict[str, Any] = {
        "task": "demo",
        "device": "cpu",
        "data": {"images": {"train": 24, "validation": 2, "test": 2}},
        "model": {"attention": attention, "embedding": 8, "hidden": 8, "attention_hidden": 8, "dropout": 0.2},
        "training": {"epochs": 1, "batch_size": 20},
    }
    for key, value in sections.items():
        values[key] = {**values.get(key, {}), **value}
    return parse_recipe(values)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Let steps be recorded without a GPU, and as if values could not be read."""
    made = Recorder(monkeypatch)
    monkeypatch.setattr(graphs, "recorder", lambda device, generators: made)
    monkeypatch.setattr(devices, "on_host", lambda tensor: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return made


def recorded(recipe: Recipe) -> Recipe:
    """Return the recipe with graphs."""
    return replace(recipe, device="auto", training=replace(recipe.training, graphs=True))


def step_through(trainer: Trainer, epochs: int = 2) -> list[float]:
    """Return the sum of losses after each step."""
    losses = []
    for epoch in range(epochs):
        plan = trainer.task.train_plan(epoch)
        trainer.progress.epoch = epoch
        for start in range(0, len(plan), trainer.width):
            trainer.progress.position = start
            trainer._step(plan[start : start + trainer.width])
            losses.append(float(trainer._loss_sum))
    return losses


def assert_equal(recipe: Recipe, folder: Path, recorder: Recorder) -> Trainer:
    """Compare losses, weights and rewards with those of steps that are computed as they come."""
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, lr=RATE))
    trainers = [
        open_trainer(each, RunDirectory(folder / str(number)), Processes("cpu"))
        for number, each in enumerate((recipe, recorded(recipe)))
    ]
    plain, replayed = (step_through(trainer) for trainer in trainers)
    assert all(map(math.isfinite, plain))
    assert replayed == pytest.approx(plain, rel=1e-12)
    states = [trainer.model.state_dict() for trainer in trainers]
    for name, weight in states[0].items():
        torch.testing.assert_close(states[1][name], weight, rtol=1e-9, atol=1e-12)
    if trainers[0].weights is not None:
        assert trainers[1].weights is not None
        assert trainers[1].weights.means() == pytest.approx(trainers[0].weights.means(), rel=1e-12)
    steps = len(plain)
    # The optimizer's first step and the first of each shape are no replays.
    assert recorder.replays >= steps
    return trainers[1]


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss != "references"])
def test_a_recorded_step_of_a_translator_is_the_step(
    tmp_path: Path, make_recipe: Make, recorder: Recorder, loss: str
) -> None:
    training = {"precision": "float64", "pad_to_multiple_of": 4}
    assert_equal(make_recipe(loss=LOSSES[loss], training=training), tmp_path, recorder)


def test_a_recorded_step_with_a_teacher(tmp_path: Path, make_recipe: Make, recorder: Recorder) -> None:
    train(make_recipe(training={"max_steps": 5}), RunDirectory(tmp_path / "teacher"))
    loss = {**LOSSES["consistent_seq"], "teacher": {"runs": [str(tmp_path / "teacher")]}}
    training = {"precision": "float64", "pad_to_multiple_of": 4}
    assert_equal(make_recipe(loss=loss, training=training), tmp_path, recorder)


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("loss", ["mle", "seq", "references", "bleu"])
def test_a_recorded_step_of_a_captioner_is_the_step(
    tmp_path: Path, recorder: Recorder, loss: str, attention: bool
) -> None:
    small = {"embeddings": {"dim": 8, "window": 3, "epochs": 2}}
    training = {"precision": "float64", "pad_to_multiple_of": 8}
    assert_equal(captioning(attention, loss=LOSSES[loss] | small, training=training), tmp_path, recorder)


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"cell": "lstm", "layers": 2, "dropout": 0.0}},
        {"training": {"accumulate": 3}},
        {"training": {"clip": 0.0}, "optimizer": {"weight_decay": 0.1, "schedule": "cosine"}},
        {"data": {"batch_tokens": 60}},
        {"model": {"tie": "decoder"}},
    ],
)
def test_a_recorded_step_has_the_settings_of_the_recipe(
    tmp_path: Path, make_recipe: Make, recorder: Recorder, sections: dict[str, Any]
) -> None:
    training = {"precision": "float64", "pad_to_multiple_of": 4, **sections.pop("training", {})}
    assert_equal(make_recipe(training=training, **sections), tmp_path, recorder)


def test_under_autocast_too(tmp_path: Path, make_recipe: Make, recorder: Recorder) -> None:
    recipe = make_recipe(training={"precision": "bfloat16", "pad_to_multiple_of": 4})
    losses = [
        step_through(open_trainer(each, RunDirectory(tmp_path / str(number)), Processes("cpu")))
        for number, each in enumerate((recipe, recorded(recipe)))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_shape_is_recorded_once_and_too_many_never(
    tmp_path: Path, make_recipe: Make, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe(training={"pad_to_multiple_of": 4})
    trainer = open_trainer(recorded(recipe), RunDirectory(tmp_path / "run"), Processes("cpu"))
    shapes = {tuple(tuple(part.shape) for part in (*batch.source, batch.target)) for batch in batches(trainer)}
    step_through(trainer, epochs=4)
    assert 2 <= len(shapes) <= 8
    assert recorder.recorded <= len(shapes) + 1  # the optimizer
    seen = recorder.recorded
    step_through(trainer, epochs=4)
    assert recorder.recorded <= len(shapes) + 1 and recorder.recorded - seen <= 1
    monkeypatch.setattr(graphs, "MOST_SHAPES", 1)
    recorder.recorded = 0
    step_through(open_trainer(recorded(recipe), RunDirectory(tmp_path / "few"), Processes("cpu")))
    assert recorder.recorded == 2


def batches(trainer: Trainer) -> Iterator[Batch]:
    """Return the batches of four epochs."""
    return (trainer.task.train_batch(each) for epoch in range(4) for each in trainer.task.train_plan(epoch))


def test_the_imagination_sees_a_value_that_is_read(recorder: Recorder) -> None:
    total = torch.zeros(())

    def reading(x: Tensor) -> None:
        total.add_(x.sum() if x.sum() > 0 else x.prod())

    work = graphs.Replayed(reading, recorder, torch.device("cpu"))
    work(torch.ones(2))
    with pytest.raises(AssertionError, match="reads a value on the host"):
        work(torch.ones(2))


def test_the_imagination_sees_memory_that_is_not_the_recordings(recorder: Recorder) -> None:
    held = {"x": torch.ones(2), "total": torch.zeros(2)}

    def elsewhere() -> None:
        held["total"].add_(held["x"])

    work = graphs.Replayed(elsewhere, recorder, torch.device("cpu"))
    work()
    work()
    held["x"] = torch.full((2,), 100.0)  # of which the recording knows nothing
    work()
    assert held["total"].tolist() == [3.0, 3.0]


@pytest.mark.parametrize("after", [True, False])
def test_a_run_that_is_resumed_with_or_without_graphs_goes_on(
    tmp_path: Path, make_recipe: Make, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    settings = {"precision": "float64", "pad_to_multiple_of": 4, "epochs": 2, "log_every": 3}
    recipe = make_recipe(loss=LOSSES["bleu"], training=settings, optimizer={"lr": RATE})
    whole, broken = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "broken")
    train(recipe, whole)
    first, second = (recorded(recipe), recipe) if after else (recipe, recorded(recipe))
    step, done = Trainer._step, []

    def ending(self: Trainer, examples: Any) -> None:
        if len(done) == 7:
            raise RunError("as if it had been killed")
        done.append(step(self, examples))

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", ending)
        with pytest.raises(RunError):
            train(first, broken)
    saved = json.loads(json.dumps(checkpoint.load_checkpoint(broken.last)[1]))  # plain numbers
    assert saved["optimizer"]["param_groups"][0]["lr"] == RATE
    train(second, broken, resume=True)
    for one, other in zip(lines(whole), lines(broken), strict=True):
        assert other == pytest.approx(one, rel=1e-9)


def lines(run: RunDirectory) -> list[dict[str, Any]]:
    """Return what the run says of itself, without the clock's part."""
    of_the_clock = ("seconds", "tokens_per_second", "time")
    return [{key: line[key] for key in line if key not in of_the_clock} for line in run.metrics()]


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_without_a_gpu_graphs_are_refused_in_a_line(tmp_path: Path, make_recipe: Make, device: str) -> None:
    if device == "auto" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(RecipeError, match=r"^training\.graphs needs a CUDA device, got .*cpu"):
        recipe = make_recipe(device=device, training={"graphs": True})
        open_trainer(recipe, RunDirectory(tmp_path / "run"), Processes("auto"))


def test_several_processes_are_refused_in_a_line(tmp_path: Path, make_recipe: Make, recorder: Recorder) -> None:
    processes = Processes("cpu")
    processes.count = 2
    with pytest.raises(RecipeError, match=r"^training\.graphs needs one process, got 2$"):
        open_trainer(recorded(make_recipe()), RunDirectory(tmp_path / "run"), processes)


@pytest.mark.parametrize("is_on_host", [True, False])
@pytest.mark.parametrize(
    "loss", [name for name, loss in LOSSES.items() if name != "references" and "consistency" not in loss]
)
def test_padding_changes_no_loss(
    tmp_path: Path, make_recipe: Make, monkeypatch: pytest.MonkeyPatch, loss: str, is_on_host: bool
) -> None:
    monkeypatch.setattr(devices, "on_host", lambda tensor: is_on_host)
    losses = []
    for multiple in (1, 8):
        training = {"precision": "float64", "pad_to_multiple_of": multiple}
        recipe = make_recipe(loss=LOSSES[loss], training=training, model={"dropout": 0.0})
        trainer = open_trainer(recipe, RunDirectory(tmp_path / str(multiple)), Processes("cpu"))
        widths = [(batch.target.shape[1], batch.source[0].shape[1]) for batch in batches(trainer)]
        assert all(width % multiple == 0 for pair in widths for width in pair)
        losses.append(step_through(trainer))
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("loss", ["mle", "seq", "references", "bleu"])
def test_padding_changes_no_loss_of_a_captioner(tmp_path: Path, loss: str, attention: bool) -> None:
    losses = []
    for multiple in (1, 8):
        training = {"precision": "float64", "pad_to_multiple_of": multiple}
        small = {"embeddings": {"dim": 8, "window": 3, "epochs": 2}}
        recipe = captioning(attention, loss=LOSSES[loss] | small, training=training, model={"dropout": 0.0})
        trainer = open_trainer(recipe, RunDirectory(tmp_path / str(multiple)), Processes("cpu"))
        for batch in batches(trainer):
            assert batch.references is not None
            widths = (batch.target.shape[1], batch.references.shape[1], batch.source[0].shape[1] if attention else 8)
            assert all(width % multiple == 0 for width in widths)
        losses.append(step_through(trainer))
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)


def test_batches_of_so_many_tokens_count_the_padding() -> None:
    lengths = [(length, length) for length in range(1, 30)]
    for multiple in (1, 8):
        plan = bucketed_plan(lengths, 1, 1, 0, batch_tokens=64, multiple=multiple)
        assert sorted(example for examples in plan for example in examples) == list(range(29))
        for examples in plan:
            width = max(lengths[example][0] + 1 for example in examples)
            assert len(examples) == 1 or len(examples) * (-(-width // multiple) * multiple) <= 64
