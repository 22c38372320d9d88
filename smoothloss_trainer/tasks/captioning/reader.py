"""New images for a trained captioner: image files, or features in the form that its recipe takes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.files import read_json
from smoothloss_trainer.tasks import Reader, SequenceModel
from smoothloss_trainer.tasks.captioning.arrays import SUFFIXES, open_arrays
from smoothloss_trainer.tasks.captioning.data import CaptioningData
from smoothloss_trainer.tasks.captioning.extract import Extraction, ImageFeatures, images_below
from smoothloss_trainer.tasks.captioning.features import BoxFeatures, Features, LabelFeatures
from smoothloss_trainer.tasks.captioning.model import CaptioningModel, build_captioner, feature_size_of


def source_tensors(
    features: Features, images: Sequence[str], model: CaptioningModel, multiple: int = 1
) -> tuple[Tensor, ...]:
    """What a captioner's encoder reads of images; as many regions of each as are a multiple of ``multiple``."""
    return features.padded(images, multiple) if model.attention else features.pooled(images)


class CaptionReader(Reader):
    """Reads images: inputs are their names, once :meth:`open` has looked at what there is."""

    features: Features
    size: int  # of the feature vectors that the model reads

    def build_model(self, weights: Mapping[str, Tensor]) -> SequenceModel:
        """The captioner that reads feature vectors of the weights' size."""
        self.size = feature_size_of(weights)
        return build_captioner(self.recipe.model, self.size, len(self.vocabularies["target"]))

    def open(self, paths: Sequence[str], how: Mapping[str, Any], device: str) -> list[str]:
        """Find the new images; returns their names, in order.

        Args:
            paths: Image files and folders of them, or one file or folder in the form that the recipe takes.
            how: ``weights``, ``grid`` and ``size`` of :class:`.Extraction`; None: as the run notes.
            device: Where features are extracted from images.

        Raises:
            RecipeError: when something is missing, broken, or of another width than the run's features.
        """
        with _without_key():
            names, self.features = self._find(paths, how, device)
        if self.features.size != self.size:
            raise RecipeError(f"the model reads features of width {self.size}, these have {self.features.size}")
        return names

    def _find(self, paths: Sequence[str], how: Mapping[str, Any], device: str) -> tuple[list[str], Features]:
        data: CaptioningData = self.recipe.data
        found: tuple[list[str], Features]
        if data.features is None:
            found = self._open_json(_only(paths, "a JSON file"), data.format)
        elif len(paths) == 1 and _holds_arrays(Path(paths[0])):
            found = open_arrays(Path(paths[0]))
        else:
            found = self._open_images(paths, how, device)
            how = {}
        if any(value is not None for value in how.values()):
            raise RecipeError("--weights, --grid and --size are for images, and these are features already")
        return found

    def _open_images(
        self, paths: Sequence[str], how: Mapping[str, Any], device: str
    ) -> tuple[list[str], ImageFeatures]:
        given = {key: value for key, value in how.items() if value is not None}
        noted = self.notes.get("extraction")
        if noted is None and "weights" not in given:
            unknown = "the run does not say how its features were extracted from images"
            raise RecipeError(f"{unknown}: give --weights, --grid and --size as for smoothloss features, or features")
        names, files = image_files(paths)
        extraction = replace(Extraction(device=device), **{**_noted(noted or {}), **given})
        return names, ImageFeatures(files, extraction)

    def _open_json(self, path: str, form: str) -> tuple[list[str], Features]:
        content = read_json(path, "INPUT")
        try:
            if form == "coco_boxes":
                entries = {str(each["image_id"]): each for each in content["images"]}
                boxes = {name: (each["boxes"], each["width"], each["height"]) for name, each in entries.items()}
                return list(boxes), BoxFeatures(boxes, self.size - 5)
            rows = content.get("val2014", content)
            labels = {str(name): numbers for name, numbers in rows.items()}
            return list(labels), LabelFeatures(labels, self.size)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            expected = "images with image_id, width, height and boxes" if form == "coco_boxes" else "labels by image id"
            raise RecipeError(f"{path} must hold {expected}, as data of the run did: {error!r}") from None
        except ValueError as error:
            raise RecipeError(f"{path}: {' '.join(str(error).split())}") from None

    def tensors(self, inputs: Sequence[Any]) -> tuple[Tensor, ...]:
        """What the encoder reads of images of these names."""
        with _without_key():
            return source_tensors(self.features, inputs, self.recipe.model)

    def difference(self, other: Reader) -> str | None:
        """Vocabularies, or what the models see."""
        if self.recipe.task != other.recipe.task:
            return "tasks"
        if self.recipe.model.attention != other.recipe.model.attention:
            return "model.attention"
        for key in ("format", "features"):
            kinds = [getattr(reader.recipe.data, key, None) for reader in (self, other)]
            if (kinds[0] is None) != (kinds[1] is None) or (key == "format" and kinds[0] != kinds[1]):
                return f"data.{key}"
        if self.notes.get("extraction") != other.notes.get("extraction"):
            return "features"
        return super().difference(other)


@contextmanager
def _without_key() -> Iterator[None]:
    """Leave out the recipe's keys, which have nothing to do with new input, from what is wrong with a file."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(re.sub(r"^data\.\w+: ", "", str(error))) from None


def image_files(paths: Sequence[str]) -> tuple[list[str], dict[str, Path]]:
    """Images as named, in order, and their files: those named, and those below the folders named.

    ``-`` alone reads names from standard input, a line each; an empty line is the name of no image.

    Raises:
        RecipeError: when there is no such file, or no image in a folder.
    """
    names: list[str] = []
    for given in _piped() if list(paths) == ["-"] else paths:
        path = Path(given)
        if given and path.is_dir():
            names += map(str, images_below(path))
        elif not given or path.is_file():
            names.append(given)
        else:
            raise RecipeError(f"no such image or folder: {given}")
    return names, {name: Path(name) for name in names}


def _piped() -> list[str]:
    if sys.stdin is None:
        raise RecipeError("standard input is closed: name images")
    lines = sys.stdin.buffer.read().split(b"\n")
    return [os.fsdecode(line.removesuffix(b"\r")) for line in (lines if lines[-1] else lines[:-1])]


def _noted(extraction: Mapping[str, Any]) -> dict[str, Any]:
    return {key: extraction[key] for key in ("weights", "grid", "size", "half") if key in extraction}


def _holds_arrays(path: Path) -> bool:
    """Whether this is a file of features, or a folder of such."""
    if path.is_dir():
        return any(file.suffix in SUFFIXES for file in path.iterdir())
    return path.suffix in SUFFIXES


def _only(paths: Sequence[str], expected: str) -> str:
    if len(paths) != 1 or not Path(paths[0]).is_file():
        raise RecipeError(f"the run reads {expected} in the form that its recipe takes, got {' '.join(paths)}")
    return paths[0]
