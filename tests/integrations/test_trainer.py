"""transformers' real Trainer: with the adapters a step is that of the Trainer's own loss."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from integrations.tiny_models import V, batch, examples, make
from integrations.trainer_step import KINDS, WAYS, collated, options, step, trainer_of
from safetensors.torch import load_file
from torch import Tensor

from smoothloss.distillation import Teacher, TeacherCache
from smoothloss.integrations.teacher import TeacherCollator
from smoothloss.integrations.transformers import without_logits

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="accelerate is not installed")
OURS = WAYS[1:]
ROUNDING = 2e-6
SETTINGS: dict[str, dict[str, Any]] = {
    "a batch": {"per_device_train_batch_size": 4},
    "label smoothing": {"per_device_train_batch_size": 4, "smoothing": 0.1},
    "checkpointing": {"per_device_train_batch_size": 4, "gradient_checkpointing": True},
}
ACCUMULATED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[float, dict[str, Tensor]]]:
    """Return `step`, which takes each step once."""
    folder, known = tmp_path_factory.mktemp("steps"), {}

    def of(kind: str, way: str, **more: Any) -> tuple[float, dict[str, Tensor]]:
        key = (kind, way, *sorted(more.items()))
        if key not in known:
            known[key] = step(kind, way, folder, **more)
        return known[key]

    return of


@pytest.mark.parametrize("way", OURS)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step(kind: str, setting: str, way: str, taken: Callable[..., Any], apart: Callable[..., float]) -> None:
    if kind == "gpt2, tied" and setting == "label smoothing":
        from transformers.trainer_pt_utils import LabelSmoother

        if "num_items_in_batch" not in inspect.signature(LabelSmoother.__call__).parameters:
            pytest.skip("this transformers smooths labels without the Trainer's count, which is another one for GPT-2")
    loss, gradients = taken(kind, "own", **SETTINGS[setting])
    got, made = taken(kind, way, **SETTINGS[setting])
    assert got == pytest.approx(loss, rel=1e-6)
    assert apart(made, gradients) < ROUNDING


@pytest.mark.parametrize("kind", KINDS)
def test_the_trainers_own_label_smoothing_is_left_alone(
    kind: str, taken: Callable[..., Any], tmp_path: Path, apart: Callable[..., float]
) -> None:
    loss, gradients = taken(kind, "own", **SETTINGS["label smoothing"])
    got, made = step(kind, "without_logits", tmp_path, label_smoothing_factor=0.1, per_device_train_batch_size=4)
    assert got == loss
    assert apart(made, gradients) == 0


@pytest.mark.parametrize("way", OURS)
@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_batches_are_one_batch(
    kind: str, way: str, taken: Callable[..., Any], apart: Callable[..., float]
) -> None:
    loss, gradients = taken(kind, "own", per_device_train_batch_size=8)
    got, made = taken(kind, way, **ACCUMULATED)
    assert got == pytest.approx(loss, rel=1e-6)
    assert apart(made, gradients) < ROUNDING
    if "t5" not in kind:  # T5 takes no notice of num_items_in_batch, by which the Trainer believes it to divide
        own, by_the_model = taken(kind, "own", **ACCUMULATED)
        assert got == pytest.approx(own, rel=1e-6)
        assert apart(made, by_the_model) < ROUNDING


@pytest.mark.parametrize("way", OURS)
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_errs_no_more_than_twice_as_much(
    kind: str, way: str, taken: Callable[..., Any], apart: Callable[..., float]
) -> None:
    size = {"per_device_train_batch_size": 4}
    _, exact = taken(kind, "own", **size)
    _, rounded = taken(kind, "own", bf16=True, **size)
    _, made = taken(kind, way, bf16=True, **size)
    assert 0 < apart(made, exact) <= 2 * apart(rounded, exact)


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path, taken: Callable[..., Any], apart: Callable[..., float]) -> None:
    tests = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *torchrun, tests / "integrations" / "trainer_step.py", tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    for kind in KINDS:
        _, gradients = taken(kind, "own", per_device_train_batch_size=8)
        for way in WAYS if "t5" not in kind else OURS:
            assert apart(load_file(tmp_path / f"{kind} {way}.safetensors"), gradients) < ROUNDING, (kind, way)


@pytest.mark.parametrize("way", OURS)
@pytest.mark.parametrize("kind", KINDS)
def test_evaluation(kind: str, way: str, tmp_path: Path) -> None:
    arguments = options(tmp_path, per_device_eval_batch_size=8)
    # GPT-2's own loss is another one: the Trainer counts the first label of each sequence, which nothing predicts.
    expected = trainer_of(make(kind), "own", arguments).evaluate()["eval_loss"]
    trainer = trainer_of(make(kind), way, arguments)
    seen: dict[str, Any] = {}

    def measure(predictions: Any) -> dict[str, float]:
        logits = predictions.predictions[0] if isinstance(predictions.predictions, tuple) else predictions.predictions
        seen["shape"], labels = logits.shape, predictions.label_ids
        shift = int("t5" not in kind)
        hit = logits[:, : logits.shape[1] - shift].argmax(-1) == labels[:, shift:]
        return {"accuracy": float(hit[labels[:, shift:] != -100].mean())}

    trainer.compute_metrics = measure
    got = trainer.evaluate()
    assert got["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert seen["shape"] == (8, 9, V)
    assert 0 <= got["eval_accuracy"] <= 1
    trainer.compute_metrics = None
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_checkpoints_are_those_of_the_trainer(tmp_path: Path) -> None:
    for way in WAYS:
        saved = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "per_device_train_batch_size": 4}
        trainer_of(make("gpt2, tied"), way, options(tmp_path / way, **saved)).train()
    own = tmp_path / "own" / "checkpoint-2"
    for way in OURS:
        other = tmp_path / way / "checkpoint-2"
        assert {path.name for path in own.iterdir()} == {path.name for path in other.iterdir()}
        for name in ("config.json", "generation_config.json"):
            assert (own / name).read_bytes() == (other / name).read_bytes()
        expected, got = (load_file(folder / "model.safetensors") for folder in (own, other))
        assert expected.keys() == got.keys()
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6)
        # A run without us goes on with what was saved with us.
        rest = options(tmp_path / f"{way} resumed", max_steps=4, per_device_train_batch_size=4)
        trainer = trainer_of(make("gpt2, tied"), "own", rest)
        trainer.train(resume_from_checkpoint=str(other))
        last = load_file(tmp_path / way / "checkpoint-4" / "model.safetensors")
        state = trainer.model.state_dict()
        assert all(torch.allclose(state[name], value, rtol=1e-4, atol=1e-6) for name, value in last.items())


def test_a_cached_teacher(tmp_path: Path) -> None:
    teacher = make(seed=7)
    rows = [{**row, "teacher": number} for number, row in enumerate(examples())]
    with torch.no_grad(), TeacherCache.write(tmp_path / "cache", vocabulary_size=V, fingerprint="test") as writer:
        for row in rows:
            writer.add(Teacher.from_logits(teacher(row["input_ids"][None]).logits[0], 8))
    model = make()
    collate = TeacherCollator(collated(model), TeacherCache(tmp_path / "cache"))
    without_logits(model, teacher_share=0.5)
    made = collate(rows)
    expected = model(**made).loss.item()
    assert expected != pytest.approx(make()(**batch(8)).loss.item(), rel=1e-3)  # the teacher has its say
    from transformers import Trainer

    more = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "remove_unused_columns": False}
    arguments = options(tmp_path / "run", **more)
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collate)  # type: ignore[arg-type]
    assert trainer.train().training_loss == pytest.approx(expected, rel=1e-5)


def test_a_teachers_columns_are_not_taken_for_unused(tmp_path: Path) -> None:
    model = make()
    without_logits(model)
    trainer = trainer_of(model, "own", options(tmp_path))
    trainer._set_signature_columns_if_needed()
    assert {"labels", "teacher_indices", "teacher_log_probs", "teacher_log_rest"} <= set(trainer._signature_columns)
