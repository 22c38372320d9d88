from __future__ import annotations

import gzip
import io
import json
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drawn_files import Writing, lines, names, writings
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU

from smoothloss_trainer.checkpoint import write_json
from smoothloss_trainer.cli import main
from smoothloss_trainer.files import read_json
from smoothloss_trainer.score_inputs import read_files

CANDIDATES = ["a Dog runs fast.", "two cats sit here", "it rains"]
FIRST = ["a dog runs.", "two cats sit there now", "It rains"]
SECOND = ["the dog runs fast.", "", "rain"]
Score = Callable[..., dict[str, Any]]


def write(path: Path, lines: list[str]) -> str:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


@pytest.fixture
def score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Score:
    """Return a function that runs the command and gives what it wrote with what it printed."""

    def run(*words: str) -> dict[str, Any]:
        out = tmp_path / "out.json"
        assert main(["score", *words, "--out", str(out)]) == 0
        return {**json.loads(out.read_text()), "printed": capsys.readouterr().out}

    return run


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """Return three candidates and two files of references, as arguments."""
    lines = {"candidates": CANDIDATES, "first": FIRST, "second": SECOND}
    return [write(tmp_path / f"{name}.txt", text) for name, text in lines.items()]


@pytest.mark.parametrize("options", [[], ["--tokenize", "13a"], ["--tokenize", "intl", "--lowercase"]])
def test_text_scores_are_sacrebleus(score: Score, texts: list[str], options: list[str]) -> None:
    found = score(*texts, *options, "--sentence_bleu", "exp")
    name = options[1] if options else "none"
    metric = BLEU(tokenize=name, lowercase="--lowercase" in options)
    assert found["scores"]["bleu"] == pytest.approx(metric.corpus_score(CANDIDATES, [FIRST, SECOND]).score, rel=1e-9)
    single = BLEU(tokenize=name, lowercase="--lowercase" in options, effective_order=True)
    for number, (text, *own) in enumerate(zip(CANDIDATES, FIRST, SECOND, strict=True), 1):
        expected = single.sentence_score(text, own).score
        assert found["sentences"][str(number)]["sentence_bleu"] == pytest.approx(expected, rel=1e-9)
    case = "lc" if "--lowercase" in options else "mixed"
    assert found["signature"].startswith(f"n:3|nrefs:1-2|case:{case}|tok:{name}|")
    assert found["signature"] in found["printed"]
    assert f"{found['scores']['bleu']:.3f}" in found["printed"]


def test_json_forms_are_the_same_data(score: Score, tmp_path: Path) -> None:
    references = {"7": ["a dog runs", "the dog runs fast"], "8": ["two cats sit there now"], "9": ["a dog sits"]}
    annotations = [{"image_id": int(key), "caption": text} for key, group in references.items() for text in group]
    files = {
        "results.json": [{"image_id": int(key), "caption": text} for key, text in zip("78", CANDIDATES, strict=False)],
        "texts.json": dict(zip("78", CANDIDATES, strict=False)),
        "lists.json": {key: [text] for key, text in zip("78", CANDIDATES, strict=False)},
        "annotations.json": {"images": [], "annotations": annotations},
        "mapping.json": references,
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "mapping.json.gz").write_bytes(gzip.compress((tmp_path / "mapping.json").read_bytes()))
    pairs = [("results", "annotations.json"), ("texts", "mapping.json"), ("lists", "mapping.json.gz")]
    found = [score(f"{tmp_path}/{one}.json", f"{tmp_path}/{other}") for one, other in pairs]
    assert found[0] == found[1] == found[2]
    assert found[0]["sentences"].keys() == {"7", "8"}, "references of other ids are left out"
    assert "n:2|nrefs:1-2|" in found[0]["signature"]
    assert "df:refs[2]" in found[0]["signature"]
    other = score(f"{tmp_path}/results.json", f"{tmp_path}/mapping.json", "--df", f"{tmp_path}/mapping.json")
    assert "df:mapping.json[3]" in other["signature"]
    # "a" and "dog" are in two of these documents, and weigh less than other words; with two documents all are alike.
    assert abs(other["scores"]["cider"] - found[0]["scores"]["cider"]) > 1
    assert {**other["scores"], "cider": 0} == {**found[0]["scores"], "cider": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope.txt", "b.txt"], "candidates: no such file: nope.txt"),
        (["a.txt", "b.txt", "nope.txt"], "references: no such file: nope.txt"),
        (["a.txt", "b.txt", "short.txt"], "short.txt has 1 lines and a.txt has 2; they must be the same"),
        (["a.txt", "b.txt", "--df", "nope.txt"], "--df: no such file: nope.txt"),
        (["a.txt", "empty.txt"], "2 candidates have no reference, such as that of line 1"),
        (["a.txt", "r.json"], "1 candidates have no reference, such as that of id 2"),
        (["a.txt", "one.json"], "one.json has 1 ids and a.txt has 2; they must be the same"),
        (["one.json", "b.txt"], "b.txt has 2 lines and one.json has 1; they must be the same"),
        (["a.txt", "b.txt", "r.json"], "references in JSON must be one file, got 2"),
        (["nothing.txt", "b.txt"], "nothing.txt has no candidate"),
        (["a.txt", "b.txt", "--df", "nothing.json"], "--df: nothing.json has no document"),
        (["a.txt", "b.txt", "--df", "nothing.txt"], "--df: nothing.txt has no document"),
        (["a.txt", "b.txt", "--df", "bare.json"], "--df: bare.json has no document"),
        (["half.json", "b.txt"], "cannot read half.json: 1 has half a character, a lone surrogate"),
        (["-", "-"], "standard input is given 2 times, and can be read only once"),
        ([".", "b.txt"], "candidates: . is a folder, expected a file"),
        (["truth.json", "b.txt"], "truth.json does not hold results with image_id and caption: entry 0"),
        (["a.json", "r.json", "r.json"], "references in JSON must be one file, got 2"),
        (["a.json", "r.json"], "r.json has no reference for 1 of 2 candidates, such as 2"),
        (["twice.json", "r.json"], "twice.json has 1 ids with more than one candidate, such as 1"),
        (["list.json", "r.json"], "list.json does not hold results with image_id and caption"),
        (["none.json", "r.json"], "none.json has no candidate"),
        (["one.json", "list.json"], "list.json holds neither COCO annotations nor a mapping"),
        (["one.json", "number.json"], "number.json has no list of texts for the id 1"),
        (["one.json", "broken.json"], "references: cannot read broken.json"),
        (["a.txt", "b.txt", "--out", "nowhere/out.json"], "--out: cannot write nowhere/out.json"),
        (["long.txt", "b.txt"], "long.txt: line 2 has 10001 tokens; 10000 is the most"),
        (["a.txt", "b.txt", "long.txt"], "b.txt or long.txt: line 2 has 10001 tokens"),
        (["a.json", "long.json"], "long.json: id 2 has 10001 tokens"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, texts in {
        "a": ["x", "y"],
        "b": ["x", "y"],
        "short": ["x"],
        "empty": ["", " "],
        "long": ["x", "y " * 10_001],
    }.items():
        write(tmp_path / f"{name}.txt", texts)
    contents: dict[str, Any] = {
        "a": {"1": "x", "2": "y"},
        "one": {"1": "x"},
        "r": {"1": ["x"], "2": []},
        "long": {"1": ["x"], "2": ["y", "y " * 10_001]},
        "twice": [{"image_id": 1, "caption": "x"}, {"image_id": 1, "caption": "y"}],
        "list": [1, 2],
        "none": [],
        "number": {"1": [3]},
        "nothing": {},
        "bare": {"1": [], "2": []},
        "half": {"1": "a \ud83d"},
        "truth": [{"image_id": True, "caption": "x"}],
    }
    (tmp_path / "nothing.txt").write_text("")
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "broken.json").write_text("{")
    assert main(["score", *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert not printed.out


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a folder with what a run writes, and with its references as text; the JSON is in another order."""
    ids = ["2", "0", "1"]
    write_json(tmp_path / "hypotheses.test.json", {name: CANDIDATES[int(name)] for name in ids})
    rows = ({"id": name, "hypotheses": [{"text": CANDIDATES[int(name)], "score": -1.0}, {"text": "x"}]} for name in ids)
    (tmp_path / "nbest.test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    write_json(tmp_path / "references.json", {name: [FIRST[int(name)]] for name in ids})
    write_json(tmp_path / "results.json", [{"image_id": 70 + n, "caption": text} for n, text in enumerate(CANDIDATES)])
    write_json(tmp_path / "integers.json", {str(n): text for n, text in enumerate(CANDIDATES, 1)})
    write(tmp_path / "hypotheses.test.txt", CANDIDATES)
    write(tmp_path / "references.txt", FIRST)
    return tmp_path


@pytest.mark.parametrize(
    "candidates", ["hypotheses.test.json", "hypotheses.test.txt", "nbest.test.jsonl", "integers.json", "results.json"]
)
@pytest.mark.parametrize("references", ["references.txt", "references.json"])
def test_text_and_json_go_together(run: Path, score: Score, candidates: str, references: str) -> None:
    if (candidates in ("integers.json", "results.json")) and references == "references.json":
        pytest.skip("other ids: there is nothing to compare")
    expected = score(f"{run}/hypotheses.test.txt", f"{run}/references.txt")["scores"]
    found = score(f"{run}/{candidates}", f"{run}/{references}")
    assert found["scores"] == expected
    if candidates == "results.json":
        assert list(found["sentences"]) == ["70", "71", "72"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["hypotheses.test.txt", "hypotheses.test.json", "results.json"])
def test_candidates_come_from_standard_input(
    run: Path, score: Score, monkeypatch: pytest.MonkeyPatch, name: str, packed: bool
) -> None:
    expected = score(f"{run}/{name}", f"{run}/references.txt")["scores"]
    content = b"\xef\xbb\xbf" + (run / name).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(content) if packed else content)))
    assert score("-", f"{run}/references.txt")["scores"] == expected


def test_references_come_through_pipes(run: Path, score: Score, capsys: pytest.CaptureFixture[str]) -> None:
    expected = score(f"{run}/hypotheses.test.txt", f"{run}/references.txt", f"{run}/hypotheses.test.txt")["scores"]
    os.mkfifo(run / "one")
    os.mkfifo(run / "other")
    contents = {"one": (run / "references.txt").read_bytes(), "other": gzip.compress("\r\n".join(CANDIDATES).encode())}
    writers = [threading.Thread(target=(run / name).write_bytes, args=(data,)) for name, data in contents.items()]
    for writer in writers:
        writer.start()
    assert score(f"{run}/hypotheses.test.json", f"{run}/one", f"{run}/other")["scores"] == expected
    for writer in writers:
        writer.join()
    assert main(["score", f"{run}/one", f"{run}/one"]) == 2
    assert "one is given 2 times, and can be read only once" in capsys.readouterr().err


@given(content=lines(), writings=st.tuples(writings(), writings()), names=st.tuples(names(), names()))
@settings(deadline=None, max_examples=40)
def test_a_score_does_not_depend_on_how_the_files_are_written(
    content: list[str], writings: tuple[Writing, Writing], names: tuple[str, str]
) -> None:
    content = [f"a dog {line} runs" for line in content]
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, (writing, name) in enumerate(zip(writings, names, strict=True)):
            (Path(folder) / str(number)).mkdir()
            paths.append(str(writing.write(Path(folder) / str(number) / name, content)))
        texts = read_files(paths[0], paths[1:])
    assert texts.candidates == content and texts.references == [[line] for line in content]


def test_newstest2014(score: Score, data_dir: Path) -> None:
    files = [str(data_dir / "wmt" / name) for name in ("newstest2014.hyp.en", "newstest2014.tok.en")]
    means = {"none": 33.1006, "floor": 34.8018, "add-k": 39.5183, "exp": 35.8402}
    for smoothing, mean in means.items():
        found = score(*files, "--sentence_bleu", smoothing)
        assert found["scores"]["sentence_bleu"] == pytest.approx(mean, abs=5e-5)
        assert found["scores"]["bleu"] == pytest.approx(39.13, abs=5e-3)
    assert score(*files, "--tokenize", "13a")["scores"]["bleu"] == pytest.approx(39.69, abs=5e-3)


@pytest.mark.parametrize("name", ["base", "comb", "seq", "tok"])
def test_the_authors_outputs(score: Score, data_dir: Path, name: str) -> None:
    golden = read_json(f"{data_dir}/golden/scores_paper_{name}.json.gz", "golden")
    references = str(data_dir / "coco" / "captions_val2014.ptb.json.gz")
    found = score(str(data_dir / "paper_outputs" / f"{name}_bw3.json"), references)
    titles = {f"bleu_{n}": f"Bleu_{n}" for n in range(1, 5)} | {"rouge_l": "ROUGE_L", "cider": "CIDEr"}
    for key, title in titles.items():
        assert found["scores"][key] == pytest.approx(100 * golden["corpus"][title], rel=1e-9)
    if name == "base":
        shown = {key: round(found["scores"][key], 3) for key in ("bleu_1", "bleu_4", "rouge_l", "cider")}
        assert shown == {"bleu_1": 73.807, "bleu_4": 33.287, "rouge_l": 54.324, "cider": 101.002}
    published = read_json(f"{data_dir}/paper_outputs/{name}_bw3.sc_json", "published")
    for image, entry in published.items():
        assert found["sentences"][image]["cider"] == pytest.approx(100 * entry["CIDEr"], rel=1e-9)


def test_coco_captions_own_example_from_raw_text(score: Score, data_dir: Path) -> None:
    """The stand-in for the Java tokeniser, on candidates and references, costs a hundredth of a point of CIDEr."""
    golden = read_json(f"{data_dir}/golden/scores_fakecap.json.gz", "golden")["corpus"]
    results = str(data_dir / "golden" / "captions_val2014_fakecap_results.json")
    found = score(results, str(data_dir / "coco" / "captions_val2014.json.gz"), "--tokenize", "ptb-like")
    for key, title in {"bleu_1": "Bleu_1", "bleu_4": "Bleu_4", "rouge_l": "ROUGE_L", "cider": "CIDEr"}.items():
        assert found["scores"][key] == pytest.approx(100 * golden[title], abs=0.011)
    assert "case:lc|tok:ptb-like" in found["signature"]
