"""METEOR by Java: run where Java and pycocoevalcap are."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
import torch

from smoothloss_trainer import java_metrics
from smoothloss_trainer.cli import main
from smoothloss_trainer.errors import RunError
from smoothloss_trainer.java_metrics import java_scores, missing

needs_meteor = pytest.mark.skipif(missing("meteor") is not None, reason=f"METEOR needs {missing('meteor')}")
CANDIDATES = ["a dog runs on the beach", "two men play chess"]
REFERENCES = [["a dog runs on the beach", "a puppy is running"], ["a woman reads"]]


def java_script(folder: Path, text: str) -> str:
    """Return a PATH on which java is a script."""
    script = folder / "java"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@needs_meteor
def test_meteor_knows_what_is_alike() -> None:
    corpus, sentences = java_scores("meteor", CANDIDATES, REFERENCES)
    assert sentences.shape == (2,)
    assert sentences[0] == 1.0
    assert 0.0 <= sentences[1] < 0.2 < corpus < 1.0


@needs_meteor
def test_separators_and_newlines_in_a_text_are_no_protocol() -> None:
    tidy = java_scores("meteor", ["a dog runs", "a cat"], [["a dog"], ["a cat"]])
    odd = java_scores("meteor", ["a ||| dog\nruns", "a cat"], [["a  dog"], ["a cat"]])
    assert tidy[0] == odd[0]
    assert torch.equal(tidy[1], odd[1])


@needs_meteor
def test_score_shows_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("".join(f"{line}\n" for line in CANDIDATES))
    (tmp_path / "b.txt").write_text("".join(f"{lines[0]}\n" for lines in REFERENCES))
    words = ["score", str(tmp_path / "a.txt"), str(tmp_path / "b.txt"), "--meteor", "--out", str(tmp_path / "s.json")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "METEOR" in printed
    assert "METEOR:1.5,en,norm" in printed
    written = json.loads((tmp_path / "s.json").read_text())
    assert written["sentences"]["1"]["meteor"] == 100.0
    assert 0 < written["scores"]["meteor"] < 100


@needs_meteor
@pytest.mark.slow
@pytest.mark.skipif("SMOOTHLOSS_DATA" not in os.environ, reason="SMOOTHLOSS_DATA is not set")
def test_meteor_of_coco_captions_own_example() -> None:
    folder = Path(os.environ["SMOOTHLOSS_DATA"]) / "golden"
    entries = json.loads((folder / "fakecap_ptb_tokenized_refs.json").read_text())
    golden = json.loads(gzip.decompress((folder / "scores_fakecap.json.gz").read_bytes()))
    corpus, sentences = java_scores("meteor", [each["test"] for each in entries], [each["refs"] for each in entries])
    by_image = dict(zip(map(str, golden["image_ids"]), golden["METEOR"], strict=True))
    assert sentences.tolist() == pytest.approx([by_image[str(each["image_id"])] for each in entries], abs=1e-9)
    assert corpus == pytest.approx(0.19525467177780284, abs=1e-9)


@needs_meteor
def test_java_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", java_script(tmp_path, "echo no memory left >&2; exit 1"))
    with pytest.raises(RunError, match="METEOR failed: no memory left"):
        java_scores("meteor", CANDIDATES, REFERENCES)


@needs_meteor
def test_java_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for metric in ("meteor", "spice"):
        with pytest.raises(RunError, match=f"{metric.upper()} needs Java, which is not on the PATH"):
            java_scores(metric, CANDIDATES, REFERENCES)  # type: ignore[arg-type]


def test_a_package_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(java_metrics.util, "find_spec", lambda name: None)
    assert main(["score", "a.txt", "b.txt", "--meteor"]) == 1
    assert "--meteor needs pycocoevalcap, which is not installed: pip install" in capsys.readouterr().err


@needs_meteor
def test_models_of_spice_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java_metrics, "_SPICE_MODELS", ("models-of-nowhere.jar",))
    reason = missing("spice")
    assert reason is not None
    assert reason.startswith("models-of-nowhere.jar in ")
    assert "downloads it" in reason
