from __future__ import annotations

from dataclasses import replace

import pytest

from smoothloss_trainer.metrics import score_texts
from smoothloss_trainer.report.examples import FIRST, WORST, choose, sentence_scores
from smoothloss_trainer.report.inputs import Data
from smoothloss_trainer.report.runs import RunResults, read_runs
from smoothloss_trainer.tasks import Input

from .conftest import MakeRun

SENTENCES = [f"the {size} {thing} runs over there today" for size in ("red", "big", "old") for thing in "abcdefg"]
INPUTS = [Input(str(number), [text]) for number, text in enumerate(SENTENCES)]


@pytest.fixture(scope="module")
def result(make_run: MakeRun) -> RunResults:
    return read_runs([make_run()], "test")[0]


def written(result: RunResults, label: str, changes: dict[int, str]) -> RunResults:
    texts = {str(number): changes.get(number, text) for number, text in enumerate(SENTENCES)}
    return replace(result, label=label, hypotheses=texts)


def test_each_text_has_the_score_of_the_sentence(result: RunResults) -> None:
    changes = {3: "the red d walks over there today", 5: "", 6: "something else"}
    runs = [written(result, "one", changes), replace(result, hypotheses={"2": SENTENCES[2]})]
    scores = sentence_scores(runs, Data(runs, INPUTS))
    expected = score_texts(list(runs[0].hypotheses.values()), [[text] for text in SENTENCES], sentence_smoothing="exp")
    assert list(scores.by_run[0].values()) == expected.sentences["sentence_bleu"].tolist()
    assert scores.by_run[0]["0"] == pytest.approx(100) and scores.by_run[0]["5"] == 0
    assert scores.by_run[1] == {"2": pytest.approx(100)}
    assert scores.metric == "sentence BLEU" and scores.signature.startswith("n:21|nrefs:1|")


def test_the_first_ones_the_lowest_and_the_largest_losses_are_shown(result: RunResults) -> None:
    bad = dict.fromkeys((20, 11), "nothing of the kind")
    runs = [written(result, "base", bad), written(result, "new", bad | {15: "the big", 4: "red e runs over there now"})]
    data = Data(runs, INPUTS)
    groups = {group.title: group.examples for group in choose(runs, data, sentence_scores(runs, data))}
    assert [each.input.name for each in groups["The first ones"]] == [str(number) for number in range(FIRST)]
    lowest = [each.input.name for each in groups["The lowest scores"]]
    assert len(lowest) == WORST and {*lowest[:2]} == {"11", "20"} and {*lowest[2:4]} == {"4", "15"}
    losses = groups["The largest losses against base"]
    assert [each.input.name for each in losses] == ["15", "4"]
    assert [each.text for each in losses[0].written] == [SENTENCES[15], "the big"]


def test_a_single_run_loses_against_nobody_and_nothing_gives_no_examples(result: RunResults) -> None:
    one = written(result, "one", {})
    data = Data([one], INPUTS)
    titles = [group.title for group in choose([one], data, sentence_scores([one], data))]
    assert titles == ["The first ones", "The lowest scores"]
    empty, none = Data([one], []), replace(one, hypotheses={})
    assert choose([none], empty, sentence_scores([none], empty)) == []
    [shown] = choose([one], empty, sentence_scores([one], empty))  # texts without references
    assert shown.examples[0].written[0].text == SENTENCES[0] and shown.examples[0].written[0].score is None
