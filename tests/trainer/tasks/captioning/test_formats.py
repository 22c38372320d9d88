from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.tasks.captioning.formats import assign, from_boxes, from_coco, from_karpathy, from_tokenised
from smoothloss_trainer.tasks.captioning.node import Node


def test_words_are_those_of_coco_caption_but_for_abbreviations(data_dir: Path) -> None:
    raw = json.loads(gzip.decompress((data_dir / "coco" / "captions_val2014.json.gz").read_bytes()))
    tokenised = json.loads(gzip.decompress((data_dir / "coco" / "captions_val2014.ptb.json.gz").read_bytes()))
    found = from_coco([Node(raw)]).captions
    assert found.keys() == tokenised.keys()
    pairs = [(ours, theirs) for image, own in found.items() for ours, theirs in zip(own, tokenised[image], strict=True)]
    assert len(pairs) == 202_654 and all(ours for ours, _ in pairs)
    share = sum(" ".join(ours) == theirs for ours, theirs in pairs) / len(pairs)
    assert share == pytest.approx(0.9992, abs=5e-5), "what the docstring of ptb_like states"


def entry(split: str, *captions: str, **names: Any) -> dict[str, Any]:
    return {"split": split, "sentences": [{"raw": caption} for caption in captions], **names}


def test_karpathys_json() -> None:
    images = [
        entry("train", "A dog.", cocoid=7, imgid=0, filename="a.jpg"),
        entry("restval", "A cat.", "Cats!", imgid=1),
        {"split": "val", "imgid": 2, "sentences": [{"tokens": ["as", "IS"], "raw": "something else"}]},
        entry("test", "A bird.", imgid=3),
    ]
    found = from_karpathy(Node({"images": images}))
    assert found.splits == {"train": ["7", "1"], "validation": ["2"], "test": ["3"]}
    assert found.captions["1"] == [["a", "cat"], ["cats"]] and found.captions["2"] == [["as", "IS"]]
    assert found.files == {"7": "a.jpg"}
    with pytest.raises(RecipeError, match="image 7 is there twice"):
        from_karpathy(Node({"images": images[:1] * 2}))
    with pytest.raises(RecipeError, match=r"images\[0\]\.split must be one of train, restval, .*, got 'dev'"):
        from_karpathy(Node({"images": [entry("dev", "A dog.", imgid=5)]}))


def test_tokenised_captions() -> None:
    found = from_tokenised(Node({"5": ["a dog", "dogs"]}), Node({"restval": [5], "val": [6], "test": []}))
    assert found.splits == {"train": ["5"], "validation": ["6"], "test": []}
    assert found.captions == {"5": [["a", "dog"], ["dogs"]]}


def test_captions_with_boxes() -> None:
    found = from_boxes(Node({"images": [{"image_id": 5, "split": "val", "captions": ["a dog", "dogs"]}]}))
    assert found.splits == {"train": [], "validation": ["5"], "test": []}
    assert found.captions == {"5": [["a", "dog"], ["dogs"]]} and found.files == {}


def coco(*images: tuple[int, str], **captions: str) -> Node:
    annotations = [
        {"image_id": int(key[1:]), "id": n, "caption": text} for n, (key, text) in enumerate(captions.items())
    ]
    return Node({"images": [{"id": number, "file_name": name} for number, name in images], "annotations": annotations})


ONE = coco((1, "x/a.jpg"), (2, "b.jpg"), _1="A dog.", _2="A cat's tail")
OTHER = coco((3, "c.jpg"), _3="Birds.")


def test_coco_captions_of_several_files() -> None:
    found = assign(from_coco([ONE, OTHER]), {"validation": ["b.jpg"], "test": ["3"]})
    assert found.splits == {"train": ["1"], "validation": ["2"], "test": ["3"]}
    assert found.captions == {"1": [["a", "dog"]], "2": [["a", "cat", "'s", "tail"]], "3": [["birds"]]}
    assert found.files == {"1": "x/a.jpg", "2": "b.jpg", "3": "c.jpg"}
    assert assign(from_coco([ONE, OTHER]), {"test": ["x/a.jpg", "y/c.jpg"]}).splits["test"] == ["1", "3"]


def test_coco_images_may_name_their_split() -> None:
    images = [{"id": 1, "split": "val"}, {"id": 2, "split": "train"}, {"id": 3}, {"id": 4, "split": "test"}]
    found = assign(from_coco([Node({"images": images, "annotations": []})]), {"test": ["2"]})
    assert found.splits == {"train": ["3"], "validation": ["1"], "test": ["2", "4"]}


def test_coco_captions_may_come_tokenised() -> None:
    found = from_coco([ONE], Node({"1": ["a Dog ."], "9": ["other"]}))
    assert found.captions == {"1": [["a", "Dog", "."]], "2": []}


@pytest.mark.parametrize(
    ("contents", "listed", "message"),
    [
        (
            [coco((1, "a.jpg"), _1="A dog.", _9="A cat.")],
            {},
            r"annotations\[1\] is of image 9, which is not among the images",
        ),
        ([ONE, coco((2, "z.jpg"))], {}, r"two images have the id 2: b\.jpg and z\.jpg"),
        ([ONE], {"test": ["2", "z.jpg"]}, r"data\.splits\.test: image z\.jpg is not in data\.captions"),
        ([ONE], {"validation": ["2"], "test": ["b.jpg"]}, r"image b\.jpg is in validation and in test"),
    ],
)
def test_coco_files_that_do_not_fit_are_refused(
    contents: list[Any], listed: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        assign(from_coco(contents), listed)
