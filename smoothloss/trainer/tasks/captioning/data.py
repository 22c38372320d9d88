"""Captions, their splits and features, as read from disk; batches of images with several captions each."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from smoothloss.rewards import References
from smoothloss.trainer.errors import RecipeError
from smoothloss.trainer.files import existing_file, expand_path, read_json, read_text
from smoothloss.trainer.tasks import Batch, pad_rows
from smoothloss.trainer.tasks.captioning import formats
from smoothloss.trainer.tasks.captioning.arrays import ArrayFeatures
from smoothloss.trainer.tasks.captioning.features import BoxFeatures, Features, LabelFeatures
from smoothloss.trainer.tasks.captioning.formats import Captions, Words
from smoothloss.trainer.vocabulary import EOS, SPECIAL_TOKENS, Vocabulary

MOST_FOLDERS = 50  # that are looked through for images


@dataclass
class CaptioningData:
    """Captions and image features.

    Args:
        captions: A JSON file, plain or ``.gz``; for ``coco_captions`` also a list of several, read as one.
        format: What ``captions`` is. ``karpathy``: the JSON of Karpathy's splits (``dataset_coco.json``).
            ``coco_captions``: COCO's ``images`` and ``annotations``. ``coco_labels``: tokenised captions by image id.
            ``coco_boxes``: captions and boxes with classes by image.
        features: A folder with one ``.npy``, ``.npz`` or ``.h5`` an image, or one such file for all; a vector (F,) or
            regions (R, F) each. Named by the images' file names (with or without suffix) or ids. One ``.npy`` holds
            rows, in the order of ``feature_ids``.
        feature_ids: Image ids or file names in the order of the rows of ``features``: a JSON list, or a line each. Left
            out, ``<features without suffix>.ids.json`` if there is one, else the captions' order.
        labels: JSON with ``classes``, ``val2014`` (image id to class numbers) and ``karpathy_split_of_val2014`` (image
            ids of ``restval``, ``val`` and ``test``). For ``coco_labels``, where the split comes from, and the feature
            too without ``features``.
        tokens: For ``coco_captions``, JSON that maps an image id to its tokenised captions, to use in place of our own
            tokenisation of the raw ones.
        splits: For ``coco_captions``, files that list the images of ``validation`` and ``test`` by id or file name: a
            JSON list, another COCO JSON, or a line each (its last word). The others are for training.
        min_count: Words seen less often in training become UNK.
        max_words: Longer training captions are cut.
        captions_per_image: Captions of an image in one batch.
        images: Use so many images of a split (of ``train``, ``validation`` or ``test``) and leave out the others.
    """

    captions: str | list[str]
    format: Literal["karpathy", "coco_captions", "coco_labels", "coco_boxes"] = "coco_labels"
    features: str | None = None
    feature_ids: str | None = None
    labels: str | None = None
    tokens: str | None = None
    splits: dict[str, str] = field(default_factory=dict)
    min_count: int = 5
    max_words: int = 16
    captions_per_image: int = 5
    images: dict[str, int] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """The caption files."""
        return [self.captions] if isinstance(self.captions, str) else self.captions


@dataclass(frozen=True)
class CaptionSet:
    """Images by split, their captions as words, and their features.

    Args:
        splits: Image ids of ``train``, ``validation``, ``test``.
        captions: Captions by image id.
        features: What the model sees.
        files: File names by image id, where they are known.
    """

    splits: dict[str, list[str]]
    captions: dict[str, list[Words]]
    features: Features
    files: dict[str, str] = field(default_factory=dict)

    def split(self, name: str) -> list[str]:
        """The image ids of a split.

        Raises:
            RecipeError: when there is no such split.
        """
        if name not in self.splits:
            raise RecipeError(f"split must be one of {', '.join(self.splits)}, got {name!r}")
        return self.splits[name]


def read_names(path: str, key: str) -> list[str]:
    """Image ids or file names: a JSON list, the images of a COCO JSON, or the last word of each line.

    Raises:
        RecipeError: when the file is missing or something else.
    """
    if not path.endswith((".json", ".json.gz")):
        return [line.split()[-1] for line in read_text(existing_file(path, key), key).splitlines() if line.strip()]
    content = read_json(path, key)
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        content = [image["id"] for image in content["images"]]
    if not isinstance(content, list) or not all(isinstance(name, str | int) for name in content):
        raise RecipeError(f"{key}: {path} must hold a list of image ids or file names")
    return [str(name) for name in content]


def load_captions(data: CaptioningData) -> CaptionSet:
    """Read what ``data`` describes; splits are cut to ``data.images`` and checked.

    Raises:
        RecipeError: when a file is missing or wrong, or an image has no caption or feature.
    """
    if not data.files or (len(data.files) > 1 and data.format != "coco_captions"):
        raise RecipeError(f"data.captions must be one file for data.format {data.format}, got {len(data.files)}")
    if data.features is None and data.labels is None and data.format in ("karpathy", "coco_captions"):
        raise RecipeError(f"data.features is needed for data.format {data.format}")
    try:
        text, features = _READERS[data.format](data)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        file = ", ".join(data.files)
        raise RecipeError(f"data.captions: {file} is not in format {data.format}: {error!r}") from None
    loaded = CaptionSet(text.splits, text.captions, features, text.files)
    for name, count in data.images.items():
        loaded.split(name)[count:] = []
    for name in loaded.splits:
        _check_split(loaded, name)
    return loaded


def find_image(data: CaptioningData, file: str) -> Path | None:
    """The image of a file name: beside the captions or the features, or in a folder there; None where it is not."""
    beside = [expand_path(path).parent for path in (*data.files, *([data.features] if data.features else []))]
    for base in dict.fromkeys(beside):
        folders = sorted(path for path in base.iterdir() if path.is_dir()) if base.is_dir() else []
        for folder in (base, *folders[:MOST_FOLDERS]):
            for name in dict.fromkeys((file, Path(file).name)):
                if (folder / name).is_file():
                    return folder / name
    return None


def _check_split(loaded: CaptionSet, name: str) -> None:
    images = loaded.splits[name]
    if not images:
        raise RecipeError(f"data.captions: there is no image in {name}")
    bare = [image for image in images if not any(loaded.captions.get(image, ()))]
    if bare:
        raise RecipeError(f"data.captions: {len(bare)} images of {name} have no caption, such as image {bare[0]}")
    # In training an empty caption is left out; a reference that is left out would change the scores.
    empty = [image for image in images if not all(loaded.captions[image])]
    if empty and name != "train":
        raise RecipeError(f"data.captions: {len(empty)} images of {name} have an empty caption, such as {empty[0]}")
    loaded.features.require(images)


def _read_coco_labels(data: CaptioningData) -> tuple[Captions, Features]:
    labels = read_json(data.labels, "data.labels")
    text = formats.from_tokenised(read_json(data.files[0], "data.captions"), labels["karpathy_split_of_val2014"])
    return text, _features(data, text)


def _read_karpathy(data: CaptioningData) -> tuple[Captions, Features]:
    text = formats.from_karpathy(read_json(data.files[0], "data.captions"))
    return text, _features(data, text)


def _read_coco_captions(data: CaptioningData) -> tuple[Captions, Features]:
    odd = [name for name in data.splits if name not in ("validation", "test")]
    if odd:
        raise RecipeError(f"data.splits must list validation and test, got {odd[0]!r}")
    tokens = None if data.tokens is None else read_json(data.tokens, "data.tokens")
    listed = {name: read_names(path, f"data.splits.{name}") for name, path in data.splits.items()}
    text = formats.from_coco([read_json(file, "data.captions") for file in data.files], tokens, listed)
    return text, _features(data, text)


def _read_coco_boxes(data: CaptioningData) -> tuple[Captions, Features]:
    content = read_json(data.files[0], "data.captions")
    text = formats.from_boxes(content)
    if data.features is not None:
        return text, _features(data, text)
    boxes = {str(entry["image_id"]): (entry["boxes"], entry["width"], entry["height"]) for entry in content["images"]}
    return text, BoxFeatures(boxes, len(content["classes"]))


_READERS: dict[str, Callable[[CaptioningData], tuple[Captions, Features]]] = {
    "coco_labels": _read_coco_labels,
    "karpathy": _read_karpathy,
    "coco_captions": _read_coco_captions,
    "coco_boxes": _read_coco_boxes,
}


def _features(data: CaptioningData, text: Captions) -> Features:
    if data.features is None:
        labels = read_json(data.labels, "data.labels")
        return LabelFeatures(labels["val2014"], len(labels["classes"]))
    path = expand_path(data.features)
    if not path.exists():
        raise RecipeError(f"data.features: no such file or folder: {path}")
    beside = path.with_suffix(".ids.json")
    listed = data.feature_ids or (str(beside) if beside.is_file() else None)
    rows = None if listed is None else read_names(listed, "data.feature_ids")
    return ArrayFeatures(path, list(text.captions), files=text.files, rows=rows)


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
        self.position = {image: number for number, image in enumerate(images)}
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
            inputs=torch.tensor([self.position[image] for image in owners]),
        )

    def packed_references(self) -> References:
        """All captions of each image, cut as they are in batches; image i is input i."""
        return References([self.tokens[own.start : own.stop] for own in self.numbers])

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
