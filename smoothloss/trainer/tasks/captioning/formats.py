"""Caption files: Karpathy's, COCO's, tokenised captions by image, captions with boxes.

Every function takes the parsed JSON and gives a :class:`Captions`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smoothloss.trainer.errors import RecipeError
from smoothloss.trainer.tokenizers import ptb_like

Words = list[str]

SPLITS = ("train", "validation", "test")
# Karpathy's names: restval is the part of COCO's val2014 that he adds to the training part.
_SPLIT_NAMES = {"train": "train", "restval": "train", "val": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True)
class Captions:
    """What a caption file says.

    Args:
        splits: Image ids of ``train``, ``validation`` and ``test``.
        captions: Captions by image id, as words.
        files: File names by image id, where the format has them.
    """

    splits: dict[str, list[str]]
    captions: dict[str, list[Words]]
    files: dict[str, str] = field(default_factory=dict)


def from_karpathy(content: Any) -> Captions:
    """``{"images": [{"split", "cocoid" or "imgid", "filename", "sentences": [{"tokens", "raw"}]}]}``.

    The id is ``cocoid``, or else ``imgid``. A sentence without ``tokens`` is cut by :func:`.ptb_like`.
    """
    found = Captions({split: [] for split in SPLITS}, {})
    for entry in content["images"]:
        name = str(entry["cocoid"] if "cocoid" in entry else entry["imgid"])
        if name in found.captions:
            raise RecipeError(f"data.captions: image {name} is there twice")
        if entry["split"] not in _SPLIT_NAMES:
            expected = ", ".join(_SPLIT_NAMES)
            raise RecipeError(f"data.captions: split of image {name} must be one of {expected}, got {entry['split']!r}")
        found.splits[_SPLIT_NAMES[entry["split"]]].append(name)
        found.captions[name] = [
            list(sentence["tokens"]) if "tokens" in sentence else ptb_like(sentence["raw"]).split()
            for sentence in entry["sentences"]
        ]
        if "filename" in entry:
            found.files[name] = entry["filename"]
    return found


def from_tokenised(content: Any, splits: Mapping[str, Sequence[Any]]) -> Captions:
    """``{image id: [caption]}``, tokens joined by spaces; ``splits`` has Karpathy's ``restval``, ``val``, ``test``."""
    parts = {_SPLIT_NAMES[name]: [str(image) for image in splits[name]] for name in ("restval", "val", "test")}
    return Captions(parts, {image: [caption.split() for caption in texts] for image, texts in content.items()})


def from_boxes(content: Any) -> Captions:
    """``{"images": [{"image_id", "split", "captions": [tokens joined by spaces]}]}``."""
    entries = [
        {**entry, "imgid": entry["image_id"], "sentences": [{"tokens": c.split()} for c in entry["captions"]]}
        for entry in content["images"]
    ]
    return from_karpathy({"images": entries})


def from_coco(
    contents: Sequence[Any], tokenised: Mapping[str, Sequence[str]] | None, listed: Mapping[str, Sequence[str]]
) -> Captions:
    """COCO's ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``, one or several files.

    Args:
        contents: The files.
        tokenised: Tokenised captions by image id, to use in place of the raw ones. None: :func:`.ptb_like`.
        listed: Images of ``validation`` and ``test``, by id or file name. An image that is not listed is in the split
            that its entry names (``"split": "val"``), or else in ``train``.

    Raises:
        RecipeError: when an id is that of two images, a caption's image is missing, or a listed image is.
    """
    entries = _unique_images(contents)
    raw: dict[str, list[Words]] = {image: [] for image in entries}
    for annotation in (annotation for content in contents for annotation in content["annotations"]):
        image = str(annotation["image_id"])
        if image not in raw:
            what = f"caption {annotation.get('id', repr(annotation['caption']))} is of image {image}"
            raise RecipeError(f"data.captions: {what}, which is not among the images")
        if tokenised is None:
            raw[image].append(ptb_like(annotation["caption"]).split())
    captions = raw if tokenised is None else {image: [c.split() for c in tokenised.get(image, ())] for image in raw}
    files = {image: entry["file_name"] for image, entry in entries.items() if "file_name" in entry}
    return Captions(_split(entries, files, listed), captions, files)


def _unique_images(contents: Sequence[Any]) -> dict[str, dict[str, Any]]:
    entries: dict[str, dict[str, Any]] = {}
    for entry in (entry for content in contents for entry in content["images"]):
        other = entries.setdefault(str(entry["id"]), entry)
        if other is not entry:
            names = f"{other.get('file_name')} and {entry.get('file_name')}"
            raise RecipeError(f"data.captions: two images have the id {entry['id']}: {names}")
    return entries


def _split(
    entries: Mapping[str, dict[str, Any]], files: Mapping[str, str], listed: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    by_file = {file: image for image, file in files.items()}
    chosen: dict[str, str] = {}
    for split, names in listed.items():
        for name in names:
            image = name if name in entries else by_file.get(name, by_file.get(Path(name).name))
            if image is None:
                raise RecipeError(f"data.splits.{split}: image {name} is not in data.captions")
            if chosen.setdefault(image, split) != split:
                raise RecipeError(f"data.splits: image {name} is in {chosen[image]} and in {split}")
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for image, entry in entries.items():
        splits[chosen.get(image) or _SPLIT_NAMES[entry.get("split", "train")]].append(image)
    return splits
