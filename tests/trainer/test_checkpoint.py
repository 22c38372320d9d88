from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from smoothloss_trainer.checkpoint import (
    average_checkpoints,
    flatten_optimizer,
    load_checkpoint,
    load_model,
    restore_optimizer,
    save_checkpoint,
    with_prefix,
    without_prefix,
)
from smoothloss_trainer.errors import RecipeError


def test_tensors_and_state_come_back(tmp_path: Path) -> None:
    weight = torch.randn(3, 4)
    tensors = {"a": weight, "same memory": weight.T, "empty": torch.empty(0), "step": torch.tensor(3.0)}
    save_checkpoint(tmp_path / "c", tensors, {"sum": 0.1 + 0.2, "none": None})
    loaded, state = load_checkpoint(tmp_path / "c")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert state == {"sum": 0.1 + 0.2, "none": None}


@pytest.mark.parametrize("content", [None, b"", b"x" * 100])
def test_what_is_no_checkpoint_is_said(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "c").write_bytes(content)
    with pytest.raises(RecipeError, match="checkpoint"):
        load_checkpoint(tmp_path / "c")


def test_a_truncated_checkpoint_is_said(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", {"a": torch.ones(1000)}, {})
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:-1])
    with pytest.raises(RecipeError, match="is not a checkpoint"):
        load_checkpoint(tmp_path / "c")


def test_a_model_of_other_sizes_is_said(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", with_prefix("model", torch.nn.Linear(3, 4).state_dict()), {})
    with pytest.raises(RecipeError, match=r"c does not fit its recipe and data: .* size mismatch for weight") as caught:
        load_model(tmp_path / "c", torch.nn.Linear(5, 4))
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_said_and_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, {"a": torch.ones(3)}, {"step": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device; the one before it is intact: .*c'") as caught:
            save_checkpoint(path, {"a": torch.zeros(3)}, {"step": 2})
    assert caught.value.errno == errno.ENOSPC
    assert load_checkpoint(path)[1] == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["c"], "no half file is left"


def test_an_optimizer_goes_on_where_it_was() -> None:
    def steps(weight: torch.nn.Parameter, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            (weight**3).sum().backward()
            optimizer.step()

    weight = torch.nn.Parameter(torch.linspace(-1, 1, 5))
    optimizer = torch.optim.Adam([weight], 0.1, (0.8, 0.99), fused=True)
    steps(weight, optimizer, 3)
    copy = torch.nn.Parameter(weight.detach().clone())
    other = torch.optim.Adam([copy], 0.5, fused=True)
    tensors, rest = flatten_optimizer(optimizer)
    restore_optimizer(other, without_prefix("o", with_prefix("o", {k: v.clone() for k, v in tensors.items()})), rest)
    steps(weight, optimizer, 3)
    steps(copy, other, 3)
    assert torch.equal(weight, copy)


def test_an_average_is_the_mean_of_the_models_tensors(tmp_path: Path) -> None:
    models = []
    for number in range(3):
        model = {"weight": torch.randn(3, 4), "half": torch.randn(5).bfloat16(), "seen": torch.tensor(number)}
        save_checkpoint(tmp_path / str(number), with_prefix("model", model) | {"optimizer.0": torch.ones(2)}, {})
        models.append(model)
    average = without_prefix("model", average_checkpoints([tmp_path / str(number) for number in range(3)]))
    assert average.keys() == models[0].keys(), "and nothing but the model"
    for name, kind in (("weight", torch.float32), ("half", torch.bfloat16)):
        assert torch.equal(average[name], sum(model[name].double() for model in models).div(3).to(kind))
    assert average["seen"] == 2


def test_an_average_of_one_is_that_one_bit_for_bit(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 4)
    save_checkpoint(tmp_path / "c", with_prefix("model", model.state_dict()), {"step": 7})
    save_checkpoint(tmp_path / "mean", average_checkpoints([tmp_path / "c"]), {"step": 8})
    other = torch.nn.Linear(3, 4)
    assert load_model(tmp_path / "mean", other) == {"step": 8}
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(other.bias, model.bias)


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"\x80 f\xe4hrt")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    save_checkpoint(folder / "a.safetensors", {"model.w": torch.ones(2)}, {"step": 1})
    tensors, state = load_checkpoint(folder / "a.safetensors")
    assert tensors["model.w"].tolist() == [1, 1]
    assert state == {"step": 1}


def test_a_file_that_may_not_be_read_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, {"model.w": torch.ones(2)}, {})

    def refuse(self: Path, *arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        load_checkpoint(path)
