"""The tables of the report, as plain text: what goes into which cell."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from statistics import mean, median
from typing import Any

import numpy as np

import smoothloss
from smoothloss_trainer.documents import flat
from smoothloss_trainer.report.inputs import CIDER, Data, signature
from smoothloss_trainer.report.runs import RunResults
from smoothloss_trainer.report.state import is_number

SCORE_NAMES = {"bleu": "BLEU", "bleu_detokenized": "BLEU, detokenised"}
SCORE_NAMES |= {f"bleu_{n}": f"BLEU-{n}" for n in range(1, 5)} | {"rouge_l": "ROUGE-L", "cider": "CIDEr-D"}
_OF_SAMPLING = ("temperature", "top_k", "top_p", "seed")
_OF_BEAMS = ("beam_size",)
_NO_SETTINGS = ("validation_beam_size", "batch_size")  # have no influence on what is written
NOTHING = "–"
_BEGIN_NUMBERS = ("", *"0123456789+-–")


@dataclass(frozen=True)
class Cell:
    """A cell.

    Args:
        text: What it says.
        number: Whether it is set flush right.
        best: Whether it is the best of its column.
        run: The run it names, whose line is drawn beside it.
        code: Whether it is the name of a setting.
    """

    text: str
    number: bool = False
    best: bool = False
    run: RunResults | None = None
    code: bool = False


@dataclass(frozen=True)
class Table:
    """A table, the first cell of each row its heading."""

    caption: str
    head: list[Cell]
    rows: list[list[Cell]]

    @property
    def has_best(self) -> bool:
        """Whether a cell is marked as the best."""
        return any(cell.best for row in self.rows for cell in row)


@dataclass(frozen=True)
class Section:
    """A section with one table."""

    title: str
    table: Table
    note: str


def section(title: str, head: Sequence[str], rows: Sequence[Sequence[str]], note: str) -> Section:
    """A section with a table of plain text, its first column the names of the rows."""
    return Section(title, text_table(title, head, rows), note)


def text_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of plain text, all columns but the first flush right."""
    lines = [[Cell(text, number=column > 0) for column, text in enumerate(row)] for row in [head, *rows]]
    return Table(caption, lines[0], lines[1:])


def _run_table(
    caption: str, results: Sequence[RunResults], columns: Mapping[str, Sequence[str]], *, code: bool = False
) -> Table:
    """A row for each run; columns of numbers are flush right. ``code``: the columns are settings."""
    numbers = {name: all(text[:1] in _BEGIN_NUMBERS for text in values) for name, values in columns.items()}
    head = [Cell("run"), *(Cell(name, number=numbers[name], code=code) for name in columns)]
    rows = [
        [Cell(each.label, run=each), *(Cell(values[row], number=numbers[name]) for name, values in columns.items())]
        for row, each in enumerate(results)
    ]
    return Table(caption, head, rows)


def score_name(metric: str) -> str:
    """How a metric is written."""
    return SCORE_NAMES.get(metric, metric.replace("_", " "))


def shown(value: Any, form: str = "") -> str:
    """A value in a cell."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}: {shown(each)}" for key, each in value.items()) or NOTHING
    return NOTHING if value is None else f"{value:{form}}" if form else str(value)


def duration(seconds: float) -> str:
    """Such as "1 h 05 min"; NOTHING for no time at all."""
    if seconds <= 0:
        return NOTHING
    minutes = seconds / 60
    if minutes >= 60:
        return f"{int(minutes // 60)} h {int(minutes % 60):02} min"
    return f"{int(minutes)} min {int(seconds % 60):02} s" if minutes >= 1 else f"{seconds:.1f} s"


def run_table(results: Sequence[RunResults], split: str) -> Table:
    """How far each run has come, how long it took and how large its model is."""
    columns: dict[str, list[str]] = {
        "loss": [result.recipe.loss.name for result in results],
        "steps": [f"{result.state.step:,}" for result in results],
        "training time": [duration(result.state.seconds) for result in results],
        "tokens a second": [shown(_tokens_per_second(result), ",.0f") for result in results],
        "parameters": [shown(result.parameters, ",") for result in results],
        "device": [_device(result) for result in results],
        "seed": [str(result.recipe.seed) for result in results],
    }
    table = _run_table("How far each run has come, and its size", results, columns)
    states = [
        Cell(result.state.in_words(result.recipe.training.epochs, split, scored=bool(result.scores)))
        for result in results
    ]
    rows = [[name, state, *rest] for (name, *rest), state in zip(table.rows, states, strict=True)]
    return Table(table.caption, [table.head[0], Cell("state"), *table.head[1:]], rows)


def _device(result: RunResults) -> str:
    gpu = result.environment.get("cuda")
    return str(gpu) if gpu and result.recipe.device != "cpu" else "CPU"


def _tokens_per_second(result: RunResults) -> float | None:
    known = [line["tokens_per_second"] for line in result.metrics if is_number(line.get("tokens_per_second"))]
    return median(known) if known else None


def score_table(results: Sequence[RunResults], split: str) -> Table:
    """The scores on a split; the best of each column is marked, as shown: what rounds to the same number is a tie."""
    metrics = dict.fromkeys(
        metric for key in SCORE_NAMES for result in results for metric in result.scores if metric == key
    )
    metrics |= dict.fromkeys(metric for result in results for metric in result.scores)
    columns: list[tuple[str, str, Callable[[RunResults], Any], int]] = [
        (score_name(key), ".2f", lambda result, key=key: result.scores.get(key), 1)  # type: ignore[misc]
        for key in metrics
    ]
    columns += [
        ("validation NLL", ".3f", lambda result: _finite(result.best.get("validation_loss")), -1),
        ("best epoch", "d", lambda result: result.best.get("epoch"), 0),
        ("words used", ",d", _words_used, 0),
        ("words a text", ".1f", _mean_length, 0),
    ]
    texts = {name: [shown(value(result), form) for result in results] for name, form, value, _ in columns}
    table = _run_table(f"Scores on {split}", results, texts)
    directions = [0, *(direction for *_, direction in columns)]
    rows = [[*row] for row in table.rows]
    for column, direction in enumerate(directions):
        known = [direction * float(row[column].text) for row in rows if direction and row[column].text != NOTHING]
        for row in rows if len(known) > 1 and direction else ():
            text = row[column].text
            row[column] = Cell(text, number=True, best=text != NOTHING and direction * float(text) == max(known))
    return Table(table.caption, table.head, rows)


def _finite(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _words_used(result: RunResults) -> int | None:
    return len({word for text in result.hypotheses.values() for word in text.split()}) if result.hypotheses else None


def _mean_length(result: RunResults) -> float | None:
    return mean(len(text.split()) for text in result.hypotheses.values()) if result.hypotheses else None


def signatures(results: Sequence[RunResults], data: Data) -> list[tuple[str, str, list[RunResults]]]:
    """(metric, signature, the runs that have it)."""
    found: dict[tuple[str, str], list[RunResults]] = {}
    for result in results:
        signed = {score_name(metric): text for metric, text in result.signatures.items()}
        if "cider" in result.scores and data.inputs:
            version = flat(result.environment).get("versions.smoothloss") or smoothloss.__version__
            text = f"BLEU-n:coco,closest|ROUGE-L:beta1.2|{CIDER.format(n=len(data.inputs))}"
            signed["BLEU-n, ROUGE-L and CIDEr-D"] = signature(data.inputs, text, str(version))
        for metric, text in signed.items():
            found.setdefault((metric, text), []).append(result)
    return [(metric, text, runs) for (metric, text), runs in found.items()]


def decoding_table(results: Sequence[RunResults]) -> Table:
    """How the hypotheses were found; one row where all runs were decoded alike."""
    found = [_decoding(result.decoding) for result in results]
    keys = list(dict.fromkeys(key for values in found for key in values))
    caption = "How hypotheses were found"
    if all(values == found[0] for values in found):
        who = "all runs" if len(results) > 1 else results[0].label
        head, row = [Cell("run"), *(Cell(key, code=True) for key in keys)], [Cell(found[0][key]) for key in keys]
        return Table(caption, head, [[Cell(who, run=None if len(results) > 1 else results[0]), *row]])
    return _run_table(
        caption, results, {key: [values.get(key, NOTHING) for values in found] for key in keys}, code=True
    )


def _decoding(values: Mapping[str, Any]) -> dict[str, str]:
    other = _OF_BEAMS if values.get("method") == "sample" else _OF_SAMPLING
    return {key: shown(value) for key, value in values.items() if key not in (*other, *_NO_SETTINGS)}


def data_table(data: Sequence[Data]) -> Table:
    """Sizes of the parts and vocabularies, and where the data come from: a column for each data."""
    columns = [_describe(each) for each in data]
    keys = list(dict.fromkeys(key for column in columns for key in column))
    if len(data) == 1:
        head = [Cell("data"), Cell("")]
    else:
        head = [Cell("data"), *(Cell(", ".join(run.label for run in each.runs)) for each in data)]
    rows = [[Cell(key), *(Cell(column.get(key, NOTHING)) for column in columns)] for key in keys]
    return Table("What the runs learned from", head, rows)


def _describe(data: Data) -> dict[str, str]:
    described = {f"{part}, inputs": f"{size:,}" for part, size in data.sizes.items()}
    for result in data.runs:
        for name, vocabulary in result.vocabularies.items():
            text = f"{len(vocabulary):,}"
            known = described.setdefault(f"{name} vocabulary, words", text)
            if text not in known.split("; "):
                described[f"{name} vocabulary, words"] = f"{known}; {text}"
    described |= {f"data.{key}": shown(value) for key, value in _given(data.runs[0].recipe.data).items()}
    return described


def _given(config: Any) -> dict[str, Any]:
    """The values of a data section that are not the default's."""
    found = {}
    for each in fields(config):
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        value = getattr(config, each.name)
        if value != default and value is not None:
            found[each.name] = value
    return found


def step_time_table(step_times: Mapping[str, Sequence[float]]) -> Table | None:
    """Seconds of single training steps by loss; the first is the baseline."""
    known = {name: times for name, times in step_times.items() if len(times)}
    if not known:
        return None
    base = median(next(iter(known.values())))
    rows = []
    for name, times in known.items():
        middle, spread = median(times), np.quantile(times, (0.25, 0.75))
        span = f"{1000 * spread[0]:.1f} – {1000 * spread[1]:.1f}"
        rows.append([name, f"{1000 * middle:.1f}", span, f"{middle / base:.2f}", str(len(times))])
    return text_table("Time of a training step", ["loss", "median ms", "quartiles ms", "relative", "steps"], rows)


def time_share_table(results: Sequence[RunResults]) -> Table | None:
    """Where the time of a training step goes, averaged over the lines that say so."""
    logged = [[line["time"] for line in result.metrics if _is_shares(line.get("time"))] for result in results]
    parts = list(dict.fromkeys(part for lines in logged for line in lines for part in line))
    if not parts:
        return None
    columns = {
        part: [f"{100 * mean(line.get(part, 0.0) for line in lines):.1f} %" if lines else NOTHING for lines in logged]
        for part in parts
    }
    return _run_table("Where the time of training goes", results, columns)


def _is_shares(value: Any) -> bool:
    return isinstance(value, dict) and all(is_number(share) for share in value.values())


def difference_table(results: Sequence[RunResults]) -> Table | None:
    """The settings in which runs differ; None where they do not."""
    found = [flat(result.settings) for result in results]
    keys = sorted({key for values in found for key in values} - {"name"})
    keys = [key for key in keys if len({json.dumps(values.get(key), default=str) for values in found}) > 1]
    if not keys:
        return None
    return _run_table(
        "Settings that differ", results, {key: [shown(values.get(key)) for values in found] for key in keys}, code=True
    )


def environment_table(result: RunResults) -> Table | None:
    """Versions and machine of a run."""
    values = flat(result.environment)
    known = {key.removeprefix("versions."): value for key, value in values.items() if value is not None}
    rows = [[Cell(key), Cell(shown(value))] for key, value in known.items()]
    return Table(f"Versions and machine of {result.label}", [Cell("what"), Cell("value")], rows) if rows else None
