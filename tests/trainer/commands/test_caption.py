from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from smoothloss_trainer.cli import main
from smoothloss_trainer.demo.scenes import make_scene
from smoothloss_trainer.tasks.captioning.extract import Extraction, extract_features

Image = pytest.importorskip("PIL.Image")

WORDS = ["dog", "cat", "red", "blue", "runs", "sleeps"]
SMALL = {
    "model": {"embedding": 12, "hidden": 10, "attention_hidden": 8, "dropout": 0.0},
    "training": {"epochs": 30, "batch_size": 10},
    "decoding": {"max_length": 8, "beam_size": 2},
    "optimizer": {"lr": 0.02},
    "device": "cpu",
}


def coco(folder: Path, names: list[str]) -> None:
    """Write captions of images in COCO's form, one of two kinds by turns."""
    images = [
        {"id": number, "file_name": name, "split": ["train", "val", "test"][max(0, number - len(names) + 3)]}
        for number, name in enumerate(names)
    ]
    annotations = [
        {"image_id": number, "caption": " ".join(WORDS[number % 2 :: 2]), "id": 2 * number + twin}
        for number in range(len(names))
        for twin in range(2)
    ]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))


def train(folder: Path, name: str, data: dict[str, Any], *, remove: list[Path], **sections: Any) -> str:
    """Train a run, and remove its data."""
    values = {"task": "captioning", "name": name, **SMALL, **sections}
    values["data"] = {"captions": f"{folder}/captions.json", "min_count": 1, "captions_per_image": 2, **data}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", str(folder / f"{name}.yaml"), "--out", str(folder / name)]) == 0
    for path in remove:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return str(folder / name)


Caption = Callable[..., list[str]]


@pytest.fixture
def caption(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Caption:
    """Return a function that gives the lines which a command writes."""

    def call(*words: str, text: str = "") -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        capsys.readouterr()
        assert main(["caption", *words]) == 0, capsys.readouterr().err
        return capsys.readouterr().out.split("\n")[:-1]

    return call


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a command says of what is wrong."""
    capsys.readouterr()
    assert main(["caption", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_arrays_in_every_form(tmp_path: Path, caption: Caption, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{letter}.jpg" for letter in "hgdcbafe"]
    coco(tmp_path, names)
    values = np.random.default_rng(1).normal(size=(8, 3, 7)).astype(np.float32)
    values += 3 * np.array([1, -1] * 4)[:, None, None]
    source = tmp_path / "source.npy"
    np.save(source, values)
    model = {**SMALL["model"], "attention": True}
    run = train(tmp_path, "run", {"format": "coco_captions", "features": str(source)}, remove=[source], model=model)
    np.save(tmp_path / "new.npy", values)
    np.savez(tmp_path / "new.npz", **dict(zip(names, values, strict=True)))
    (tmp_path / "files").mkdir()
    for name, value in zip(names, values, strict=True):
        np.save(tmp_path / "files" / f"{name}.npy", value)
    found = caption(run, str(tmp_path / "new.npy"), "--names")
    assert [line.split("\t")[0] for line in found] == list("01234567")
    texts = [line.split("\t")[1] for line in found]
    assert len(set(texts)) > 1
    written = json.loads((Path(run) / "hypotheses.test.json").read_text())
    assert written == {"7": texts[7]}
    assert caption(run, str(tmp_path / "new.npz"), "--names") == [
        f"{n}\t{t}" for n, t in zip(names, texts, strict=True)
    ]
    in_order = [text for _, text in sorted(zip(names, texts, strict=True))]
    assert caption(run, str(tmp_path / "files")) == in_order
    assert caption(run, run, str(tmp_path / "new.npy"), "--batch_size", "4") == texts
    rows = [line.split("\t") for line in caption(run, str(tmp_path / "new.npz"), "--n_best", "2", "--scores")]
    assert [row[0] for row in rows] == [name for name in names for _ in range(2)]
    np.save(tmp_path / "wide.npy", values[..., :5])
    assert "the model reads features of width 7, these have 5" in refused([run, str(tmp_path / "wide.npy")], capsys)
    assert "there is nothing to caption" in refused([run], capsys)
    assert "--weights, --grid and --size are for images" in refused(
        [run, str(tmp_path / "new.npy"), "--grid", "2"], capsys
    )
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    assert f"error: cannot read {tmp_path / 'bad.npy'}: " in refused([run, str(tmp_path / "bad.npy")], capsys)


@pytest.mark.parametrize("suffix", [".npy", ".h5"])
def test_images_are_seen_as_those_of_training(
    tmp_path: Path, suffix: str, caption: Caption, capsys: pytest.CaptureFixture[str]
) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra [features] is not installed")
    if suffix == ".h5":
        pytest.importorskip("h5py")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic")
    transformers.ResNetModel(config).eval().save_pretrained(tmp_path / "weights")
    names = [f"scene {number}.png" for number in range(6)]
    (tmp_path / "images").mkdir()
    for number, name in enumerate(names):
        Image.fromarray(make_scene(3, number).render()).save(tmp_path / "images" / name)
    coco(tmp_path, names)
    source = tmp_path / f"features{suffix}"
    extract_features(tmp_path / "images", source, Extraction(str(tmp_path / "weights"), grid=2, size=64, half=True))
    ids = [file for file in (source.with_suffix(".ids.json"), source.with_suffix(".extraction.json")) if file.exists()]
    model = {**SMALL["model"], "attention": True}
    data = {"format": "coco_captions", "features": str(source)}
    run = train(tmp_path, "run", data, remove=[source, *ids], model=model)
    texts = caption(run, str(tmp_path / "images"))
    assert json.loads((Path(run) / "hypotheses.test.json").read_text()) == {"5": texts[5]}
    last = str(tmp_path / "images" / names[5])
    assert caption(run, last, last, "--names") == [f"{last}\t{texts[5]}"] * 2
    assert caption(run, "-", text=f"{last}\n\n{last}\n") == [texts[5], "", texts[5]]
    assert caption(run, "-") == []
    assert "no such image or folder: nowhere.png" in refused([run, "nowhere.png"], capsys)
    nowhere = str(tmp_path / "nowhere")
    assert f"--weights: cannot load {nowhere}" in refused([run, last, "--weights", nowhere], capsys)
    (Path(run) / "notes.json").unlink()
    assert "give --weights, --grid and --size" in refused([run, last], capsys)
    again = caption(run, last, "--weights", str(tmp_path / "weights"), "--grid", "2", "--size", "64")
    assert again == [texts[5]]
    config.hidden_sizes = [8, 24]
    transformers.ResNetModel(config).eval().save_pretrained(tmp_path / "other")
    assert "of width 16, these have 24" in refused([run, last, "--weights", str(tmp_path / "other")], capsys)


def test_labels(tmp_path: Path, caption: Caption, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {str(number): [number % 4] for number in range(12)}
    split = {"restval": list(range(8)), "val": [8, 9], "test": [10, 11]}
    content = {"classes": ["dog", "cat", "car", "tree"], "val2014": labels, "karpathy_split_of_val2014": split}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    captions = {name: [f"a {content['classes'][own[0]]}"] * 2 for name, own in labels.items()}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    data = {"format": "coco_labels", "labels": f"{tmp_path}/labels.json"}
    run = train(tmp_path, "run", data, remove=[tmp_path / "labels.json", tmp_path / "captions.json"])
    new = tmp_path / "new.json"
    new.write_text(json.dumps({"x": [3], "b": [0]}))
    found = caption(run, str(new), "--names")
    assert [line.split("\t")[0] for line in found] == ["x", "b"]
    new.write_text(json.dumps({"classes": content["classes"], "val2014": {"x": [3], "b": [0]}}))
    assert caption(run, str(new), "--names") == found
    for broken in ({"x": [4]}, {"x": ["3"]}, {"x": 3}, [1], 3):
        new.write_text(json.dumps(broken))
        refused([run, str(new)], capsys)
    assert "reads a JSON file in the form that its recipe takes" in refused([run, str(tmp_path)], capsys)


def test_boxes(tmp_path: Path, caption: Caption, capsys: pytest.CaptureFixture[str]) -> None:
    images = [
        {"image_id": number, "split": ["train", "val", "test"][max(0, number - 5)], "width": 10, "height": 10,
         "boxes": [[0, 0, 5, 5, number % 2]], "captions": [f"a {WORDS[number % 2]}"] * 2}
        for number in range(8)
    ]  # fmt: skip
    (tmp_path / "captions.json").write_text(json.dumps({"classes": ["dog", "cat"], "images": images}))
    run = train(tmp_path, "run", {"format": "coco_boxes"}, remove=[tmp_path / "captions.json"])
    new = tmp_path / "new.json"
    own = ("image_id", "width", "height", "boxes")
    new.write_text(json.dumps({"images": [{key: image[key] for key in own} for image in images[:3]]}))
    assert len(caption(run, str(new))) == 3
    new.write_text(json.dumps({"images": [{"image_id": 1}]}))
    assert "must hold images with image_id, width, height and boxes" in refused([run, str(new)], capsys)


def test_pictures_of_the_demo(tmp_path: Path, caption: Caption, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"task": "demo", "data": {"images": {"train": 60, "validation": 4, "test": 4}}, **SMALL}
    values["model"] = {**SMALL["model"], "attention": True}
    values["training"] = {"epochs": 3, "batch_size": 10}
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", str(tmp_path / "demo.yaml"), "--out", str(tmp_path / "run")]) == 0
    for number in range(64, 68):
        picture = make_scene(2018, number).render()
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    written = json.loads((tmp_path / "run" / "hypotheses.test.json").read_text())
    files = [str(tmp_path / f"{number}.png") for number in range(64, 68)]
    assert caption(str(tmp_path / "run"), *files) == [written[f"test-{number}"] for number in range(64, 68)]
    assert "the demo's models read pixels" in refused([str(tmp_path / "run"), files[0], "--grid", "2"], capsys)
    assert main(["translate", str(tmp_path / "run"), files[0]]) == 2
    assert "see smoothloss caption" in capsys.readouterr().err
