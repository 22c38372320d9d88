"""Captions, their splits and features, as read from disk; batches of images with several captions each."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor

from smoothloss.trainer.config import RecipeError, existing_file, expand_path
from smoothloss.trainer.tasks import Batch, pad_rows
from smoothloss.trainer.tasks.captioning.features import ArrayFeatures, Features, LabelFeatures
from smoothloss.trainer.vocabulary import EOS, SPECIAL_TOKENS, Vocabulary

Words = list[str]


@dataclass
class CaptioningData:
    """Captions and image features.

    Args:
        captions: ``format: coco_labels``: JSON that maps an image id to its list of tokenised captions.
            ``format: karpathy``: the JSON of Karpathy's splits. Plain or ``.gz``.
        format: What ``captions`` is.
        labels: For ``coco_labels``, JSON with ``classes``, ``val2014`` (image id to class numbers) and
            ``karpathy_split_of_val2014`` (image ids of ``restval``, ``val`` and ``test``). The feature is the labels.
        features: For ``karpathy``, a folder of ``<id>.npy`` or ``<id>.npz``, one ``.npz`` by id, or one ``.npy`` whose
            rows follow the JSON; a vector or (regions, size) per image.
        min_count: Words seen less often in training become UNK.
        max_words: Longer training captions are cut.
        captions_per_image: Captions of an image in one batch.
        images: Use so many images of a split (of ``train``, ``validation`` or ``test``) and leave out the others.
    """

    captions: str
    format: Literal["coco_labels", "karpathy"] = "coco_labels"
    labels: str | None = None
    features: str | None = None
    min_count: int = 5
    max_words: int = 16
    captions_per_image: int = 5
    images: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CaptionSet:
    """Images by split, their captions as words, and their features.

    Args:
        splits: Image ids of ``train``, ``validation``, ``test``.
        captions: Captions by image id.
        features: What the model sees.
    """

    splits: dict[str, list[str]]
    captions: dict[str, list[Words]]
    features: Features

    def split(self, name: str) -> list[str]:
        """The image ids of a split.

        Raises:
            RecipeError: when there is no such split.
        """
        if name not in self.splits:
            raise RecipeError(f"split must be one of {', '.join(self.splits)}, got {name!r}")
        return self.splits[name]


def read_json(path: str | None, key: str) -> Any:
    """The content of a JSON file, plain or ``.gz``; ``key`` is the recipe key that an error names.

    Raises:
        RecipeError: when the file is missing or no JSON.
    """
    if path is None:
        raise RecipeError(f"{key} is needed for this data.format")
    file = existing_file(path, key)
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        return json.loads(content)
    except (OSError, EOFError, ValueError) as error:
        raise RecipeError(f"{key}: cannot read {file}: {error}") from None


def load_captions(data: CaptioningData) -> CaptionSet:
    """Read what ``data`` describes; splits are cut to ``data.images`` and checked.

    Raises:
        RecipeError: when a file is missing or wrong, or an image has no caption or feature.
    """
    try:
        loaded = _read_karpathy(data) if data.format == "karpathy" else _read_coco_labels(data)
    except (KeyError, TypeError, AttributeError) as error:
        raise RecipeError(f"data.captions: {data.captions} is not in format {data.format}: {error!r}") from None
    for name, count in data.images.items():
        loaded.split(name)[count:] = []
    for name, images in loaded.splits.items():
        if not images:
            raise RecipeError(f"data.captions: there is no image in {name}")
        bare = [image for image in images if not any(loaded.captions.get(image, ()))]
        if bare:
            raise RecipeError(f"data.captions: {len(bare)} images of {name} have no caption, such as image {bare[0]}")
        loaded.features.require(images)
    return loaded


def _read_coco_labels(data: CaptioningData) -> CaptionSet:
    captions = read_json(data.captions, "data.captions")
    labels = read_json(data.labels, "data.labels")
    parts = labels["karpathy_split_of_val2014"]
    splits = {name: [str(image) for image in parts[part]] for name, part in _COCO_SPLITS.items()}
    return CaptionSet(
        splits=splits,
        captions={image: [caption.split() for caption in texts] for image, texts in captions.items()},
        features=LabelFeatures(labels["val2014"], len(labels["classes"])),
    )


_COCO_SPLITS = {"train": "restval", "validation": "val", "test": "test"}
_KARPATHY_SPLITS = {"train": "train", "restval": "train", "val": "validation", "test": "test"}


def _read_karpathy(data: CaptioningData) -> CaptionSet:
    if data.features is None:
        raise RecipeError("data.features is needed for data.format karpathy")
    entries = read_json(data.captions, "data.captions")["images"]
    names = [str(entry.get("cocoid", entry.get("imgid"))) for entry in entries]
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    captions: dict[str, list[Words]] = {}
    for name, entry in zip(names, entries, strict=True):
        if entry["split"] in _KARPATHY_SPLITS:
            splits[_KARPATHY_SPLITS[entry["split"]]].append(name)
            captions[name] = [sentence["tokens"] for sentence in entry["sentences"]]
    path = expand_path(data.features)
    if not path.exists():
        raise RecipeError(f"data.features: no such file or folder: {path}")
    return CaptionSet(splits, captions, ArrayFeatures(path, names))


class CaptionBatches:
    """Numbered training captions of a set of images, and batches of them.

    Args:
        images: The images, in order.
        captions: Captions by image, as words.
        vocabulary: Turns words into tokens.
        max_words: Longer captions are cut.
    """

    def __init__(
        self, images: Sequence[str], captions: dict[str, list[Words]], vocabulary: Vocabulary, max_words: int
    ) -> None:
        self.owner: list[str] = []  # image of each caption
        self.tokens: list[list[int]] = []
        self.numbers: list[range] = []  # caption numbers of each image
        self.references: dict[str, list[int]] = {}
        for image in images:
            encoded = [vocabulary.encode(words) for words in captions[image] if words]
            start = len(self.tokens)
            self.tokens += [tokens[:max_words] for tokens in encoded]
            self.owner += [image] * len(encoded)
            self.numbers.append(range(start, len(self.tokens)))
            self.references[image] = sorted({token for tokens in encoded for token in tokens} - set(SPECIAL_TOKENS))

    def plan(self, images_per_batch: int, captions_per_image: int, seed: int, epoch: int) -> list[list[int]]:
        """Caption numbers of every batch: shuffled images, so many captions of each (repeated where it has fewer).

        A function of the arguments alone.
        """
        order = random.Random(f"{seed}/{epoch}")
        shuffled = order.sample(self.numbers, len(self.numbers))
        batches = []
        for start in range(0, len(shuffled), images_per_batch):
            images = shuffled[start : start + images_per_batch]
            batches.append([number for own in images for number in _choose(own, captions_per_image, order)])
        return batches

    def batch(self, numbers: Sequence[int], source: tuple[Tensor, ...], images: Sequence[str]) -> Batch:
        """The batch of these captions; ``source`` holds the features of ``images``, as :meth:`images` lists them."""
        row = {image: index for index, image in enumerate(images)}
        owners = [self.owner[number] for number in numbers]
        return Batch(
            source=source,
            target=pad_rows([[*self.tokens[number], EOS] for number in numbers]),
            lengths=torch.tensor([len(self.tokens[number]) for number in numbers]),
            source_index=torch.tensor([row[image] for image in owners]),
            references=pad_rows([self.references[image] for image in owners]),
        )

    def images(self, numbers: Sequence[int]) -> list[str]:
        """The images of these captions in order of appearance, each once."""
        return list(dict.fromkeys(self.owner[number] for number in numbers))

    def chunks(self, images_per_batch: int) -> list[list[int]]:
        """All captions in order, so many images at a time."""
        batched = groupby(enumerate(self.numbers), lambda item: item[0] // images_per_batch)
        return [[number for _, own in group for number in own] for _, group in batched]


def _choose(numbers: range, count: int, order: random.Random) -> list[int]:
    if len(numbers) >= count:
        return order.sample(numbers, count)
    return [*numbers, *(order.choice(numbers) for _ in range(count - len(numbers)))]
