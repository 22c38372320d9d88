"""The page on many devices: four processes run it, and each piece ends with what one process gets. Also as a script."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

PAGE = Path(__file__).resolve().parents[2] / "docs" / "many_devices.md"
WORLD = 4


def _blocks() -> list[str]:
    """Return the page's blocks of Python, each on the lines that it has there."""
    text = PAGE.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text.count("\n", 0, match.start(1)) + match[1] for match in found]


def _expected(names: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model = names["Model"]()
    loss = model(*names["batch"]())
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


def _compare(names: dict[str, Any], code: str) -> None:
    """Compare the loss and the gradients that a block has made."""
    loss, gradients = _expected(names)
    mean = names.pop("loss").detach().clone()
    dist.all_reduce(mean)
    torch.testing.assert_close(mean / WORLD, loss, rtol=1e-12, atol=0, msg=lambda text: f"{text}\n{code}")
    for name, parameter in names["model"].named_parameters():
        found = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
        expected = gradients[name.removeprefix("module.")]
        torch.testing.assert_close(
            found, expected, rtol=1e-12, atol=1e-13, msg=lambda text, name=name: f"{name}: {text}\n{code}"
        )


def _one_process() -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    names: dict[str, Any] = {"__name__": "__main__"}
    compared = 0
    for code in _blocks():
        exec(compile(code, str(PAGE), "exec"), names)
        if "loss" in names:
            _compare(names, code)
            compared += 1
    assert compared == 7
    dist.destroy_process_group()


@pytest.mark.slow
def test_each_piece_makes_the_loss_and_the_gradients_of_one_process(tmp_path: Path) -> None:
    from waiting import free_port, outputs  # not on the path of the script

    command = [sys.executable, __file__]
    world = {**os.environ, "MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(WORLD)}
    processes = [
        subprocess.Popen(command, env={**world, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        for rank in range(WORLD)
    ]
    errors = [said for _, said in outputs(processes)]
    assert not any(process.returncode for process in processes), "\n".join(errors)


if __name__ == "__main__":
    _one_process()
