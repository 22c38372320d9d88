"""A corpus of a few words, and recipes that train on it within seconds."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from smoothloss_trainer.config import Recipe
from smoothloss_trainer.recipe import parse_recipe

WORDS = ["red", "green", "blue", "dog", "cat", "bird", "runs", "sleeps", "sings", "here"]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Run on one thread: faster for such sizes, and the same everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep trained vectors out of the user's cache."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SMOOTHLOSS_CACHE", str(cache))
    return cache


def write_corpus(folder: Path, sizes: dict[str, int], seed: int = 0) -> None:
    """Write parallel text: the target is the source, every word in capitals in the source."""
    draw = random.Random(seed)
    for part, size in sizes.items():
        lines = [draw.choices(WORDS, k=draw.randint(1, 6)) for _ in range(size)]
        (folder / f"{part}.up").write_text("".join(f"{' '.join(line).upper()}\n" for line in lines))
        (folder / f"{part}.low").write_text("".join(f"{' '.join(line)}\n" for line in lines))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with train, val and test of a copying task."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, {"train": 200, "val": 20, "test": 30})
    return folder


@pytest.fixture(scope="session")
def recipe_values(corpus: Path) -> Callable[..., dict[str, Any]]:
    """Return a function that makes the mapping of a small translation recipe, with sections merged over it."""

    def make(**sections: Any) -> dict[str, Any]:
        paths = {"train": f"{corpus}/train", "validation": f"{corpus}/val", "test": {"test": f"{corpus}/test"}}
        values: dict[str, Any] = {
            "task": "translation",
            "name": "tiny",
            "device": "cpu",
            "data": {**paths, "source": "up", "target": "low", "min_count": 1},
            "model": {"embedding": 16, "encoder": 16, "decoder": 16, "attention": 16, "dropout": 0.2},
            "optimizer": {"lr": 0.01},
            "training": {"epochs": 2, "batch_size": 16, "log_every": 2, "checkpoint_every": 5},
            "decoding": {"max_length": 10, "beam_size": 2},
            "loss": {"embeddings": {"dim": 8, "window": 3, "epochs": 2}},
        }
        for key, value in sections.items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
        return values

    return make


@pytest.fixture(scope="session")
def make_recipe(recipe_values: Callable[..., dict[str, Any]]) -> Callable[..., Recipe]:
    """Return a function that makes a small translation recipe."""
    return lambda **sections: parse_recipe(recipe_values(**sections))
