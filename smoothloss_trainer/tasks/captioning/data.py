"""Captions, their splits and features, as read from disk; batches of images with several captions each."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from smoothloss.rewards import References
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.files import existing_file, expand_path, read_json, read_lines
from smoothloss_trainer.schema import Count, FilePath
from smoothloss_trainer.tasks import Batch, pad_rows
from smoothloss_trainer.tasks.captioning import formats
from smoothloss_trainer.tasks.captioning.arrays import ArrayFeatures
from smoothloss_trainer.tasks.captioning.features import BoxFeatures, Features, LabelFeatures
from smoothloss_trainer.tasks.captioning.formats import Captions, Words
from smoothloss_trainer.tasks.captioning.node import Node
from smoothloss_trainer.tasks.unusable import Unusable
from smoothloss_trainer.vocabulary import EOS, SPECIAL_TOKENS, Vocabulary

_log = logging.getLogger(__name__)
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
            JSON list, another COCO JSON, or a line each (the whole line where it is a name, else its last word). The
            others are for training.
        min_count: Words seen less often in training become UNK.
        max_words: Longer training captions are cut.
        captions_per_image: Captions of an image in one batch.
        images: Use so many images of a split (of ``train``, ``validation`` or ``test``) and leave out the others.
        skip_unusable: Leave out images without a caption or a feature, or with a broken one, from every split, and say
            how many; every feature is then read once before training. Left false, they are an error.
    """

    captions: FilePath | Annotated[list[FilePath], Field(min_length=1)]
    format: Literal["karpathy", "coco_captions", "coco_labels", "coco_boxes"] = "coco_labels"
    features: FilePath | None = None
    feature_ids: FilePath | None = None
    labels: FilePath | None = None
    tokens: FilePath | None = None
    splits: dict[Literal["validation", "test"], FilePath] = field(default_factory=dict)
    min_count: Count = 5
    max_words: Count = 16
    captions_per_image: Count = 5
    images: dict[Literal["train", "validation", "test"], Count] = field(default_factory=dict)
    skip_unusable: bool = False

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

    def drop_test(self) -> None:
        """Keep nothing of the test images."""
        for image in self.splits["test"]:
            self.captions.pop(image, None)
        self.splits["test"] = []


def read_names(path: str, key: str, known: Container[str] = ()) -> list[str]:
    """Image ids or file names: a JSON list, the images of a COCO JSON, or lines.

    A line is a name where the whole of it is known, which may hold spaces, and else its last word.

    Raises:
        RecipeError: when the file is missing or something else.
    """
    file = existing_file(path, key)
    if not path.endswith((".json", ".json.gz")):
        lines = (line.strip() for line in read_lines(file, key))
        return [line if line in known else line.split()[-1] for line in lines if line]
    content = _node(path, key)
    if isinstance(content.value, dict) and "images" in content.value:
        return [image["id"].identifier() for image in content["images"].entries()]
    if not isinstance(content.value, list):
        raise content.wrong("a list of image ids or file names")
    return [name.identifier() for name in content.entries()]


def check_files(data: CaptioningData) -> None:
    """Refuse files that a format does not take, and a format without those that it needs.

    Raises:
        RecipeError: naming the key.
    """
    if len(data.files) > 1 and data.format != "coco_captions":
        raise RecipeError(f"data.captions must be one file for data.format {data.format}, got {len(data.files)}")
    if data.features is None and data.labels is None and data.format in ("karpathy", "coco_captions"):
        raise RecipeError(f"data.features is needed for data.format {data.format}")
    if data.labels is None and data.format == "coco_labels":
        raise RecipeError("data.labels is needed for data.format coco_labels")


def load_captions(data: CaptioningData, *, test: bool = True) -> CaptionSet:
    """Read what ``data`` describes; splits are cut to ``data.images`` and checked.

    Without ``test`` nothing of the test images is kept. Which they are has to be read all the same, since they are not
    to be trained on.

    Raises:
        RecipeError: when a file is missing or wrong, or an image cannot be used and ``data.skip_unusable`` is not set.
    """
    check_files(data)
    text, features = _READERS[data.format](data)
    loaded = CaptionSet(dict(text.splits), text.captions, features, dict(text.files))
    if not test:
        loaded.drop_test()
    for split, count in data.images.items():
        del loaded.split(split)[count:]
    for name, images in loaded.splits.items():
        if name == "test" and not test:
            continue
        loaded.splits[name] = _usable(loaded, name, images, text.broken, data.skip_unusable)
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


def _usable(loaded: CaptionSet, split: str, images: list[str], broken: Mapping[str, str], skip: bool) -> list[str]:
    """The images of a split that can be used."""
    if not images:
        raise RecipeError(f"data.captions: there is no image in {split}")
    found = Unusable("data.captions", f"images of {split}", skip)
    usable = []
    for image in images:
        captions = loaded.captions.get(image, [])
        why = broken.get(image) or _captions_problem(captions, split) or loaded.features.problem(image, read=skip)
        if why is None:
            usable.append(image)
        else:
            found.add(f"image {image}", why)
    found.report(len(images))
    if split == "train":
        _report_empty(loaded, usable)
    return usable


def _captions_problem(captions: Sequence[Words], split: str) -> str | None:
    if not any(captions):
        return "it has no caption"
    # In training an empty caption is left out; a reference that is left out would change the scores.
    return None if split == "train" or all(captions) else "it has an empty caption"


def _report_empty(loaded: CaptionSet, images: Sequence[str]) -> None:
    empty = [image for image in images if not all(loaded.captions[image])]
    if empty:
        _log.warning(
            "data.captions: empty captions of %d images of train are left out, such as of image %s",
            len(empty),
            empty[0],
        )


def _node(path: str | None, key: str) -> Node:
    return Node(read_json(path, key), f"{key}: {path}")


def _read_coco_labels(data: CaptioningData) -> tuple[Captions, Features]:
    labels = _node(data.labels, "data.labels")
    text = formats.from_tokenised(_node(data.files[0], "data.captions"), labels["karpathy_split_of_val2014"])
    return text, _features(data, text)


def _read_karpathy(data: CaptioningData) -> tuple[Captions, Features]:
    text = formats.from_karpathy(_node(data.files[0], "data.captions"))
    return text, _features(data, text)


def _read_coco_captions(data: CaptioningData) -> tuple[Captions, Features]:
    tokens = None if data.tokens is None else read_json(data.tokens, "data.tokens")
    odd = [name for name in data.splits if name not in ("validation", "test")]
    if odd:
        raise RecipeError(f"data.splits must list validation and test, got {odd[0]!r}")
    tokens = None if data.tokens is None else _node(data.tokens, "data.tokens")
    text = formats.from_coco([_node(file, "data.captions") for file in data.files], tokens)
    known = formats.known_names(text.captions, text.files)
    listed: dict[str, list[str]] = {
        name: read_names(path, f"data.splits.{name}", known) for name, path in data.splits.items()
    }
    text = formats.assign(text, listed)
    return text, _features(data, text)


def _read_coco_boxes(data: CaptioningData) -> tuple[Captions, Features]:
    content = _node(data.files[0], "data.captions")
    text = formats.from_boxes(content)
    if data.features is not None:
        return text, _features(data, text)
    boxes = {
        entry["image_id"].identifier(): tuple(entry[name].value for name in ("boxes", "width", "height"))
        for entry in content["images"].entries()
    }
    return text, BoxFeatures(boxes, len(list(content["classes"].entries())))


_READERS: dict[str, Callable[[CaptioningData], tuple[Captions, Features]]] = {
    "coco_labels": _read_coco_labels,
    "karpathy": _read_karpathy,
    "coco_captions": _read_coco_captions,
    "coco_boxes": _read_coco_boxes,
}


def _features(data: CaptioningData, text: Captions) -> Features:
    if data.features is None:
        labels = _node(data.labels, "data.labels")
        numbers = {image: classes.value for image, classes in labels["val2014"].members()}
        features = LabelFeatures(numbers, len(list(labels["classes"].entries())))
        features.require(list(text.captions))
        return features
    path = expand_path(data.features)
    if not path.exists():
        raise RecipeError(f"data.features: no such file or folder: {path}")
    beside = path.with_suffix(".ids.json")
    listed = data.feature_ids or (str(beside) if beside.is_file() else None)
    known = formats.known_names(text.captions, text.files)
    rows = None if listed is None else read_names(listed, "data.feature_ids", known)
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

    def batch(
        self, numbers: Sequence[int], source: tuple[Tensor, ...], images: Sequence[str], multiple: int = 1
    ) -> Batch:
        """The batch of these captions; ``source`` holds the features of ``images``, as :meth:`images` lists them.

        Widths are multiples of ``multiple``.
        """
        row = {image: index for index, image in enumerate(images)}
        owners = [self.owner[number] for number in numbers]
        return Batch(
            source=source,
            target=pad_rows([[*self.tokens[number], EOS] for number in numbers], multiple=multiple),
            lengths=torch.tensor([len(self.tokens[number]) for number in numbers]),
            source_index=torch.tensor([row[image] for image in owners]),
            references=pad_rows([self.references[image] for image in owners], multiple=multiple),
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
