from __future__ import annotations

import torch
from filelock import FileLock

from smoothloss_trainer.checkpoint import save_checkpoint
from smoothloss_trainer.folder import LOCK
from smoothloss_trainer.report.state import count_parameters, read_state

from .conftest import MakeRun, metrics_lines


def test_a_finished_run_says_so(make_run: MakeRun) -> None:
    state = read_state(make_run(), metrics_lines(2))
    assert (state.word, state.epoch, state.step, state.seconds) == ("finished", 2, 20, 40.0)
    assert state.in_words(5, "test", scored=True) == "finished: epoch 2 of 5"  # patience ran out, say
    assert state.in_words(2, "test", scored=False) == "finished: epoch 2 of 2; no scores on test"


def test_a_run_is_running_while_its_directory_is_locked_and_interrupted_afterwards(make_run: MakeRun) -> None:
    run = make_run(finished=False)
    with FileLock(run.path / LOCK):
        assert read_state(run, []).word == "running"
    (run.path / LOCK).touch()  # a killed process leaves it
    state = read_state(run, [])
    assert state.word == "interrupted"
    words = state.in_words(5, "test", scored=True)
    assert words.startswith("interrupted in epoch 3 of 5, step 20, last written 20")
    assert words.endswith("UTC; its scores on test are of an earlier state")


def test_metrics_may_be_younger_than_the_checkpoint(make_run: MakeRun) -> None:
    state = read_state(make_run(finished=False), metrics_lines(4))
    assert (state.step, state.seconds) == (40, 80.0)


def test_without_a_checkpoint_the_state_is_unknown(make_run: MakeRun) -> None:
    run = make_run()
    for damage in (b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{}", b"x" * 100, None):
        if damage is None:
            run.last.unlink()
        else:
            run.last.write_bytes(damage)
        state = read_state(run, metrics_lines(3))
        assert (state.word, state.epoch, state.step) == ("state unknown", 3, 30)
        assert count_parameters(run) is None
    save_checkpoint(run.last, {"a": torch.zeros(1)}, {"progress": {"epoch": "two"}})
    assert read_state(run, []).word == "state unknown"


def test_parameters_are_those_of_the_model_and_shared_matrices_count_once(make_run: MakeRun) -> None:
    run = make_run()
    assert count_parameters(run) == 25
    matrix = torch.arange(6.0).view(2, 3)
    tensors = {"model.a": matrix, "model.b": matrix, "model.c": matrix + 1, "model.d": torch.zeros(4)}
    save_checkpoint(run.best, {**tensors, "model.e": torch.zeros(4), "optimizer.0": torch.ones(99)}, {})
    assert count_parameters(run) == 6 + 6 + 4 + 4
