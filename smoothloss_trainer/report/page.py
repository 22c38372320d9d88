"""What the report shows, and its HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml
from markupsafe import Markup

from smoothloss_trainer.report import tables
from smoothloss_trainer.report.charts import Bar, Chart, Line, bar_chart, key, line_chart
from smoothloss_trainer.report.examples import Group, SentenceScores, choose, sentence_scores
from smoothloss_trainer.report.inputs import Data
from smoothloss_trainer.report.playground import Playground, Start, first_fit, playground
from smoothloss_trainer.report.playground import html as playground_html
from smoothloss_trainer.report.runs import RunResults
from smoothloss_trainer.report.similarity import Similarity, read_similarity

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).with_name("templates")
# Characters that HTML has no room for.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_NAMED_IN_LEAD = 4


@dataclass(frozen=True)
class Report:
    """All that the page shows, in its order.

    Args:
        title: Its title.
        lead: The scores in a line.
        introduction: A paragraph.
        notices: What must not be overlooked: runs that are not finished, data that differ.
        sections: Further sections.
        results: The runs.
        keys: A piece of each run's line.
        charts: The curves.
        sentences: How examples are scored.
        groups: The examples.
        data: The data of the runs.
        similarity: What a similarity table holds.
        playground: The table to play with.
        step_times: Seconds of single training steps by loss.
        step_chart: A drawing of them.
        split: The split that is shown.
    """

    title: str
    lead: str
    introduction: str
    notices: list[str]
    sections: Sequence[tables.Section]
    results: list[RunResults]
    keys: list[Chart]
    charts: list[Chart]
    sentences: SentenceScores
    groups: list[Group]
    data: list[Data]
    similarity: Similarity | None
    playground: Playground | None
    step_times: Mapping[str, Sequence[float]]
    step_chart: Chart | None
    split: str


def assemble(
    results: list[RunResults],
    data: list[Data],
    split: str,
    *,
    title: str,
    introduction: str,
    words: Sequence[str],
    step_times: Mapping[str, Sequence[float]],
    sections: Sequence[tables.Section],
) -> Report:
    """The report on runs and their data."""
    compared = [result for each in data if each.same_inputs(data[0]) for result in each.runs]
    compared.sort(key=lambda result: result.number)
    sentences = sentence_scores(compared, data[0])
    similarity = read_similarity(results, words)  # before the notices, which say what of it cannot be read
    return Report(
        title=title,
        lead=_lead(results, split),
        introduction=introduction,
        notices=_notices(results, data, split),
        sections=sections,
        results=results,
        keys=[key(result.number, result.style) for result in results],
        charts=_charts(results),
        sentences=sentences,
        groups=choose(compared, data[0], sentences),
        data=data,
        similarity=similarity,
        playground=_playground(similarity, data[0]),
        step_times=step_times,
        step_chart=_step_chart(step_times),
        split=split,
    )


def _lead(results: Sequence[RunResults], split: str) -> str:
    scored = [result for result in results if result.scores]
    metric = next((m for m in ("cider", "bleu") if scored and all(m in result.scores for result in scored)), None)
    if metric is None:
        return f"No scores on {split} yet."
    name, ranked = tables.score_name(metric), sorted(scored, key=lambda result: -result.scores[metric])
    if len(scored) > _NAMED_IN_LEAD:
        ends = [f"{result.scores[metric]:.1f} ({result.label})" for result in (ranked[0], ranked[-1])]
        return f"{name} on {split}: from {ends[1]} to {ends[0]}, {len(scored)} runs"
    return f"{name} on {split}: " + ", ".join(f"{result.label} {result.scores[metric]:.1f}" for result in scored)


def _playground(similarity: Similarity | None, data: Data) -> Playground | None:
    if similarity is None:
        return None
    result, loss = similarity.result, similarity.result.recipe.loss
    vocabulary = result.vocabularies["target"]
    # The first input that has a sentence of words which all are known.
    said = ([text.split() for text in each.references] for each in data.inputs)
    sentences = next((texts for texts in said if first_fit(texts, vocabulary.tokens)), [])
    share = loss.alpha if loss.name == "tok" else loss.token_alpha
    start = Start(loss.token_tau, loss.beta, loss.neighbours, share or Start.alpha)
    words = [each.word for each in similarity.words]
    return playground(
        vocabulary.words, similarity.table, vocabulary.counts, chosen=words, sentences=sentences, start=start
    )


def _notices(results: Sequence[RunResults], data: Sequence[Data], split: str) -> list[str]:
    notices = []
    for result in results:
        if not result.state.finished or not result.scores:
            epochs = result.recipe.training.epochs
            notices.append(f"{result.label}: {result.state.in_words(epochs, split, scored=bool(result.scores))}.")
    for each in data:
        names = ", ".join(result.label for result in each.runs)
        if each.note is not None:
            kept = "" if each.inputs else "; inputs and references are not shown"
            notices.append(f"The data of {names} cannot be read{kept}: {each.note}")
        if not each.same_inputs(data[0]):
            notices.append(
                f"{split} of {names} is not that of {data[0].runs[0].label}: their scores do not compare, "
                "and their texts are left out of the examples."
            )
        elif each is not data[0]:
            notices.append(f"{names} and {data[0].runs[0].label} differ in data: see the settings.")
    return notices


def _charts(results: Sequence[RunResults]) -> list[Chart]:
    named = {"train_loss": "Training loss", "validation_loss": "Validation loss (negative log-likelihood)"}
    scores = ("bleu", "bleu_4", "cider")
    named |= {f"validation_{metric}": f"Validation {tables.score_name(metric)}" for metric in scores}
    drawn = [
        line_chart(title, f"chart{number}", [Line(result.curve(key), result.style) for result in results], "epoch")
        for number, (key, title) in enumerate(named.items())
    ]
    return [chart for chart in drawn if chart is not None]


def _step_chart(step_times: Mapping[str, Sequence[float]]) -> Chart | None:
    """A bar for each loss: the median, with the quartiles as a whisker, and how many times the first one's it is."""
    bars: list[Bar] = []
    for name, times in step_times.items():
        if len(times):
            low, middle, high = (1000 * float(each) for each in np.quantile(times, (0.25, 0.5, 0.75)))
            relative = middle / (bars[0].value if bars else middle)
            bars.append(Bar(name, middle, low, high, f"{middle:.1f} ms, {relative:.2f} times"))
    return bar_chart("Time of a training step on this machine", "steps", bars, "ms")


def render(report: Report) -> str:
    """The page."""
    recipes = [yaml.safe_dump(result.settings, sort_keys=False, allow_unicode=True) for result in report.results]
    style = Markup((_TEMPLATES / "report.css").read_text(encoding="utf-8"))
    template = _environment().get_template("page.html.j2")
    page = template.render(report=report, tables=tables, recipes=recipes, style=style, playground_html=playground_html)
    return _CONTROLS.sub("\ufffd", page)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
