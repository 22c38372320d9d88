"""The captioning task on rendered scenes: pixels in, captions out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from smoothloss_trainer.config import Recipe
from smoothloss_trainer.demo.grammar import make_captions
from smoothloss_trainer.demo.scenes import CANVAS, Image, make_scene
from smoothloss_trainer.demo.vision import FEATURE_SIZE, region_features
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.schema import Count, Seed
from smoothloss_trainer.tasks.captioning import CaptioningTask
from smoothloss_trainer.tasks.captioning.data import CaptionSet
from smoothloss_trainer.tasks.captioning.extract import read_pixels
from smoothloss_trainer.tasks.captioning.features import Features
from smoothloss_trainer.tasks.captioning.reader import CaptionReader, image_files


@dataclass
class ScenesData:
    """Rendered scenes with five captions each, computed on the fly.

    Args:
        seed: Of scenes and captions; the run's own seed has no influence on the data.
        images: Scenes in ``train``, ``validation`` and ``test``.
        min_count: Words seen less often in training become UNK.
        max_words: Longer training captions are cut.
        captions_per_image: Captions of an image in one batch.
    """

    seed: Seed = 2018
    images: dict[Literal["train", "validation", "test"], Count] = field(
        default_factory=lambda: {"train": 1000, "validation": 200, "test": 400}
    )
    min_count: Count = 1
    max_words: Count = 16
    captions_per_image: Count = 5


class PictureRegions(Features):
    """What stands out in each picture, found in its pixels by :func:`~smoothloss_trainer.demo.vision.region_features`.

    Args:
        pictures: (H, W, 3) uint8 by image id.
    """

    size = FEATURE_SIZE

    def __init__(self, pictures: dict[str, Image]) -> None:
        self.pictures = pictures
        self._regions = {name: torch.from_numpy(region_features(picture)) for name, picture in pictures.items()}

    def regions(self, image: str) -> Tensor:
        """(R, F) the whole picture, then its pieces."""
        return self._regions[image]

    def identity(self, image: str) -> bytes:
        """The pixels: what is computed from them may differ in the last bit."""
        return self.pictures[image].tobytes()

    def require(self, images: Sequence[str]) -> None:
        """Every scene has its picture."""


class PictureFiles(Features):
    """What stands out in each image file, looked at when it is asked for.

    Args:
        files: By name.
    """

    size = FEATURE_SIZE

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.files = files

    def regions(self, image: str) -> Tensor:
        """(R, F) the whole picture, at the size of the scenes, then its pieces."""
        return torch.from_numpy(region_features(read_pixels(self.files[image], CANVAS)))

    def require(self, images: Sequence[str]) -> None:
        """Every image has its file."""


class PictureReader(CaptionReader):
    """Reads images for the demo's captioners."""

    def open(self, paths: Sequence[str], how: Mapping[str, Any], device: str) -> list[str]:
        """Images, or folders of them."""
        if any(value is not None for value in how.values()):
            raise RecipeError("--weights, --grid and --size are of a ResNet, and the demo's models read pixels")
        names, files = image_files(paths)
        self.features = PictureFiles(files)
        return names


class DemoTask(CaptioningTask):
    """Captions of rendered scenes."""

    data_config: ClassVar[type] = ScenesData
    reader = PictureReader

    @classmethod
    def check_data(cls, data: ScenesData) -> None:
        """Refuse a split without scenes."""
        for split in ("train", "validation", "test"):
            if split not in data.images:
                raise RecipeError(f"data.images.{split} is needed")

    def load(self, recipe: Recipe) -> CaptionSet:
        """Draw the scenes and caption them; no scene is in two splits."""
        data: ScenesData = recipe.data
        splits: dict[str, list[str]] = {}
        captions: dict[str, list[list[str]]] = {}
        self.pictures: dict[str, Image] = {}
        number = 0
        for split in ("train", "validation", "test"):
            splits[split] = []
            for _ in range(data.images.get(split, 0)):
                name, scene = f"{split}-{number}", make_scene(data.seed, number)
                splits[split].append(name)
                captions[name] = [text.split() for text in make_captions(scene, data.seed, number)]
                self.pictures[name] = scene.render()
                number += 1
        return CaptionSet(splits, captions, PictureRegions(self.pictures))

    def picture(self, name: str) -> Image:
        """The rendered scene."""
        return self.pictures[name]

    def target_sentences(self) -> Iterator[Sequence[str]]:
        """The captions of each training image as one text: in GloVe, words that say the same of an image meet."""
        for image in self.dataset.splits["train"]:
            yield [word for caption in self.dataset.captions[image] for word in caption]
