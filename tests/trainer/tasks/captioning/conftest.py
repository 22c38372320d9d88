"""A few labelled images with captions, as files in the formats that the task reads."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smoothloss_trainer.config import Recipe
from smoothloss_trainer.recipe import parse_recipe

CLASSES = ["dog", "cat", "car", "tree"]
SIZES = {"restval": 30, "val": 6, "test": 8}


def draw_captions(draw: random.Random, labels: list[int], count: int) -> list[str]:
    """Captions that name the labels in some order, between some other words."""
    captions = []
    for _ in range(count):
        names = [CLASSES[label] for label in draw.sample(labels, len(labels))] or ["nothing"]
        captions.append(f"{draw.choice(['a photo of', 'we see', 'here is'])} a {' and a '.join(names)}")
    return captions


@pytest.fixture(scope="session")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with label and caption files like those of COCO."""
    folder = tmp_path_factory.mktemp("coco")
    draw = random.Random(0)
    labels: dict[str, list[int]] = {}
    captions: dict[str, list[str]] = {}
    splits: dict[str, list[int]] = {split: [] for split in SIZES}
    for split, size in SIZES.items():
        for _ in range(size):
            number = 100 + len(captions)
            splits[split].append(number)
            own = sorted(draw.sample(range(4), draw.randint(0, 3)))
            if own:
                labels[str(number)] = own
            captions[str(number)] = draw_captions(draw, own, draw.choice([4, 5, 5, 6]))
    content = {"classes": CLASSES, "val2014": labels, "karpathy_split_of_val2014": splits}
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "labels.json.gz").write_bytes(gzip.compress(json.dumps(content).encode()))
    return folder


@pytest.fixture(scope="session")
def karpathy(coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the same images as a Karpathy JSON, and features in every form."""
    folder = tmp_path_factory.mktemp("karpathy")
    content = json.loads(gzip.decompress((coco / "labels.json.gz").read_bytes()))
    captions = json.loads((coco / "captions.json").read_text())
    images = []
    for split, numbers in content["karpathy_split_of_val2014"].items():
        for number in numbers:
            sentences = [{"tokens": caption.split()} for caption in captions[str(number)]]
            images.append({"cocoid": number, "split": split, "sentences": sentences})
    (folder / "dataset.json").write_text(json.dumps({"images": images}))
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(len(images), 3, 7)).astype(np.float32)
    np.save(folder / "features.npy", rows)
    np.savez(folder / "features.npz", **{str(image["cocoid"]): row for image, row in zip(images, rows, strict=True)})
    (folder / "files").mkdir()
    for image, row in zip(images, rows, strict=True):
        np.savez_compressed(folder / "files" / f"{image['cocoid']}.npz", feat=row)
    return folder


@pytest.fixture
def make_captioning(coco: Path) -> Callable[..., Recipe]:
    """Return a function that makes a small captioning recipe, with sections merged over it."""

    def make(**sections: Any) -> Recipe:
        data = {"captions": f"{coco}/captions.json", "labels": f"{coco}/labels.json.gz", "min_count": 1}
        values: dict[str, Any] = {
            "task": "captioning",
            "name": "tiny",
            "data": data,
            "model": {"embedding": 12, "hidden": 10, "attention_hidden": 8, "dropout": 0.0},
            "training": {"epochs": 1, "batch_size": 10},
            "decoding": {"max_length": 8, "beam_size": 2},
        }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
        return parse_recipe(values)

    return make
