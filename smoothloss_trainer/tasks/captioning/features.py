"""What a model sees of an image: its object classes, its boxes, or arrays on disk; as batches of tensors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.tasks import round_up


class Features(ABC):
    """Image features by image id.

    Attributes:
        size: Length F of a feature vector.
    """

    size: int

    @abstractmethod
    def regions(self, image: str) -> Tensor:
        """(R, F) float32, R >= 1: the vectors of an image's regions; a global feature is one region."""

    def problem(self, image: str, *, read: bool = False) -> str | None:
        """Why an image's feature cannot be used; None: it can.

        Args:
            image: The image.
            read: Look into it too, and not only whether it is there.
        """
        return None

    def require(self, images: Sequence[str]) -> None:
        """Raise a :class:`~smoothloss_trainer.errors.RecipeError` when one of these images has no feature."""
        problems = [(image, why) for image in images if (why := self.problem(image)) is not None]
        if problems:
            image, why = problems[0]
            raise RecipeError(f"data.features: {len(problems)} of {len(images)} images miss, such as {image}: {why}")

    def identity(self, image: str) -> bytes:
        """What tells this image's features from others, on any machine."""
        return self.regions(image).numpy().astype("<f4").tobytes()

    def rows(self, images: Sequence[str]) -> list[Tensor]:
        """:meth:`regions` of each image."""
        return [self.regions(image) for image in images]

    def pooled(self, images: Sequence[str]) -> tuple[Tensor, ...]:
        """((B, F),): one vector per image, the mean of its regions."""
        return (torch.stack([row.mean(0) for row in self.rows(images)]),)

    def padded(self, images: Sequence[str], multiple: int = 1) -> tuple[Tensor, ...]:
        """((B, R, F), (B, R)): the regions of each image, padded with zeros, and which of them are real.

        R is a multiple of ``multiple``.
        """
        rows = self.rows(images)
        values = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        missing = round_up(values.shape[1], multiple) - values.shape[1]
        values = torch.nn.functional.pad(values, (0, 0, 0, missing)) if missing else values
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
            if not isinstance(classes, list) or not all(_is_class(number, num_classes) for number in classes):
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


class BoxFeatures(Features):
    """The boxes around the objects of an image, one region each: class and geometry.

        [one-hot class; x1 / w, y1 / h, x2 / w, y2 / h, (x2 - x1) (y2 - y1) / (w h)]

    Args:
        boxes: By image id, the boxes ``[x1, y1, x2, y2, class number]`` and the width w and height h of the image. An
            image without boxes is one region of zeros.
        num_classes: How many classes there are.

    Raises:
        RecipeError: when something is no box of its image, or a class number is out of range.
    """

    def __init__(self, boxes: Mapping[str, tuple[Sequence[Sequence[float]], float, float]], num_classes: int) -> None:
        self.num_classes = num_classes
        self.size = num_classes + 5
        self._boxes: dict[str, tuple[Tensor, Tensor]] = {}
        for image, (rows, width, height) in boxes.items():
            if not (_is_size(width) and _is_size(height)):
                raise RecipeError(f"data.captions: image {image} must have a width and a height, got {width}, {height}")
            if not isinstance(rows, list) or not all(_is_box(row, width, height, num_classes) for row in rows):
                expected = f"boxes x1, y1, x2, y2, class inside {width} x {height}, of {num_classes} classes"
                raise RecipeError(f"data.captions: image {image} must have {expected}, got {rows}")
            values = torch.tensor(rows, dtype=torch.float32).view(len(rows), 5)
            corners = values[:, :4] / torch.tensor([width, height, width, height])
            area = (corners[:, 2:] - corners[:, :2]).prod(1, keepdim=True)
            self._boxes[image] = values[:, 4].long(), torch.cat((corners, area), 1)

    def regions(self, image: str) -> Tensor:
        """A row for each box; a single row of zeros for an image without boxes."""
        classes, geometry = self._boxes[image]
        if not len(classes):
            return torch.zeros(1, self.size)
        return torch.cat((torch.nn.functional.one_hot(classes, self.num_classes).float(), geometry), 1)

    def problem(self, image: str, *, read: bool = False) -> str | None:
        """An image must be known, if only as one without boxes."""
        return None if image in self._boxes else "it has no boxes"


def _is_class(number: Any, num_classes: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < num_classes


def _is_size(length: Any) -> bool:
    return isinstance(length, int | float) and not isinstance(length, bool) and 0 < length < math.inf


def _is_box(row: Any, width: float, height: float, num_classes: int) -> bool:
    if not isinstance(row, list) or len(row) != 5 or not all(isinstance(number, int | float) for number in row):
        return False
    left, top, right, bottom, kind = row
    return 0 <= left <= right <= width and 0 <= top <= bottom <= height and kind in range(num_classes)
