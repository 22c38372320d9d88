from __future__ import annotations

from pathlib import Path

import pytest

from smoothloss_trainer.report.inputs import Data, open_data, read_data, references_of, signature
from smoothloss_trainer.report.runs import read_runs
from smoothloss_trainer.tasks import Input

from .conftest import MakeRun


def test_runs_of_the_same_data_share_them(make_run: MakeRun) -> None:
    runs = [make_run("a"), make_run("b", data={"min_count": 2}), make_run("c", model={"encoder": 8})]
    results = read_runs(runs, "test")
    first, other = read_data(results, "test", open_data(runs[0]))
    assert [result.label for result in first.runs] == ["a", "c"] and [result.label for result in other.runs] == ["b"]
    assert first.sizes == {"train": 200, "validation": 20, "test": 30}
    assert len(first.inputs) == 30 and first.inputs[0].source == first.inputs[0].references[0].upper()
    assert first.same_inputs(other) and first.note is None
    assert not first.same_inputs(Data([], first.inputs[:3]))


def test_references_of_the_run_stand_in_for_the_data(make_run: MakeRun) -> None:
    run = make_run()
    (run.path / "hypotheses.test.json").write_text('{"7": "x", "8": "y"}')
    [result] = read_runs([run], "test")
    assert references_of(result, "test") == []
    (run.path / "references.test.0.txt").write_text("a b\nc\u2028d\n")
    (run.path / "references.test.1.txt").write_bytes(b"e\xff\n\n")
    assert references_of(result, "test") == [Input("7", ["a b", "e\ufffd"]), Input("8", ["c\u2028d"])]
    (run.path / "references.test.txt").write_text("a\nb\nc\n")  # of another number of hypotheses
    assert references_of(result, "test") == []


@pytest.mark.parametrize(("counts", "shown"), [([1, 1], "1"), ([5, 2, 3], "2-5"), ([], "0")])
def test_the_signature_counts_references(counts: list[int], shown: str) -> None:
    inputs = [Input(str(number), ["x"] * count) for number, count in enumerate(counts)]
    expected = f"n:{len(counts)}|nrefs:{shown}|case:mixed|tok:none|M:1|version:smoothloss-9"
    assert signature(inputs, "M:1", "9") == expected


def test_a_picture_that_cannot_be_looked_for_is_none(make_run: MakeRun, tmp_path: Path) -> None:
    class Task:
        def picture(self, name: str) -> Path | None:
            return None if name == "none" else tmp_path / name

    data = Data([], [], task=Task())  # type: ignore[arg-type]
    assert data.picture("none") is None and data.picture("missing.png") is None and data.picture("x" * 300) is None
