"""Runs written by hand, on the small corpus of the trainer's tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from smoothloss.similarity import SimilarityTable
from smoothloss_trainer.checkpoint import save_checkpoint
from smoothloss_trainer.comparison import recipe_values
from smoothloss_trainer.recipe import parse_recipe
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.tasks import task_class
from smoothloss_trainer.vocabulary import SPECIAL_TOKENS

MakeRun = Callable[..., RunDirectory]
_VOID = ("meta", "img", "br", "input")


def metrics_lines(epochs: int, *, bleu: float = 10.0) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        for step in (10 * epoch - 5, 10 * epoch):
            line = {"train_loss": 3.0 - epoch / 10, "tokens_per_second": 1000.0 * step, "seconds": 2.0 * step}
            lines.append({"step": step, "epoch": epoch, **line})
        line = {"validation_loss": 2.5 - epoch / 8, "validation_bleu": bleu * epoch, "seconds": 20.0 * epoch}
        lines.append({"step": 10 * epoch, "epoch": epoch, **line})
    return lines


@pytest.fixture(scope="session")
def make_run(recipe_values_of: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Return a function that writes a run: finished after two epochs, unless told otherwise."""

    def make(
        name: str = "plain",
        *,
        epochs: int = 2,
        finished: bool = True,
        scored: bool = True,
        bleu: float = 30.0,
        hypotheses: dict[str, str] | None = None,
        table: bool = False,
        **sections: Any,
    ) -> RunDirectory:
        loss = {"name": "tok", "alpha": 0.25, "token_tau": 0.2} if table else {"name": "mle"}
        recipe = parse_recipe(recipe_values_of(name=name, **{"loss": loss, **sections}))
        task = task_class(recipe.task)(recipe)
        run = RunDirectory(tmp_path_factory.mktemp("run"))
        run.recipe_file.write_text(yaml.safe_dump(recipe_values(recipe)))
        for key, vocabulary in task.vocabularies.items():
            vocabulary.save(run.path / f"vocabulary.{key}.json")
        lines = metrics_lines(epochs, bleu=bleu / 10)
        run.metrics_file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        progress = {"epoch": epochs, "position": 0, "step": 10 * epochs, "seconds": 20.0 * epochs, "finished": finished}
        run.last.parent.mkdir()
        weights = {
            "model.weight": torch.zeros(5, 4),
            "model.bias": torch.zeros(5),
            "optimizer.0.exp_avg": torch.ones(9),
        }
        save_checkpoint(run.last, weights, {"progress": progress})
        if scored:
            split = next(iter(task.test_splits), "validation")
            written = {each.name: each.references[0] for each in task.inputs(split)} | (hypotheses or {})
            scores = {"bleu": bleu, "bleu_signature": "tok:none|smooth:exp", "method": "beam", "beam_size": 7}
            (run.path / f"scores.{split}.json").write_text(json.dumps(scores))
            (run.path / f"hypotheses.{split}.json").write_text(json.dumps(written))
        environment = {"versions": {"torch": "2.9.9"}, "commit": "abc123"}
        (run.path / "environment.json").write_text(json.dumps(environment))
        if table:
            size = len(task.vocabulary)
            vectors = torch.randn(size, 8, generator=torch.Generator().manual_seed(0))
            SimilarityTable.from_embeddings(vectors, k=4, tau=0.2, exclude=SPECIAL_TOKENS).save(run.table_file)
        return run

    return make


@pytest.fixture(scope="session")
def recipe_values_of(recipe_values: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Return the maker of recipes under a name that does not hide the function."""
    return recipe_values


class Page(HTMLParser):
    """A page, read: fails on a tag that is closed without being open.

    Attributes:
        tags: All tags in order, with their attributes.
        text: All text outside style sheets and scripts, whitespace made single.
        cells: The text of each cell of each row of each table, by the table's caption.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.page = page
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: dict[str, list[list[str]]] = {}
        self._open: list[str] = []
        self._texts: list[str] = []
        self._caption = ""
        self.feed(page)
        self.close()
        assert self._open == []
        self.text = " ".join("".join(self._texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in _VOID:
            return
        self._open.append(tag)
        if tag == "caption":
            self._caption = ""
        elif tag == "thead":
            self.cells[self._caption.strip()] = []
        elif tag == "tr":
            self.cells[self._caption.strip()].append([])
        elif tag in ("th", "td"):
            self.cells[self._caption.strip()][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self._open or "script" in self._open:
            return
        self._texts.append(data)
        if "caption" in self._open:
            self._caption += data
        elif "th" in self._open or "td" in self._open:
            row = self.cells[self._caption.strip()][-1]
            row[-1] = f"{row[-1]} {data.strip()}".strip()

    def attributes(self, name: str) -> list[str]:
        """All values of an attribute."""
        return [attributes[name] or "" for _, attributes in self.tags if name in attributes]


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def column(rows: Iterable[list[str]], name: str) -> dict[str, str]:
    """A column of a table by the names of its rows."""
    head, *rest = rows
    return {row[0]: row[head.index(name)] for row in rest}
