from __future__ import annotations

import sys

import pytest

from smoothloss.trainer.metrics import caption_scores, corpus_bleu


def test_bleu_of_equal_text_is_100_and_says_how_it_was_measured() -> None:
    lines = ["a dog runs on the grass .", "two men sit at a table ."]
    scores = corpus_bleu(lines, [lines])
    assert scores["bleu"] == pytest.approx(100.0)
    assert "tok:none" in str(scores["bleu_signature"])


def test_bleu_by_hand() -> None:
    # 1- to 4-gram precisions 5/6, 3/5, 2/4, 1/3; equal lengths.
    scores = corpus_bleu(["a b c d x e"], [["a b c d e f"]])
    assert scores["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)


def test_caption_scores() -> None:
    pytest.importorskip("pycocoevalcap.cider.cider")
    references = {"1": ["a dog runs on grass", "a brown dog runs"], "2": ["a man rides a horse"], "3": ["two cats sit"]}
    perfect = caption_scores({key: captions[0] for key, captions in references.items()}, references)
    poor = caption_scores(dict.fromkeys(references, "a dog"), references)
    assert perfect.keys() == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider"}
    assert perfect["bleu_1"] == pytest.approx(100.0)
    assert perfect["cider"] > 100 > poor["cider"]


def test_caption_scores_refuse_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocoevalcap.cider.cider")
    with pytest.raises(ValueError, match="same ids; only one has 2"):
        caption_scores({"1": "a"}, {"1": ["a"], "2": ["b"]})
    with pytest.raises(ValueError, match="got none for 1"):
        caption_scores({"1": "a"}, {"1": []})
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu", None)
    with pytest.raises(ImportError, match=r"smoothloss\[caption\]"):
        caption_scores({"1": "a"}, {"1": ["a"]})
