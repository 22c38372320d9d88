"""What a model sees of an image: label sets or feature arrays, as batches of tensors."""

from __future__ import annotations

import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smoothloss.trainer.config import RecipeError

Array = np.ndarray[Any, np.dtype[Any]]


class Features(ABC):
    """Image features by image id.

    Attributes:
        size: Length F of a feature vector.
    """

    size: int

    @abstractmethod
    def regions(self, image: str) -> Tensor:
        """(R, F) float32, R >= 1: the vectors of an image's regions; a global feature is one region."""

    @abstractmethod
    def require(self, images: Sequence[str]) -> None:
        """Raise a :class:`~smoothloss.trainer.config.RecipeError` when one of these images has no feature."""

    def pooled(self, images: Sequence[str]) -> tuple[Tensor, ...]:
        """((B, F),): one vector per image, the mean of its regions."""
        return (torch.stack([self.regions(image).mean(0) for image in images]),)

    def padded(self, images: Sequence[str]) -> tuple[Tensor, ...]:
        """((B, R, F), (B, R)): the regions of each image, padded with zeros, and which of them are real."""
        rows = [self.regions(image) for image in images]
        values = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        present = torch.arange(values.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        return values, present


class LabelFeatures(Features):
    """The classes of the objects in an image: a multi-hot vector, or one one-hot vector per class as regions.

    Args:
        labels: Class numbers by image id. An image that is not there has no object of these classes.
        num_classes: How many classes there are.

    Raises:
        RecipeError: when a class number is out of range.
    """

    def __init__(self, labels: dict[str, list[int]], num_classes: int) -> None:
        for image, classes in labels.items():
            if not all(0 <= number < num_classes for number in classes):
                raise RecipeError(f"data.labels: image {image} has classes {classes}, there are {num_classes}")
        self.labels = labels
        self.size = num_classes

    def regions(self, image: str) -> Tensor:
        """One-hot rows; a single row of zeros for an image without labels."""
        labels = self.labels.get(image, [])
        rows = torch.zeros(max(1, len(labels)), self.size)
        rows[torch.arange(len(labels)), labels] = 1.0
        return rows

    def pooled(self, images: Sequence[str]) -> tuple[Tensor, ...]:
        """((B, F),): multi-hot vectors, the sum of the one-hot rows."""
        return (torch.stack([self.regions(image).sum(0) for image in images]),)

    def require(self, images: Sequence[str]) -> None:
        """Some image must have labels, else they are those of other images."""
        if not any(image in self.labels for image in images):
            raise RecipeError(f"data.labels: no labels for any of the {len(images)} images")


class ArrayFeatures(Features):
    """Feature arrays, (F,) or (R, F) per image, read when they are needed.

    Args:
        path: A folder of ``<id>.npy`` or ``<id>.npz`` (its first array), one ``.npz`` with an array per id, or one
            ``.npy`` (N, F) or (N, R, F) whose rows follow ``images`` (memory-mapped).
        images: All image ids in the caption file's order.

    Raises:
        RecipeError: when the path is none of these, or the number of rows differs from the number of images.
    """

    def __init__(self, path: Path, images: Sequence[str]) -> None:
        self.path = path
        self._rows: dict[str, int] = {}
        self._files: dict[str, Path] = {}
        try:
            if path.is_dir():
                self._files = {file.stem: file for file in path.iterdir() if file.suffix in (".npy", ".npz")}
            elif path.suffix in (".npy", ".npz"):
                self._array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
                names = images if path.suffix == ".npy" else self._array.files
                if path.suffix == ".npy" and len(self._array) != len(images):
                    raise RecipeError(f"data.features: {path} has {len(self._array)} rows for {len(images)} images")
                self._rows = {name: row for row, name in enumerate(names)}
            else:
                raise RecipeError(f"data.features: expected a folder, .npy or .npz, got {path}")
            first = next(iter(self._files or self._rows), None)
            if first is None:
                raise RecipeError(f"data.features: no features in {path}")
            self.size = self.regions(first).shape[-1]
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise error if isinstance(error, RecipeError) else _unreadable(path, error) from None

    def _read(self, image: str) -> Array:
        if self._files:
            content: Any = np.load(self._files[image], allow_pickle=False)
            return np.asarray(content[content.files[0]] if hasattr(content, "files") else content)
        return np.asarray(self._array[image if hasattr(self._array, "files") else self._rows[image]])

    def regions(self, image: str) -> Tensor:
        """The image's array with a region dimension."""
        try:
            values = np.array(self._read(image), dtype=np.float32)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise _unreadable(self._files.get(image, self.path), error) from None
        if values.ndim not in (1, 2) or not values.size:
            raise RecipeError(f"data.features: image {image} has shape {values.shape}, expected (F,) or (R, F)")
        return torch.from_numpy(values.reshape(-1, values.shape[-1]))

    def require(self, images: Sequence[str]) -> None:
        """Every image must have an array."""
        _require(images, self._files or self._rows, "data.features")


def _unreadable(path: Path, error: Exception) -> RecipeError:
    return RecipeError(f"data.features: cannot read {path}: {error}")


def _require(images: Sequence[str], known: dict[str, Any], key: str) -> None:
    missing = [image for image in images if image not in known]
    if missing:
        raise RecipeError(f"{key}: nothing about {len(missing)} of {len(images)} images, image {missing[0]} among them")
