from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn_files import Writing, lines, names, writings
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.tasks.captioning.data import CaptionBatches, CaptioningData, load_captions
from smoothloss_trainer.vocabulary import EOS, PAD, Vocabulary

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
    with pytest.raises(RecipeError, match=r"data\.labels: .*captions\.json has no 'karpathy_split_of_val2014'"):
        load_captions(coco_data(coco, labels=f"{coco}/captions.json"))
    (tmp_path / "half.json").write_text('{"100": ["a dog')
    with pytest.raises(RecipeError, match=r"data\.captions: cannot read .*half\.json"):
        load_captions(coco_data(coco, captions=f"{tmp_path}/half.json"))
    captions = json.loads((coco / "captions.json").read_text())
    captions["103"] = [""]
    (tmp_path / "gap.json").write_text(json.dumps(captions))
    with pytest.raises(
        RecipeError,
        match=r"1 of 30 images of train cannot be used, the first is image 103: it has no caption; data\.skip",
    ):
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
    with pytest.raises(
        RecipeError, match=f"1 of 8 images of test cannot be used, the first is image {number}: it has an empty caption"
    ):
        load_captions(data)
    by_split["test"].update(cocoid=999, sentences=[{"raw": "A dog."}])
    (tmp_path / "d.json").write_text(json.dumps(content))
    with pytest.raises(RecipeError, match=r"1 of 8 images of test .* image 999: .*files has no feature of it"):
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


def test_unusable_images_are_left_out_on_request(
    coco: Path, karpathy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads((karpathy / "dataset.json").read_text())
    own = {name: [e for e in content["images"] if e["split"] == name] for name in ("restval", "val", "test")}
    own["restval"][0]["sentences"][1] = {"raw": None}
    own["restval"][1]["sentences"] = []
    own["restval"][2]["sentences"] = [{"raw": 3}]
    own["restval"][3]["sentences"][0] = {}
    own["val"][1]["sentences"][0] = {"raw": "?!"}
    features = tmp_path / "features"
    features.mkdir()
    for file in (karpathy / "files").iterdir():
        (features / file.name).write_bytes(file.read_bytes())
    broken, gone, endless = (str(own[split][-1]["cocoid"]) for split in ("restval", "val", "test"))
    (features / f"{broken}.npz").write_bytes(b"PK nothing")
    (features / f"{gone}.npz").unlink()
    np.savez(features / f"{endless}.npz", feat=np.full((3, 7), np.nan))
    (tmp_path / "d.json").write_text(json.dumps(content))
    data = CaptioningData(f"{tmp_path}/d.json", format="karpathy", features=str(features))
    with pytest.raises(RecipeError) as caught:
        load_captions(data)
    number = own["restval"][0]["cocoid"]
    assert f"4 of 30 images of train cannot be used, the first is image {number}: " in str(caught.value)
    assert "d.json: images[0].sentences[1].raw must be a string, got null; data.skip_unusable: true" in str(
        caught.value
    )
    with caplog.at_level("WARNING"):
        loaded = load_captions(replace(data, skip_unusable=True))
    assert {name: len(images) for name, images in loaded.splits.items()} == {"train": 25, "validation": 4, "test": 7}
    assert [record.getMessage().split(" cannot")[0] for record in caplog.records] == [
        "data.captions: 5 of 30 images of train",
        "data.captions: 2 of 6 images of validation",
        "data.captions: 1 of 8 images of test",
    ]
    assert "values that are not finite; they are left out" in caplog.text
    for images in loaded.splits.values():
        loaded.features.pooled(images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: [], "must be a mapping, got a list"),
        (lambda c: {}, "has no .images."),
        (lambda c: {"images": {}}, "images must be a list, got a mapping"),
        (lambda c: {"images": [3]}, r"images\[0\] must be a mapping, got 3"),
        (lambda c: c["images"][0].pop("split") and c, r"images\[0\] has no 'split'"),
        (lambda c: c["images"][0].update(split=["val"]) or c, r"images\[0\]\.split must be a string, got a list"),
        (lambda c: c["images"][0].update(split="vall") or c, r"split must be one of .*, got 'vall'"),
        (lambda c: c["images"][0].update(cocoid=None) or c, r"cocoid must be a whole number or a string, got null"),
        (lambda c: c["images"][0].update(cocoid=True) or c, r"cocoid must be a whole number or a string, got true"),
        (lambda c: c["images"][0].update(cocoid=str(c["images"][1]["cocoid"])) or c, r"images\[1\]: .* is there twice"),
        (lambda c: c["images"][0].update(filename=3) or c, "filename must be a string, got 3"),
        (lambda c: c["images"][0].update(sentences="a dog") or c, "sentences must be a list, got 'a dog'"),
        (lambda c: c["images"][0].update(sentences=["a dog"]) or c, r"sentences\[0\] must be a mapping, got 'a dog'"),
        (lambda c: c["images"][0].update(filename="\ud800") or c, r"images\[0\]\.filename has half a character"),
        (lambda c: c["images"][0].update({"\udfff": 1}) or c, r"the key '.udfff' of images\[0\] has half a character"),
    ],
)
def test_places_in_a_file_are_named(karpathy: Path, tmp_path: Path, change: Any, message: str) -> None:
    content = json.loads((karpathy / "dataset.json").read_text())
    (tmp_path / "d.json").write_text(json.dumps(change(content)))
    with pytest.raises(RecipeError, match=rf"^data\.captions: .*d\.json.*{message}") as caught:
        load_captions(CaptioningData(f"{tmp_path}/d.json", format="karpathy", features=f"{karpathy}/files"))
    assert len(str(caught.value).splitlines()) == 1


def test_names_with_spaces_are_known_by_the_whole_line(tmp_path: Path) -> None:
    images = [
        {"id": n, "file_name": name} for n, name in enumerate(("a dog.jpg", "dog.jpg", "-x y.jpg", "größe 2.jpg"))
    ]
    annotations = [{"image_id": n, "caption": "a dog"} for n in range(4)]
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    (tmp_path / "v.txt").write_text("\ufeffa dog.jpg\r\n\r\nsome/folder dog.jpg\r\n", encoding="utf-8")
    (tmp_path / "t.txt").write_text("größe 2.jpg", encoding="utf-8")
    np.savez(tmp_path / "f.npz", **{str(n): np.ones(3) for n in range(4)})  # type: ignore[arg-type]
    splits = {"validation": f"{tmp_path}/v.txt", "test": f"{tmp_path}/t.txt"}
    data = CaptioningData(f"{tmp_path}/c.json", format="coco_captions", features=f"{tmp_path}/f.npz", splits=splits)
    assert load_captions(data).splits == {"train": ["2"], "validation": ["0", "1"], "test": ["3"]}
    (tmp_path / "v.txt").write_text("some dog.png\n")
    with pytest.raises(RecipeError, match=r"data\.splits\.validation: image dog\.png is not in data\.captions"):
        load_captions(data)


@given(content=lines(), writing=writings(), listing=writings(), name=names(".json"), escaped=st.booleans())
@settings(deadline=None, max_examples=60)
def test_captions_are_the_same_however_their_files_are_written(
    content: list[str], writing: Writing, listing: Writing, name: str, escaped: bool
) -> None:
    files = ["val 1.jpg", "größe.jpg", *(f"{number} {line.strip()}.jpg" for number, line in enumerate(content))]
    images = [{"id": number, "file_name": file} for number, file in enumerate(files)]
    annotations = [{"image_id": number, "caption": f"A dog {number}."} for number in range(len(files))]
    text = json.dumps({"images": images, "annotations": annotations}, ensure_ascii=escaped, indent=1)
    with tempfile.TemporaryDirectory() as folder:
        path = writing.write(Path(folder) / name, text.split("\n"))
        np.savez(f"{folder}/f.npz", **{str(number): np.ones(3) for number in range(len(files))})  # type: ignore[arg-type]
        splits = {}
        for number, split in enumerate(("validation", "test")):
            splits[split] = str(listing.write(Path(folder) / f"{split}.txt", [files[number], ""]))
        data = CaptioningData(str(path), format="coco_captions", features=f"{folder}/f.npz", splits=splits)
        loaded = load_captions(data)
    assert loaded.splits["validation"] == ["0"] and loaded.splits["test"] == ["1"]
    assert loaded.splits["train"] == [str(number) for number in range(2, len(files))]
    assert loaded.captions["1"] == [["a", "dog", "1"]]
