from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from smoothloss.trainer.errors import RecipeError
from smoothloss.trainer.tasks.captioning.data import CaptionBatches, CaptioningData, load_captions
from smoothloss.trainer.vocabulary import EOS, PAD, Vocabulary

CAPTIONS = {
    "a": [["red", "dog"], ["a", "dog", "runs", "far"], ["dog"]],
    "b": [["blue", "cat"], ["cat", "sits"]],
    "c": [["red", "bird"], ["bird"], ["a", "bird"]],
}
VOCABULARY = Vocabulary.build([words for captions in CAPTIONS.values() for words in captions])


def coco_data(folder: Path, **changes: object) -> CaptioningData:
    values = {"captions": f"{folder}/captions.json", "labels": f"{folder}/labels.json.gz", **changes}
    return CaptioningData(**values)  # type: ignore[arg-type]


def test_both_formats_give_the_same_captions(coco: Path, karpathy: Path) -> None:
    one = load_captions(coco_data(coco))
    path = f"{karpathy}/dataset.json"
    other = load_captions(CaptioningData(path, format="karpathy", features=f"{karpathy}/features.npy"))
    assert one.splits == other.splits and one.captions == other.captions
    assert {name: len(images) for name, images in one.splits.items()} == {"train": 30, "validation": 6, "test": 8}
    images = [image for split in one.splits.values() for image in split]
    assert len(images) == len(set(images))


def test_splits_are_cut(coco: Path) -> None:
    whole, part = load_captions(coco_data(coco)), load_captions(coco_data(coco, images={"train": 7, "test": 2}))
    assert part.splits["train"] == whole.splits["train"][:7] and part.splits["validation"] == whole.splits["validation"]
    with pytest.raises(RecipeError, match="split must be one of train, validation, test, got 'dev'"):
        load_captions(coco_data(coco, images={"dev": 2}))


def test_wrong_files_are_refused_in_one_line(coco: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.labels is needed"):
        load_captions(coco_data(coco, labels=None))
    with pytest.raises(RecipeError, match=r"data\.features is needed"):
        load_captions(coco_data(coco, format="karpathy", labels=None))
    with pytest.raises(RecipeError, match=r"data\.captions: no such file"):
        load_captions(coco_data(coco, captions=f"{tmp_path}/none.json"))
    with pytest.raises(RecipeError, match="not in format coco_labels"):
        load_captions(coco_data(coco, labels=f"{coco}/captions.json"))
    (tmp_path / "half.json").write_text('{"100": ["a dog')
    with pytest.raises(RecipeError, match=r"data\.captions: cannot read .*half\.json"):
        load_captions(coco_data(coco, captions=f"{tmp_path}/half.json"))
    captions = json.loads((coco / "captions.json").read_text())
    captions["103"] = [""]
    (tmp_path / "gap.json").write_text(json.dumps(captions))
    with pytest.raises(RecipeError, match="1 images of train have no caption, such as image 103"):
        load_captions(coco_data(coco, captions=f"{tmp_path}/gap.json"))


def write_coco(folder: Path, karpathy: Path) -> list[str]:
    """Write a COCO captions file for training and one for the rest, and return their paths."""
    entries = json.loads((karpathy / "dataset.json").read_text())["images"]
    paths = []
    for name, own in (("train", ["restval"]), ("rest", ["val", "test"])):
        images = [entry for entry in entries if entry["split"] in own]
        captions = [(entry, " ".join(sentence["tokens"])) for entry in images for sentence in entry["sentences"]]
        content = {
            "images": [{"id": entry["cocoid"], "file_name": f"{entry['cocoid']}.jpg"} for entry in images],
            "annotations": [{"image_id": entry["cocoid"], "caption": f"{text.title()}."} for entry, text in captions],
        }
        paths.append(f"{folder}/{name}.json")
        Path(paths[-1]).write_text(json.dumps(content))
    return paths


def test_coco_captions_give_the_same_too(coco: Path, karpathy: Path, tmp_path: Path) -> None:
    captions = write_coco(tmp_path, karpathy)
    one = load_captions(coco_data(coco))
    listed = "".join(f"val2014/COCO_{image}.jpg {image}\n" for image in one.splits["validation"])
    (tmp_path / "validation.txt").write_text(listed)
    (tmp_path / "test.json").write_text(json.dumps([int(image) for image in one.splits["test"]]))
    splits = {"validation": f"{tmp_path}/validation.txt", "test": f"{tmp_path}/test.json"}
    data = CaptioningData(captions, format="coco_captions", features=f"{karpathy}/files", splits=splits)
    other = load_captions(data)
    assert one.splits == other.splits and one.captions == other.captions
    data.splits["test"] = captions[1]  # a COCO file lists its images
    with pytest.raises(RecipeError, match=r"data\.splits: image \d+ is in validation and in test"):
        load_captions(data)
    data.splits = {"val": captions[1]}
    with pytest.raises(RecipeError, match=r"data\.splits must list validation and test, got 'val'"):
        load_captions(data)
    with pytest.raises(RecipeError, match="there is no image in validation"):
        load_captions(replace(data, splits={}))
    with pytest.raises(RecipeError, match=r"data\.captions must be one file for data\.format karpathy, got 2"):
        load_captions(replace(data, format="karpathy"))


def test_labels_and_arrays_go_with_any_captions(coco: Path, karpathy: Path) -> None:
    arrays = load_captions(coco_data(coco, features=f"{karpathy}/files")).features
    assert arrays.size == 7
    data = CaptioningData(f"{karpathy}/dataset.json", format="karpathy", labels=f"{coco}/labels.json.gz")
    assert load_captions(data).features.size == 4


def test_missing_features_and_empty_references_are_refused(coco: Path, karpathy: Path, tmp_path: Path) -> None:
    content = json.loads((karpathy / "dataset.json").read_text())
    by_split = {entry["split"]: entry for entry in content["images"]}
    data = CaptioningData(f"{tmp_path}/d.json", format="karpathy", features=f"{karpathy}/files")
    by_split["restval"]["sentences"].append({"tokens": []})
    (tmp_path / "d.json").write_text(json.dumps(content))
    load_captions(data)  # one caption less to learn from
    by_split["test"]["sentences"].append({"raw": "?!"})
    (tmp_path / "d.json").write_text(json.dumps(content))
    number = by_split["test"]["cocoid"]
    with pytest.raises(RecipeError, match=f"1 images of test have an empty caption, such as {number}"):
        load_captions(data)
    by_split["test"].update(cocoid=999, sentences=[{"raw": "A dog."}])
    (tmp_path / "d.json").write_text(json.dumps(content))
    with pytest.raises(RecipeError, match=r"files has no feature for 1 of 8 images, image 999 among them"):
        load_captions(data)


def test_boxes_come_with_captions(tmp_path: Path) -> None:
    entry = {"width": 10, "height": 5, "boxes": [[0, 0, 5, 5, 1]], "captions": ["a dog", "dogs"]}
    images = [{"image_id": n, "split": split, **entry} for n, split in enumerate(("train", "val", "test"))]
    (tmp_path / "boxes.json").write_text(json.dumps({"classes": ["cat", "dog"], "images": images}))
    loaded = load_captions(CaptioningData(f"{tmp_path}/boxes.json", format="coco_boxes"))
    assert loaded.splits == {"train": ["0"], "validation": ["1"], "test": ["2"]}
    assert loaded.features.regions("1").tolist() == [[0, 1, 0, 0, 0.5, 1, 0.5]]


def test_a_batch_holds_captions_images_and_references() -> None:
    batches = CaptionBatches(["a", "b", "c"], CAPTIONS, VOCABULARY, max_words=3)
    numbers = [1, 0, 6, 5]
    images = batches.images(numbers)
    assert images == ["a", "c"]
    batch = batches.batch(numbers, (torch.arange(2),), images)
    words = [VOCABULARY.decode(row) for row in batch.target.tolist()]
    assert words == [["a", "dog", "runs"], ["red", "dog"], ["bird"], ["red", "bird"]]  # cut to three words
    assert batch.lengths.tolist() == [3, 2, 1, 2]
    assert batch.target[0, 3] == EOS and batch.target[1].tolist()[2:] == [EOS, PAD]
    assert batch.source_index is not None and batch.source_index.tolist() == [0, 0, 1, 1]
    assert batch.references is not None
    references = [set(VOCABULARY.decode(row)) for row in batch.references.tolist()]
    assert references == [{"red", "dog", "a", "runs", "far"}] * 2 + [{"red", "bird", "a"}] * 2


def test_an_epoch_has_every_image_once_with_so_many_captions() -> None:
    batches = CaptionBatches(["a", "b", "c"], CAPTIONS, VOCABULARY, max_words=16)
    plan = batches.plan(images_per_batch=2, captions_per_image=3, seed=1, epoch=4)
    assert [len(batch) for batch in plan] == [6, 3]
    owners = Counter(batches.owner[number] for batch in plan for number in batch)
    assert owners == {"a": 3, "b": 3, "c": 3}
    for batch in plan:
        assert len(batches.images(batch)) == len(batch) // 3
    a = sorted(number for batch in plan for number in batch if batches.owner[number] == "a")
    assert a == [0, 1, 2]  # as many as it has: each once
    assert plan == batches.plan(2, 3, 1, 4)
    plans = [batches.plan(2, 2, seed, epoch) for seed in range(3) for epoch in range(3)]
    assert len({str(plan) for plan in plans}) > 5


def test_chunks_hold_every_caption_once() -> None:
    batches = CaptionBatches(["a", "b", "c"], CAPTIONS, VOCABULARY, max_words=16)
    assert batches.chunks(2) == [[0, 1, 2, 3, 4], [5, 6, 7]]
