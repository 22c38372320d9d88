"""A score for each example, and which examples are shown: the first ones, and the worst."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import smoothloss
from smoothloss_trainer.metrics import score_texts
from smoothloss_trainer.report.images import Thumbnail
from smoothloss_trainer.report.inputs import CIDER, Data, signature
from smoothloss_trainer.report.runs import RunResults
from smoothloss_trainer.tasks import Input, task_class

FIRST, WORST = 8, 6
TITLES = {"cider": "CIDEr-D", "sentence_bleu": "sentence BLEU"}
_SIGNATURES = {"cider": CIDER, "sentence_bleu": "sentenceBLEU:n4,smooth:exp,eff:yes"}


@dataclass(frozen=True)
class Written:
    """What a run wrote about an input, and its score; None where there is none."""

    result: RunResults
    text: str | None
    score: float | None


@dataclass(frozen=True)
class Example:
    """An input with what the runs wrote about it."""

    input: Input
    written: list[Written]
    picture: Thumbnail | None


@dataclass(frozen=True)
class Group:
    """Examples that were chosen alike."""

    title: str
    note: str
    examples: list[Example]


@dataclass(frozen=True)
class SentenceScores:
    """A score of each input.

    Args:
        metric: Its name.
        signature: What it depends on besides the text.
        by_run: Scores by input id, for each run.
    """

    metric: str
    signature: str
    by_run: list[dict[str, float]]


def sentence_scores(results: Sequence[RunResults], data: Data) -> SentenceScores:
    """Score what each run wrote about the inputs of the split, each text by itself.

    Captions get CIDEr-D, translations sentence BLEU.
    """
    metric = "cider" if task_class(results[0].recipe.task).metric == "cider" else "sentence_bleu"
    text = signature(data.inputs, _SIGNATURES[metric].format(n=len(data.inputs)), smoothloss.__version__)
    return SentenceScores(TITLES[metric], text, [_scores(result, data.inputs, metric) for result in results])


def _scores(result: RunResults, inputs: Sequence[Input], metric: str) -> dict[str, float]:
    known = [each for each in inputs if each.references and each.name in result.hypotheses]
    if not known:
        return {}
    texts = [result.hypotheses[each.name] for each in known]
    references = [each.references for each in known]
    documents = [each.references for each in inputs]
    found = score_texts(texts, references, documents=documents, sentence_smoothing="exp").sentences[metric]
    return {each.name: score for each, score in zip(known, found.tolist(), strict=True)}


def choose(results: Sequence[RunResults], data: Data, scores: SentenceScores) -> list[Group]:
    """The first inputs, those with the lowest scores, and those that lose most against the first run."""
    inputs = data.inputs or [Input(name, []) for name in next((r.hypotheses for r in results if r.hypotheses), {})]
    metric, names = scores.metric, [each.name for each in inputs]
    written_of = _writer(results, scores.by_run)

    def group(title: str, note: str, chosen: Sequence[str]) -> Group:
        by_name = {each.name: each for each in inputs}
        return Group(title, note, [Example(by_name[n], written_of(n), data.picture(n)) for n in chosen])

    groups = [group("The first ones", "In the order of the data, not chosen.", names[:FIRST])]
    lowest = _lowest(names, {name: _mean(scores.by_run, name) for name in names})
    note = f"Those with the lowest {metric}{', averaged over the runs' if len(results) > 1 else ''}."
    groups.append(group("The lowest scores", note, lowest))
    note = f"Those where a run's {metric} is furthest below that of {results[0].label}."
    losses = _lowest(names, {name: _loss(scores.by_run, name) for name in names}, below=0.0)
    groups.append(group(f"The largest losses against {results[0].label}", note, losses))
    return [each for each in groups if each.examples]


def _writer(results: Sequence[RunResults], by_run: Sequence[Mapping[str, float]]) -> Callable[[str], list[Written]]:
    def written(name: str) -> list[Written]:
        pairs = zip(results, by_run, strict=True)
        return [Written(result, result.hypotheses.get(name), scores.get(name)) for result, scores in pairs]

    return written


def _mean(by_run: Sequence[Mapping[str, float]], name: str) -> float | None:
    known = [scores[name] for scores in by_run if name in scores]
    return mean(known) if known else None


def _loss(by_run: Sequence[Mapping[str, float]], name: str) -> float | None:
    """How far the worst of the other runs is above the first one: below 0 when it is behind."""
    first, *others = by_run
    known = [scores[name] - first[name] for scores in others if name in scores and name in first]
    return min(known) if known else None


def _lowest(names: Sequence[str], values: Mapping[str, float | None], below: float | None = None) -> list[str]:
    known = [(value, name) for name in names if (value := values[name]) is not None]
    kept = [(value, name) for value, name in known if below is None or value < below]
    return [name for _, name in sorted(kept, key=lambda pair: pair[0])[:WORST]]
