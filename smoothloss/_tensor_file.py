"""Files of tensors and settings: safetensors, with the settings in the metadata."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from smoothloss._files import write_atomically


def write(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Writes the file; it appears complete or not at all."""
    from safetensors.torch import save

    content = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, metadata=metadata)
    write_atomically(path, content)


@contextmanager
def open_tensors(path: str | Path) -> Iterator[Any]:
    """``safetensors.safe_open``, also for a name that is no UTF-8, which it does not take.

    Raises:
        OSError: The file cannot be opened, with the reason and its name: safe_open calls every such file missing.
        SafetensorError: It is no safetensors file, or a damaged one.
    """
    from safetensors import safe_open

    with Path(path).open("rb") as file:
        try:
            name = os.fsdecode(path).encode().decode()
        except UnicodeEncodeError:
            name = f"/dev/fd/{file.fileno()}"
        # Early versions of safetensors read to the default device.
        with safe_open(name, framework="pt") as tensors, torch.device("cpu"):
            yield tensors


def read(path: Path, file_format: str, what: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and settings of a file whose metadata has this ``format``; ``what`` names its kind in errors.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is another file, or a damaged one.
    """
    from safetensors import SafetensorError

    if not path.is_file():
        raise FileNotFoundError(f"path: no {what} at {path}")
    try:
        with open_tensors(path) as file:
            settings = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"path: {path} is no safetensors file, or a damaged one ({error})") from error
    if settings.pop("format", None) != file_format:
        raise ValueError(f"path: {path} is no {what}, expected metadata with format {file_format!r}")
    return tensors, settings
