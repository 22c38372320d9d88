"""The directory of a training run: everything that tells what was run and what came out.

recipe.yaml                 the recipe with all defaults filled in
environment.json            versions, commit, command line, threads
vocabulary.<name>.json      the vocabularies
table.safetensors           the similarity table, when the loss has one
notes.json                  what of the data new input is read with, such as how features were extracted
cider.safetensors           the document frequencies of the training references, when the reward is CIDEr
metrics.jsonl               training loss every few steps, and where the time went; validation after each epoch
checkpoints/last.safetensors, checkpoints/best.safetensors
checkpoints/step_<n>.safetensors                  the last validated models, when the recipe keeps them
checkpoints/average.safetensors                   their mean, by `smoothloss average`
scores.<split>.json, hypotheses.<split>.json      what the best checkpoint gives
nbest.<split>.jsonl                               the same with scores, and the hypotheses after the best
captions.<split>.json       the same hypotheses as COCO's test server takes them, for captioning
report.html                 curves, scores, examples, neighbours, settings and versions, to be looked at
tensorboard/                what metrics.jsonl holds, when the recipe asks for it
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from smoothloss._files import write_atomically
from smoothloss.trainer.checkpoint import write_json
from smoothloss.trainer.config import Recipe
from smoothloss.trainer.errors import RecipeError
from smoothloss.trainer.files import read_json
from smoothloss.trainer.recipes import load_recipe
from smoothloss.trainer.vocabulary import Vocabulary

# Keys that may differ between a run and its resumption: they say how long, how often and where, not what.
FREE_KEYS: tuple[str, ...] = ("name", "device", "decoding.", "data.", "training.epochs", "training.max_steps")
FREE_KEYS += ("training.max_minutes", "training.checkpoint_every", "training.patience", "training.keep_checkpoints")
FREE_KEYS += ("training.tensorboard",)
# What of the data makes up the batches. Paths may change: data may move.
FIXED_KEYS: tuple[str, ...] = ("data.batch_tokens", "data.bpe", "data.joint_vocabulary", "data.max_length")
FIXED_KEYS += ("data.held_out", "data.split_seed", "data.tokenize")


class RunDirectory:
    """Names and reads the files of a run.

    Args:
        path: The directory; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.yaml"
        self.notes_file = self.path / "notes.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.table_file = self.path / "table.safetensors"
        self.cider_file = self.path / "cider.safetensors"
        self.last = self.path / "checkpoints" / "last.safetensors"
        self.best = self.path / "checkpoints" / "best.safetensors"
        self.average = self.path / "checkpoints" / "average.safetensors"

    def create(self, recipe: Recipe, vocabularies: Mapping[str, Vocabulary]) -> None:
        """Write the parts that are known before training starts."""
        self.last.parent.mkdir(parents=True, exist_ok=True)
        for name, vocabulary in vocabularies.items():
            vocabulary.save(self.path / f"vocabulary.{name}.json")
        write_json(self.path / "environment.json", environment())
        text = yaml.safe_dump(recipe_values(recipe), sort_keys=False, allow_unicode=True)
        write_atomically(self.recipe_file, text.encode())  # last: its presence makes the directory a run

    def check_free(self, *, overwrite: bool) -> None:
        """Refuse a directory with a run in it, or empty it of that run when ``overwrite``.

        Raises:
            RecipeError: when there is something and it is not to be overwritten, or it is not a run.
        """
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not self.recipe_file.is_file():
            raise RecipeError(f"{self.path} exists and is not a run: choose another --out")
        if not overwrite:
            choice = "continue it with --resume or start anew with --overwrite"
            raise RecipeError(f"{self.path} already holds a run: {choice}")
        shutil.rmtree(self.path)

    def check_same(self, recipe: Recipe) -> None:
        """Refuse to resume a run with a recipe that would train something else.

        Raises:
            RecipeError: when there is no run, or naming the first key that differs.
        """
        new, old = _flat(recipe_values(recipe)), _flat(recipe_values(self.recipe()))
        for key in sorted({*new, *old}):
            free = key.startswith(FREE_KEYS) and not key.startswith(FIXED_KEYS)
            if new.get(key) != old.get(key) and not free:
                values = f"{key} is {old.get(key)!r} there and {new.get(key)!r} in the recipe"
                raise RecipeError(f"cannot resume {self.path}: {values}")

    def recipe(self) -> Recipe:
        """The recipe of the run.

        Raises:
            RecipeError: when the directory holds no run, or its recipe was edited into something that is none.
        """
        if not self.recipe_file.is_file():
            raise RecipeError(f"{self.path} is not a run: it has no recipe.yaml")
        return load_recipe(self.recipe_file)

    def vocabularies(self) -> dict[str, Vocabulary]:
        """The vocabularies of the run by name.

        Raises:
            RecipeError: when there are none, or a file is broken.
        """
        files = sorted(self.path.glob("vocabulary.*.json"))
        if not files:
            raise RecipeError(f"{self.path} is not a run: it has no vocabularies")
        if self.path / "vocabulary.target.json" not in files:
            raise RecipeError(f"{self.path} has no vocabulary.target.json")
        try:
            return {file.name.split(".")[1]: Vocabulary.load(file) for file in files}
        except ValueError as error:
            raise RecipeError(str(error)) from None

    def write_notes(self, notes: Mapping[str, Any]) -> None:
        """Keep what the task notes of its data for reading new input."""
        if notes:
            write_json(self.notes_file, notes)

    def notes(self) -> dict[str, Any]:
        """What :meth:`write_notes` kept.

        Raises:
            RecipeError: when the file is broken.
        """
        if not self.notes_file.is_file():
            return {}
        content = read_json(str(self.notes_file), "notes")
        if not isinstance(content, dict):
            raise RecipeError(f"{self.notes_file} must hold an object, got {type(content).__name__}")
        return content

    def step_file(self, step: int) -> Path:
        """The file of the model validated after so many steps."""
        return self.last.with_name(f"step_{step:010}.safetensors")  # so wide that names sort like numbers

    def step_files(self) -> list[Path]:
        """The validated models that were kept, oldest first."""
        return sorted(self.last.parent.glob("step_*.safetensors"))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; a line cut off by a crash is left out."""
        if not self.metrics_file.is_file():
            return []
        lines = []
        for line in self.metrics_file.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return lines

    def cut_metrics(self, lines: int) -> None:
        """Keep the first ``lines`` lines of ``metrics.jsonl``: those written before a checkpoint."""
        text = "".join(f"{json.dumps(line)}\n" for line in self.metrics()[:lines])
        write_atomically(self.metrics_file, text.encode())


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, ready for YAML: what :func:`~smoothloss.trainer.recipes.parse_recipe` reads."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return plain


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def environment() -> dict[str, Any]:
    """Versions, commit, machine and command line."""
    packages: tuple[str, ...] = ("smoothloss", "torch", "triton", "numpy", "accelerate", "safetensors")
    packages += ("sacrebleu", "sacremoses", "tokenizers")
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "commit": _commit(),
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": sys.argv,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The git commit of the source tree, ``+`` when it has changes; None outside a checkout."""
    root = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        if not git("ls-files", "--error-unmatch", Path(__file__).name):
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
