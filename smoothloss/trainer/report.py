"""A self-contained HTML report on a list of runs: curves, scores, examples, similarity, speed and settings."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import mean, median
from types import MappingProxyType
from typing import Any

import numpy as np
import yaml

from smoothloss._files import write_atomically
from smoothloss.similarity import SimilarityTable
from smoothloss.trainer.charts import Line, line_chart
from smoothloss.trainer.errors import RecipeError, one_line
from smoothloss.trainer.pictures import Picture, png
from smoothloss.trainer.run import RunDirectory, recipe_values
from smoothloss.trainer.tasks import Task
from smoothloss.trainer.vocabulary import Vocabulary

EXAMPLES = 12
COLOURS = 6  # as many lines as the style sheet has colours
SCORE_NAMES = {"bleu": "BLEU", "bleu_1": "BLEU-1", "bleu_4": "BLEU-4", "rouge_l": "ROUGE-L", "cider": "CIDEr"}
NEIGHBOURS_SHOWN = 6
PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style></head>
<body><main>{body}</main></body>
</html>
"""


@dataclass(frozen=True)
class Example:
    """One input of the test part.

    Args:
        name: Its id in the runs' ``hypotheses.<split>.json``.
        references: What people wrote.
        picture: (H, W, 3) RGB shown beside it.
        source: Text shown above it, such as the sentence to translate.
    """

    name: str
    references: Sequence[str]
    picture: Picture | None = None
    source: str | None = None


def first_examples(task: Task, split: str) -> list[Example]:
    """The first inputs of a split."""
    return [Example(each.name, each.references, source=each.source) for each in task.inputs(split)[:EXAMPLES]]


@dataclass(frozen=True)
class _Results:
    """What is on disk about one run."""

    run: RunDirectory
    name: str
    seed: int
    colour: int
    settings: dict[str, Any]
    metrics: list[dict[str, Any]]
    scores: dict[str, Any]
    hypotheses: dict[str, str]

    @property
    def key(self) -> str:
        return f'<span class="key" style="background:var(--line-{self.colour})"></span>{escape(self.name)}'

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """(epoch, value) of a metric; training losses lie within their epoch."""
        found = [line for line in self.metrics if line.get(metric) is not None]
        if metric != "train_loss":
            return [(float(line["epoch"]), float(line[metric])) for line in found]
        steps = {line["epoch"]: line["step"] for line in self.metrics}  # the last step seen in each epoch
        longest = max(steps.values(), default=1) / max(steps, default=1)  # steps per epoch, about
        return [(line["step"] / longest, float(line[metric])) for line in found]

    @property
    def best(self) -> dict[str, Any]:
        """The validation line of the best checkpoint, found by the metric that chose it."""
        lines = [line for line in self.metrics if "validation_loss" in line]
        if not lines:
            return {}
        chosen = self.settings.get("training", {}).get("metric")
        keys = (f"validation_{chosen}",) if chosen else ("validation_cider", "validation_bleu")
        metric = next((key for key in keys if key in lines[0]), "validation_loss")
        sign = -1.0 if metric == "validation_loss" else 1.0
        return max(lines, key=lambda line: sign * line[metric])


def write(
    runs: Sequence[RunDirectory],
    path: str | Path,
    *,
    title: str = "Training report",
    introduction: str = "",
    split: str = "test",
    examples: Sequence[Example] = (),
    words: Sequence[str] = (),
    step_times: Mapping[str, Sequence[float]] | None = None,
    sections: Sequence[str] = (),
) -> None:
    """Write one HTML file that needs nothing else: no script, no font, no address outside.

    Args:
        runs: The runs to compare; the first is the baseline.
        path: Where the report goes.
        title: Its title.
        introduction: A paragraph of plain text below the title.
        split: The split whose scores and hypotheses are shown.
        examples: Inputs shown with what each run wrote about them.
        words: Words whose neighbours are shown; left out, some are taken from the whole range of frequencies.
        step_times: Seconds of single training steps by name of the loss; the first is the baseline.
        sections: Further sections (see :func:`section`), shown first.

    Raises:
        RecipeError: when a run is not there.
        ValueError: when ``runs`` is empty.
    """
    if not runs:
        raise ValueError("runs must name at least one run, got none")
    results = [_read(run, split, number % COLOURS) for number, run in enumerate(runs)]
    body = [
        _header(results, title, introduction, split),
        *sections,
        _scores(results, split),
        _curves(results),
        _examples(results, examples),
        _similarity(results, words),
        _step_times(step_times or {}),
        _time_shares(results),
        _settings(results),
    ]
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    page = PAGE.format(title=escape(title), style=style, body="\n".join(part for part in body if part))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(path), page.encode())


def section(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> str:
    """A section with a table of plain text, its first column the names of the rows."""
    table = _table(
        [escape(cell) for cell in head], [[escape(cell) for cell in row] for row in rows], range(1, len(head))
    )
    return f'<section><h2>{escape(title)}</h2>{table}<p class="note">{escape(note)}</p></section>'


def _read(run: RunDirectory, split: str, colour: int) -> _Results:
    recipe = run.recipe()
    content: list[dict[str, Any]] = []
    for kind in ("scores", "hypotheses"):
        file = run.path / f"{kind}.{split}.json"
        try:
            content.append(json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})
        except ValueError as error:
            raise RecipeError(f"cannot read {file}: {error}") from None
    return _Results(run, recipe.name, recipe.seed, colour, recipe_values(recipe), run.metrics(), *content)


def _header(results: Sequence[_Results], title: str, introduction: str, split: str) -> str:
    metric = next((key for key in ("cider", "bleu") if all(key in result.scores for result in results)), None)
    lead = ""
    if metric:
        values = ", ".join(f"{escape(result.name)} {result.scores[metric]:.1f}" for result in results)
        lead = f'<p class="lead">{SCORE_NAMES[metric]} on {escape(split)}: {values}</p>'
    text = f"<p>{escape(introduction)}</p>" if introduction else ""
    return f"<header><h1>{escape(title)}</h1>{lead}{text}</header>"


def _table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Sequence[int] = (),
    best: Mapping[int, set[int]] = MappingProxyType({}),
) -> str:
    """Cells are HTML; ``numbers`` are the columns set flush right, ``best`` the rows to mark by column."""
    kinds = [' class="number"' if column in numbers else "" for column in range(len(head))]
    top = "".join(f"<th{kind}>{cell}</th>" for kind, cell in zip(kinds, head, strict=True))
    lines = []
    for row, cells in enumerate(rows):
        marked = [' class="number best"' if row in best.get(column, ()) else kind for column, kind in enumerate(kinds)]
        row_html = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(marked, cells, strict=True))
        lines.append(f"<tr>{row_html}</tr>")
    return f'<div class="card scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _scores(results: Sequence[_Results], split: str) -> str:
    columns: list[tuple[str, str, Callable[[_Results], Any], int]] = [
        (name, ".2f", lambda result, key=key: result.scores.get(key), 1)  # type: ignore[misc]
        for key, name in SCORE_NAMES.items()
        if any(key in result.scores for result in results)
    ]
    columns += [
        ("validation NLL", ".3f", lambda result: result.best.get("validation_loss"), -1),
        ("best epoch", "d", lambda result: result.best.get("epoch"), 0),
        ("words used", "d", lambda result: len({w for text in result.hypotheses.values() for w in text.split()}), 0),
        ("length", ".1f", _mean_length, 0),
        ("seed", "d", lambda result: result.seed, 0),
    ]
    rows: list[list[str]] = [[result.key] for result in results]
    best: dict[int, set[int]] = {}
    for column, (_, form, value, direction) in enumerate(columns, 1):
        values = [value(result) for result in results]
        shown = ["–" if number is None else f"{number:{form}}" for number in values]
        for row, cell in zip(rows, shown, strict=True):
            row.append(cell)
        known = [direction * float(cell) for cell in shown if cell != "–"]
        if direction and len(known) > 1:  # as shown: what rounds to the same number is a tie
            best[column] = {n for n, cell in enumerate(shown) if cell != "–" and direction * float(cell) == max(known)}
    table = _table(["", *(column[0] for column in columns)], rows, range(1, len(columns) + 1), best)
    seeds = "Each row is one seed: small differences may be chance." if len(results) > 1 else ""
    note = f"Scores of the checkpoint with the best validation score, times 100. NLL is per token, in nats. {seeds}"
    return f'<section><h2>Scores on {escape(split)}</h2>{table}<p class="note">{note}</p></section>'


def _mean_length(result: _Results) -> float | None:
    lengths = [len(text.split()) for text in result.hypotheses.values()]
    return sum(lengths) / len(lengths) if lengths else None


def _curves(results: Sequence[_Results]) -> str:
    charts = {"Training loss": "train_loss", "Validation loss (negative log-likelihood)": "validation_loss"}
    charts |= {f"Validation {SCORE_NAMES[key]}": f"validation_{key}" for key in ("bleu", "bleu_4", "cider")}
    drawn = [
        line_chart(title, [Line(result.name, result.curve(key), result.colour) for result in results], "epoch")
        for title, key in charts.items()
    ]
    legend = "".join(f"<span>{result.key}</span>" for result in results)
    note = "Training losses of different objectives do not compare; the validation loss is the same quantity for all."
    body = f'<p class="note">{note}</p><div class="legend">{legend}</div><div class="charts">{"".join(drawn)}</div>'
    return f"<section><h2>Curves</h2>{body}</section>" if any(drawn) else ""


def _examples(results: Sequence[_Results], examples: Sequence[Example]) -> str:
    if not examples:
        return ""
    cards = "".join(_example(results, example) for example in examples)
    note = "The first of the split in its own order, not chosen. Grey: what the references say."
    return f'<section><h2>Examples</h2><p class="note">{note}</p><div class="gallery">{cards}</div></section>'


def _example(results: Sequence[_Results], example: Example) -> str:
    image = ""
    if example.picture is not None:
        data = base64.b64encode(png(example.picture)).decode()
        image = f'<img alt="{escape(example.name)}" src="data:image/png;base64,{data}">'
    source = f"<p><em>{escape(example.source)}</em></p>" if example.source else ""
    written = "".join(
        f'<p><span class="key" style="background:var(--line-{result.colour})" title="{escape(result.name)}"></span>'
        f"{escape(result.hypotheses.get(example.name, '–'))}</p>"
        for result in results
    )
    references = "".join(f"<li>{escape(reference)}</li>" for reference in example.references)
    return f'<div class="card example">{image}<div>{source}{written}<ul>{references}</ul></div></div>'


def _similarity(results: Sequence[_Results], words: Sequence[str]) -> str:
    result = next((result for result in results if result.run.table_file.is_file()), None)
    if result is None:
        return ""
    vocabulary = result.run.vocabularies()["target"]
    with one_line():
        table = SimilarityTable.load(result.run.table_file, len(vocabulary))
    chosen = [word for word in words if word in vocabulary.tokens] or _some_words(vocabulary, table)
    rows = _neighbours(table, vocabulary, chosen)
    head = ["word", "seen", "own mass", "neighbours and their mass", "kept"]
    loss = result.settings["loss"]
    text = (
        f"Token smoothing shares a word's probability with its neighbours in GloVe space: tau {loss['token_tau']:g}, "
        f"beta {loss['beta']:g}, {table.num_neighbours} entries kept per row of {table.num_tokens}, "
        f"tail {table.tail_mode}. "
        f"All rows together keep {100 * table.total_kept_mass:.1f} % of their mass, weighted by frequency."
    )
    shown = _table(head, rows, (1, 2, 4))
    return f'<section><h2>The similarity table of {escape(result.name)}</h2><p class="note">{text}</p>{shown}</section>'


def _some_words(vocabulary: Vocabulary, table: SimilarityTable) -> list[str]:
    """Up to ten words with neighbours, from frequent to rare, evenly by logarithm of the rank, function words aside."""
    known = [token for token in range(len(vocabulary)) if bool(table.has_neighbours[token])]
    ranks = (
        sorted({round(rank) - 1 for rank in np.geomspace(10 if len(known) > 100 else 1, len(known), 10)})
        if known
        else []
    )
    return [vocabulary.words[known[rank]] for rank in ranks]


def _neighbours(table: SimilarityTable, vocabulary: Vocabulary, words: Sequence[str]) -> list[list[str]]:
    """The cells of each word; the longest bar is that of the largest mass shown."""
    rows = [_row_mass(table, vocabulary.tokens[word]) for word in words]
    own = [mass.pop(vocabulary.tokens[word], 0.0) for word, mass in zip(words, rows, strict=True)]
    shown = [list(mass.items())[:NEIGHBOURS_SHOWN] for mass in rows]
    longest = max((value for row in shown for _, value in row), default=0.0) or 1.0
    cells = []
    for word, self_mass, row in zip(words, own, shown, strict=True):
        chips = "".join(
            f'<span class="neighbour"><span class="bar" style="width:{max(1, round(56 * value / longest))}px"></span>'
            f"{escape(vocabulary.words[index])} <small>{100 * value:.1f} %</small></span>"
            for index, value in row
        )
        token = vocabulary.tokens[word]
        kept = f"{100 * float(table.kept_mass[token]):.1f} %"
        cells.append([f"<b>{escape(word)}</b>", str(vocabulary.counts[token]), f"{100 * self_mass:.1f} %", chips, kept])
    return cells


def _row_mass(table: SimilarityTable, token: int) -> dict[int, float]:
    """Mass of a row's kept tokens, the largest first: the entry and, with a uniform tail, the share of the tail."""
    share = float(table.tail[token]) / table.num_tokens if table.tail_mode == "uniform" else 0.0
    entries = zip(table.indices[token].tolist(), table.weights[token].tolist(), strict=True)
    return {index: weight + share for index, weight in entries if index >= 0}


def _step_times(step_times: Mapping[str, Sequence[float]]) -> str:
    known = {name: times for name, times in step_times.items() if len(times)}
    if not known:
        return ""
    base = median(next(iter(known.values())))
    rows = []
    for name, times in known.items():
        middle, spread = median(times), np.quantile(times, (0.25, 0.75))
        span = f"{1000 * spread[0]:.1f} – {1000 * spread[1]:.1f}"
        rows.append([escape(name), f"{1000 * middle:.1f}", span, f"{middle / base:.2f}", str(len(times))])
    table = _table(["loss", "median ms", "quartiles ms", "relative", "steps"], rows, (1, 2, 3, 4))
    note = "Whole training steps (data, forward, loss, backward, Adam) on one thread, the losses taking turns."
    return f'<section><h2>Time of a step</h2>{table}<p class="note">{note}</p></section>'


def _time_shares(results: Sequence[_Results]) -> str:
    """Where the time of a training step goes, averaged over the lines that say so."""
    logged = [[line["time"] for line in result.metrics if "time" in line] for result in results]
    parts = list(dict.fromkeys(part for lines in logged for line in lines for part in line))
    if not parts:
        return ""
    rows = [
        [
            result.key,
            *(f"{100 * mean(line.get(part, 0.0) for line in lines):.1f} %" if lines else "–" for part in parts),
        ]
        for result, lines in zip(results, logged, strict=True)
    ]
    table = _table(["run", *parts], rows, range(1, len(parts) + 1))
    return f"<section><h2>Where the time of training goes</h2>{table}</section>"


def _settings(results: Sequence[_Results]) -> str:
    flat = [_flat(result.settings) for result in results]
    keys = sorted({key for values in flat for key in values} - {"name"})
    keys = [key for key in keys if len({json.dumps(values.get(key)) for values in flat}) > 1]
    differences = ""
    if keys:
        rows = [[f"<code>{escape(key)}</code>", *(escape(_shown(values.get(key))) for values in flat)] for key in keys]
        differences = _table(["what differs", *(result.key for result in results)], rows)
    blocks = "".join(
        f"<details><summary>{escape(result.name)}: whole recipe</summary>"
        f"<pre>{escape(yaml.safe_dump(result.settings, sort_keys=False))}</pre></details>"
        for result in results
    )
    return f"<section><h2>Settings and versions</h2>{differences}{blocks}{_environment(results[0].run)}</section>"


def _environment(run: RunDirectory) -> str:
    file = run.path / "environment.json"
    if not file.is_file():
        return ""
    values = _flat(json.loads(file.read_text(encoding="utf-8")))
    known = {key.removeprefix("versions."): value for key, value in values.items() if value is not None}
    rows = [[escape(key), escape(_shown(value))] for key, value in known.items()]
    return _table(["environment", ""], rows)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)
