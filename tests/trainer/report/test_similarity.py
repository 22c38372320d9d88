from __future__ import annotations

import pytest

from smoothloss_trainer.report.runs import read_runs
from smoothloss_trainer.report.similarity import read_similarity

from .conftest import MakeRun


def test_words_have_their_neighbours_and_masses(make_run: MakeRun) -> None:
    results = read_runs([make_run("a"), make_run("b", table=True)], "test")
    found = read_similarity(results, ["blue", "unheard"])
    assert found is not None and found.result.label == "b"
    [word] = found.words
    vocabulary = results[1].vocabularies["target"]
    token = vocabulary.tokens["blue"]
    dense = found.table.dense()[token]
    assert (word.word, word.seen) == ("blue", vocabulary.counts[token])
    assert word.own == pytest.approx(float(dense[token]))
    for each in word.neighbours:
        assert each.mass == pytest.approx(float(dense[vocabulary.tokens[each.word]]))
    masses = [each.mass for each in word.neighbours]
    assert masses == sorted(masses, reverse=True) and max(each.width for each in word.neighbours) == 1


def test_left_out_words_are_chosen_and_no_table_is_nothing(make_run: MakeRun) -> None:
    with_table, without = make_run(table=True), make_run()
    found = read_similarity(read_runs([with_table], "test"), ())
    assert found is not None and 1 < len(found.words) <= 10
    assert read_similarity(read_runs([without], "test"), ["blue"]) is None
