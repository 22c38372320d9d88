"""The directory of a training run: everything that tells what was run and what came out.

All else in the directory is the user's, and is neither read nor removed.

run.json                    the marker: the files of the run, fingerprints of its data, whether it is finished
recipe.yaml                 the recipe with all defaults filled in
environment.json            versions, commit, fingerprint of the code, command line, threads
vocabulary.<name>.json      the vocabularies
table.safetensors           the similarity table, when the loss has one
notes.json                  what of the data new input is read with, such as how features were extracted
cider.safetensors           the document frequencies of the training references, when the reward is CIDEr
metrics.jsonl               training loss every few steps, and where the time went; validation after each epoch
checkpoints/last.safetensors, checkpoints/best.safetensors
checkpoints/step_<n>.safetensors                  the last validated models, when the recipe keeps them
checkpoints/average.safetensors                   their mean, by `smoothloss average`
scores.<split>.json         of the best checkpoint, with the other files that :mod:`.evaluation` lists
report.html                 curves, scores, examples, neighbours, settings and versions, to be looked at
tensorboard/                what metrics.jsonl holds, when the recipe asks for it
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from smoothloss._files import write_atomically
from smoothloss_trainer.checkpoint import write_json
from smoothloss_trainer.comparison import FREE_KEYS, difference, recipe_values
from smoothloss_trainer.config import Recipe
from smoothloss_trainer.documents import dump_yaml
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.files import expand_path, read_json
from smoothloss_trainer.folder import Folder
from smoothloss_trainer.recipe import load_recipe
from smoothloss_trainer.sources import code_fingerprint
from smoothloss_trainer.tasks import Task
from smoothloss_trainer.teachers import Teachers
from smoothloss_trainer.vocabulary import Vocabulary


class RunDirectory:
    """Names and reads the files of a run.

    Args:
        path: The directory; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.folder = Folder(path, "run")
        self.recipe_file = self.path / "recipe.yaml"
        self.notes_file = self.path / "notes.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.table_file = self.path / "table.safetensors"
        self.cider_file = self.path / "cider.safetensors"
        self.last = self.path / "checkpoints" / "last.safetensors"
        self.best = self.path / "checkpoints" / "best.safetensors"
        self.average = self.path / "checkpoints" / "average.safetensors"

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes from writing here.

        Raises:
            RecipeError: when one does.
        """
        return self.folder.lock()

    def check(self, recipe: Recipe, *, resume: bool = False, overwrite: bool = False) -> bool:
        """Whether training goes on from a checkpoint that is here, or begins.

        It begins with ``resume`` too where a run was killed before its first checkpoint.

        Raises:
            RecipeError: when there is something here that is no run, a run that is neither to be resumed nor
                overwritten, no run to be resumed, one of another recipe, or its own teacher.
        """
        for path in recipe.loss.teacher.runs:
            teacher = expand_path(path).resolve()
            if self.path.resolve() in (teacher, *teacher.parents):
                raise RecipeError(f"loss.teacher.runs: {path} is the run that is to be trained: choose another --out")
        if not self.folder.is_marked:
            self._check_unmarked(resume=resume)
            return False
        self.folder.facts()  # readable, that is
        if not (resume or overwrite):
            choice = "continue it with --resume or start anew with --overwrite"
            raise RecipeError(f"{self.path} already holds a run: {choice}")
        if not resume:
            return False
        if self.recipe_file.is_file():
            self.check_same(recipe)
        if self.last.is_file():
            return True
        if self.best.is_file() or self.metrics_file.is_file():
            raise RecipeError(f"cannot resume {self.path}: no such checkpoint: {self.last}")
        return False

    def _check_unmarked(self, *, resume: bool) -> None:
        """Refuse a directory with something in it, and one without a run where a run is to be resumed."""
        if self.is_of_earlier_version():
            unknown = "an earlier version wrote it without a list of its files, so that it can be evaluated but not"
            raise RecipeError(f"{self.path}: {unknown} resumed or overwritten: choose another --out")
        if resume:
            raise RecipeError(f"{self.path} is not a run: there is nothing to resume")
        if not self.folder.is_empty():
            raise RecipeError(f"{self.path} is not empty and not a run: choose another --out")

    def is_of_earlier_version(self) -> bool:
        """Whether this is a run without a marker, as earlier versions wrote them."""
        names = (self.recipe_file, self.path / "vocabulary.target.json", self.last.parent)
        return not self.folder.is_marked and all(path.exists() for path in names)

    def create(
        self,
        recipe: Recipe,
        vocabularies: Mapping[str, Vocabulary],
        names: Iterable[str] = (),
        fingerprints: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Remove the run that is here, and write the parts that are known before training starts.

        Args:
            recipe: Of the run.
            vocabularies: By name.
            names: Of all other files that training will write, but for those of :meth:`step_file`.
            fingerprints: Of the parts of the data.

        Raises:
            RecipeError: when a file that is not the run's has the name of one that it will write.
        """
        files = {f"vocabulary.{name}.json": vocabulary for name, vocabulary in vocabularies.items()}
        own = ["recipe.yaml", "environment.json", "metrics.jsonl", *files]
        own += ["checkpoints/last.safetensors", "checkpoints/best.safetensors", *names]
        self.folder.renew(own, fingerprints=dict(fingerprints), finished=False)
        self.last.parent.mkdir(parents=True, exist_ok=True)
        for name, vocabulary in files.items():
            vocabulary.save(self.path / name)
        write_json(self.path / "environment.json", environment())
        self.write_recipe(recipe)

    def go_on(self, recipe: Recipe, names: Iterable[str], fingerprints: Mapping[str, str]) -> None:
        """Note what training writes and reads from here on; the recipe's free keys may have changed.

        Raises:
            RecipeError: as :meth:`create`.
        """
        self.folder.claim(names, fingerprints=dict(fingerprints), finished=False)
        self.folder.tidy()
        # A kill while old ones were removed leaves the names of models that are gone.
        steps = (name for name in self.folder.names() if name.startswith("checkpoints/step_"))
        self.folder.remove([name for name in steps if not (self.path / name).is_file()])
        if recipe_values(recipe) != recipe_values(self.recipe()):
            self.write_recipe(recipe)

    def write_recipe(self, recipe: Recipe) -> None:
        """Write ``recipe.yaml``."""
        text = dump_yaml(recipe_values(recipe))
        write_atomically(self.recipe_file, text.encode())

    @property
    def finished(self) -> bool:
        """Whether training came to its end and the test splits were scored; True for runs of earlier versions."""
        return bool(self.folder.facts().get("finished", True))

    def check_data(self, task: Task, parts: Iterable[str]) -> None:
        """Refuse data or vocabularies that are not those of the training; runs of earlier versions have no record.

        Args:
            task: What was read now.
            parts: As :meth:`~smoothloss_trainer.tasks.Task.fingerprint` takes them.

        Raises:
            RecipeError: naming the part that differs.
        """
        noted = self.folder.facts().get("fingerprints", {})
        for part in parts:
            if part not in noted or task.fingerprint(part) == noted[part]:
                continue
            if part.startswith("vocabulary."):
                raise RecipeError(f"{self.path}: {part}.json was changed since the run began: put the old one back")
            changed = f"the data of {part} are not those of when the run began"
            advice = "put the old files back, or train anew in another --out"
            if getattr(task.recipe.data, "held_out", None):
                advice += " (data.held_out draws anew from changed data: what is tested may have been trained on)"
            raise RecipeError(f"{self.path}: {changed}: {advice}")

    def note_teachers(self, teachers: Teachers | None) -> None:
        """Note which models are learned from."""
        if teachers is not None:
            self.folder.claim([], teachers=teachers.fingerprint())

    def check_teachers(self, teachers: Teachers | None) -> None:
        """Refuse to learn from other models than when the run began; they may lie somewhere else.

        Raises:
            RecipeError: when they differ.
        """
        noted = self.folder.facts().get("teachers")
        if noted != (None if teachers is None else teachers.fingerprint()):
            changed = "the models of loss.teacher.runs are not those of when the run began"
            raise RecipeError(f"{self.path}: {changed}: put the old ones back, or train anew in another --out")

    def check_same(self, recipe: Recipe) -> None:
        """Refuse to resume a run with a recipe that would train something else.

        Raises:
            RecipeError: when there is no run, or naming the first key that differs.
        """
        key = difference(self.recipe(), recipe, FREE_KEYS)
        if key:
            raise RecipeError(f"cannot resume {self.path}: {key}")

    def check_result(self, recipe: Recipe) -> None:
        """Refuse to take a finished run for what a recipe would come to that trains or decodes in another way.

        Raises:
            RecipeError: as :meth:`check_same`.
        """
        key = difference(self.recipe(), recipe)
        if key:
            raise RecipeError(f"{self.path} is finished, and {key}: choose another --out")

    def recipe(self) -> Recipe:
        """The recipe of the run.

        Raises:
            RecipeError: when the directory holds no run, or its recipe was edited into something that is none.
        """
        if not self.recipe_file.is_file():
            raise RecipeError(f"{self.path} is not a run: it has no recipe.yaml")
        return load_recipe(self.recipe_file, here=False)

    def vocabularies(self) -> dict[str, Vocabulary]:
        """The vocabularies of the run by name.

        Raises:
            RecipeError: when there are none, or a file is broken.
        """
        files = sorted(self.path.glob("vocabulary.*.json"))
        if self.folder.is_marked:
            own = self.folder.names()
            files = [file for file in files if file.name in own]
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
        files = sorted(self.last.parent.glob("step_*.safetensors"))
        files = [file for file in files if re.fullmatch(r"step_\d{10}", file.stem)]
        if not self.folder.is_marked:
            return files
        own = self.folder.names()
        return [file for file in files if self.name(file) in own]

    def name(self, file: Path) -> str:
        """How the marker calls a file of the run."""
        return file.relative_to(self.path).as_posix()

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; a last line that a crash cut off is left out.

        Raises:
            RecipeError: when another line is damaged.
        """
        return [values for _, values in self._metrics()]

    def _metrics(self, count: int | None = None) -> list[tuple[bytes, dict[str, Any]]]:
        """The first ``count`` lines of ``metrics.jsonl``, or all, and what they say."""
        if not self.metrics_file.is_file():
            return []
        *lines, _half_written = self.metrics_file.read_bytes().split(b"\n")
        found = []
        for number, line in enumerate(lines[:count], 1):
            try:
                values = json.loads(line)
                if not isinstance(values, dict) or not {"step", "epoch"} <= values.keys():
                    raise ValueError
            except (ValueError, RecursionError):
                raise RecipeError(f"{self.metrics_file}: line {number} is damaged: no JSON of a step") from None
            found.append((line, values))
        return found

    def cut_metrics(self, count: int) -> None:
        """Keep the first ``count`` lines of ``metrics.jsonl``: those written before a checkpoint.

        Raises:
            RecipeError: when there are fewer, or one is damaged.
        """
        lines = [line for line, _ in self._metrics(count)]
        if len(lines) < count:
            short = f"metrics.jsonl has {len(lines)} whole lines, and {count} were written before the last checkpoint"
            raise RecipeError(f"cannot resume {self.path}: {short}")
        write_atomically(self.metrics_file, b"".join(line + b"\n" for line in lines))


def environment() -> dict[str, Any]:
    """Versions, commit, code, machine and command line."""
    packages: tuple[str, ...] = ("smoothloss", "torch", "triton", "numpy", "accelerate", "safetensors")
    packages += ("sacrebleu", "sacremoses", "tokenizers")
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "commit": _commit(),
        "code": code_fingerprint(),
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
