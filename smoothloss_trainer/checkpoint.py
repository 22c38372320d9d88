"""Checkpoints: one safetensors file each, written whole or not at all, and read without pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from smoothloss._files import write_atomically, write_out
from smoothloss._tensor_file import open_tensors
from smoothloss_trainer.errors import RecipeError

Spread = Callable[[Tensor, Tensor], Tensor]
_HOW = ("foreach", "fused", "capturable")  # of an optimizer's settings those that change no result


def write_json(path: str | Path, content: Any) -> None:
    """Write indented JSON whole or not at all, to what a command's ``--out`` may name."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_out(path, f"{text}\n".encode("utf-8", "backslashreplace"))  # half a surrogate pair becomes its escape


def save_checkpoint(path: str | Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-able state to one safetensors file, whole or not at all.

    Raises:
        OSError: when it cannot be written, on a full disk say. What the file held before is intact.
    """
    # Copies, since safetensors refuses tensors that share memory.
    plain = torch.contiguous_format
    copies = {name: tensor.detach().cpu().clone(memory_format=plain) for name, tensor in tensors.items()}
    try:
        write_atomically(path, save(copies, metadata={"state": json.dumps(dict(state))}))
    except OSError as error:
        reason = f"cannot write a checkpoint: {error.strerror}; the one before it is intact"
        raise OSError(error.errno, reason, str(path)) from None


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the state that :func:`save_checkpoint` wrote.

    Raises:
        RecipeError: when the file is missing or is no checkpoint.
    """
    if not Path(path).is_file():
        raise RecipeError(f"no such checkpoint: {path}")
    try:
        with open_tensors(path) as file:
            state: dict[str, Any] = json.loads((file.metadata() or {})["state"])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118 (not a mapping)
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise RecipeError(f"{path} is not a checkpoint of the trainer: {error}") from None


def load_model(path: str | Path, model: nn.Module) -> dict[str, Any]:
    """Load the model in a checkpoint into ``model``; returns the checkpoint's state.

    Raises:
        RecipeError: when the file is missing, is no checkpoint, or holds a model of other sizes.
    """
    tensors, state = load_checkpoint(path)
    put_model(tensors, model, path)
    return state


def put_model(tensors: Mapping[str, Tensor], model: nn.Module, path: str | Path, spread: Spread | None = None) -> None:
    """Put a checkpoint's model, read from ``path``, into ``model``; ``spread`` makes its tensors like the model's.

    Raises:
        RecipeError: when it is of other sizes, because data, features or vocabulary have changed since.
    """
    own, given = model.state_dict(), without_prefix("model", tensors)
    if spread is not None:
        given = {name: spread(value, own[name]) if name in own else value for name, value in given.items()}
    try:
        model.load_state_dict(given)
    except RuntimeError as error:
        raise RecipeError(f"{path} does not fit its recipe and data: {' '.join(str(error).split())}") from None


def average_checkpoints(paths: Sequence[str | Path]) -> dict[str, Tensor]:
    """``mean(tensor_1, ..., tensor_n)``, taken in float64, of every tensor of the models in checkpoints of one run.

    Tensors of integers (counters) are the last checkpoint's. Optimizers and random states are left out.

    Raises:
        RecipeError: when a file is missing or is no checkpoint.

    Source: Junczys-Dowmunt, Dwojak and Sennrich 2016, "The AMU-UEDIN submission to the WMT16 news translation task".
    """
    models = [without_prefix("model", load_checkpoint(path)[0]) for path in paths]
    return with_prefix("model", {name: _mean([model[name] for model in models]) for name in models[-1]})


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    last = tensors[-1]
    return torch.stack([*tensors]).double().mean(0).to(last.dtype) if last.is_floating_point() else last


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``{prefix.name: tensor}``."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`with_prefix`: the tensors under ``prefix``."""
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors and JSON: ``{"<parameter>.<name>": tensor}`` and the rest."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for parameter, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}.{name}"] = value
            else:
                values.setdefault(str(parameter), {})[name] = value
    groups = [
        {name: float(value) if isinstance(value, Tensor) else value for name, value in group.items()}
        for group in state["param_groups"]
    ]
    return tensors, {"values": values, "param_groups": groups}


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
    rest: Mapping[str, Any],
    spread: Spread | None = None,
) -> None:
    """Put back what :func:`flatten_optimizer` took; ``spread`` makes its tensors like the parameters.

    How the optimizer computes stays as it is.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {int(parameter): dict(values) for parameter, values in rest["values"].items()}
    for key, tensor in tensors.items():
        parameter, _, name = key.partition(".")
        like = tensor if spread is None else spread(tensor, parameters[int(parameter)])
        state.setdefault(int(parameter), {})[name] = like
    own = [{key: group[key] for key in _HOW if key in group} for group in optimizer.param_groups]
    rates = [group["lr"] for group in optimizer.param_groups]
    groups = [saved | how for saved, how in zip(rest["param_groups"], own, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(rate, Tensor):  # which a recording reads
            group["lr"] = rate.fill_(group["lr"])
