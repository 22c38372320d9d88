"""Caption files: Karpathy's, COCO's, tokenised captions by image, captions with boxes.

Every function takes parsed JSON as a :class:`Node`, and gives a :class:`Captions`. What is not of the format is a
:class:`~smoothloss_trainer.errors.RecipeError`; a caption that is none makes its image unusable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.tasks.captioning.node import Node
from smoothloss_trainer.tokenizers import ptb_like

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
        broken: Why an image's captions cannot be used, by image id.
    """

    splits: dict[str, list[str]]
    captions: dict[str, list[Words]]
    files: dict[str, str] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def add(self, image: str, caption: Node | None, words: Callable[[Node], Words]) -> None:
        """One more caption of an image, or what is wrong with it; None: it is not there."""
        try:
            if caption is None:
                raise RecipeError("a caption has no text")
            self.captions[image].append(words(caption))
        except RecipeError as error:
            self.broken.setdefault(image, str(error))


def spoken(caption: Node) -> Words:
    """The words of a raw caption."""
    return ptb_like(caption.text()).split()


def spaced(caption: Node) -> Words:
    """The words of a tokenised caption, separated by spaces."""
    return caption.text().split()


def listed(caption: Node) -> Words:
    """The words of a list of them."""
    return [word for token in caption.entries() for word in token.text().split()]


def from_karpathy(content: Node) -> Captions:
    """``{"images": [{"split", "cocoid" or "imgid", "filename", "sentences": [{"tokens", "raw"}]}]}``.

    The id is ``cocoid``, or else ``imgid``. A sentence without ``tokens`` is cut by :func:`.ptb_like`.
    """
    found = Captions({split: [] for split in SPLITS}, {})
    for entry in content["images"].entries():
        name = (entry.get("cocoid") or entry["imgid"]).identifier()
        _begin(found, name, entry)
        for sentence in entry["sentences"].entries():
            tokens = sentence.get("tokens")
            found.add(name, tokens or sentence.get("raw"), listed if tokens else spoken)
    return found


def _begin(found: Captions, name: str, entry: Node) -> None:
    if name in found.captions:
        raise RecipeError(f"{entry.place}: image {name} is there twice")
    found.splits[entry["split"].one_of(_SPLIT_NAMES)].append(name)
    found.captions[name] = []
    file = entry.get("filename")
    if file is not None:
        found.files[name] = file.text()


def from_boxes(content: Node) -> Captions:
    """``{"images": [{"image_id", "split", "captions": [tokens joined by spaces]}]}``."""
    found = Captions({split: [] for split in SPLITS}, {})
    for entry in content["images"].entries():
        name = entry["image_id"].identifier()
        _begin(found, name, entry)
        for caption in entry["captions"].entries():
            found.add(name, caption, spaced)
    return found


def from_tokenised(content: Node, splits: Node) -> Captions:
    """``{image id: [caption]}``, tokens joined by spaces; ``splits`` has Karpathy's ``restval``, ``val``, ``test``."""
    parts = {
        _SPLIT_NAMES[name]: [image.identifier() for image in splits[name].entries()]
        for name in ("restval", "val", "test")
    }
    twice = [image for image, count in Counter(chain.from_iterable(parts.values())).items() if count > 1]
    if twice:
        raise RecipeError(f"{splits.place}: image {twice[0]} is there twice")
    return _texts_by_image(Captions(parts, {}), content)


def _texts_by_image(found: Captions, content: Node) -> Captions:
    for image, texts in content.members():
        found.captions[image] = []
        for caption in texts.entries():
            found.add(image, caption, spaced)
    return found


def from_coco(contents: Sequence[Node], tokenised: Node | None = None) -> Captions:
    """COCO's ``{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}``, one or several files.

    An image is in the split that its entry names (``"split": "val"``), or else in ``train``; see :func:`assign`.

    Args:
        contents: The files.
        tokenised: Tokenised captions by image id, to use in place of the raw ones. None: :func:`.ptb_like`.

    Raises:
        RecipeError: when an id is that of two images, or a caption's image is missing.
    """
    entries = _unique_images(contents)
    found = Captions({split: [] for split in SPLITS}, {image: [] for image in entries}, _names(entries, "file_name"))
    for image, entry in entries.items():
        split = entry.get("split")
        found.splits["train" if split is None else split.one_of(_SPLIT_NAMES)].append(image)
    for annotation in (annotation for content in contents for annotation in content["annotations"].entries()):
        image = annotation["image_id"].identifier()
        if image not in entries:
            raise RecipeError(f"{annotation.place} is of image {image}, which is not among the images")
        if tokenised is None:
            found.add(image, annotation.get("caption"), spoken)
    if tokenised is not None:
        given = _texts_by_image(Captions({}, {}), tokenised)
        found.captions.update({image: given.captions.get(image, []) for image in entries})
        found.broken.update({image: why for image, why in given.broken.items() if image in entries})
    return found


def _unique_images(contents: Sequence[Node]) -> dict[str, Node]:
    entries: dict[str, Node] = {}
    for entry in (entry for content in contents for entry in content["images"].entries()):
        other = entries.setdefault(entry["id"].identifier(), entry)
        if other is not entry:
            names = " and ".join(str(each.value.get("file_name")) for each in (other, entry))
            raise RecipeError(f"{entry.place}: two images have the id {entry['id'].value}: {names}")
    return entries


def _names(entries: Mapping[str, Node], key: str) -> dict[str, str]:
    found = ((image, entry.get(key)) for image, entry in entries.items())
    return {image: name.text() for image, name in found if name is not None}


def assign(found: Captions, listed: Mapping[str, Sequence[str]]) -> Captions:
    """The same captions with the splits of some images given by lists.

    Args:
        found: The captions.
        listed: Images of ``validation`` and ``test``, by id or file name.

    Raises:
        RecipeError: when a listed image is not there, in two lists, or one of several with this file name.
    """
    by_file = {file: image for image, file in found.files.items()}
    several = {file for file, count in Counter(found.files.values()).items() if count > 1}
    chosen: dict[str, str] = {}
    for split, names in listed.items():
        for name in names:
            image = name if name in found.captions else by_file.get(name, by_file.get(Path(name).name))
            if image is None:
                raise RecipeError(f"data.splits.{split}: image {name} is not in data.captions")
            if name not in found.captions and found.files[image] in several:
                raise RecipeError(f"data.splits.{split}: {name} is the file of several images: list their ids")
            if chosen.setdefault(image, split) != split:
                raise RecipeError(f"data.splits: image {name} is in {chosen[image]} and in {split}")
    own = {image: split for split, images in found.splits.items() for image in images}
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for image in found.captions:
        splits[chosen.get(image, own[image])].append(image)
    return replace(found, splits=splits)


def known_names(images: Iterable[str], files: Mapping[str, str]) -> set[str]:
    """Everything that a list may call the images: ids, and file names with and without folder and suffix."""
    return {
        *images,
        *(name for file in files.values() for name in (file, Path(file).name, Path(file).stem)),
    }
