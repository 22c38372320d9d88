from __future__ import annotations

import random

import pytest

from smoothloss_trainer.metrics import caption_scores, corpus_bleu, detokenized_bleu, score_texts


def test_bleu_of_equal_text_is_100_and_says_how_it_was_measured() -> None:
    lines = ["a dog runs on the grass .", "two men sit at a table ."]
    scores = corpus_bleu(lines, [lines])
    assert scores["bleu"] == pytest.approx(100.0)
    assert "tok:none" in str(scores["bleu_signature"])


def test_bleu_by_hand() -> None:
    # 1- to 4-gram precisions 5/6, 3/5, 2/4, 1/3; equal lengths.
    scores = corpus_bleu(["a b c d x e"], [["a b c d e f"]])
    assert scores["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)


def test_detokenized_bleu_is_that_of_13a_and_leaves_case_out_where_asked() -> None:
    # 13a makes the full stop a word of its own: precisions 5/6, 3/5, 2/4, 1/3 again.
    scores = detokenized_bleu(["A b c d x."], [["A b c d e."]])
    assert scores["bleu_detokenized"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert "tok:13a" in str(scores["bleu_detokenized_signature"])
    lower = ["a dog runs on the grass."], [["A dog runs on the Grass."]]
    assert float(detokenized_bleu(*lower)["bleu_detokenized"]) < 60
    scores = detokenized_bleu(*lower, lowercase=True)
    assert scores["bleu_detokenized"] == pytest.approx(100.0)
    assert "case:lc" in str(scores["bleu_detokenized_signature"])


REFERENCES = {"1": ["a dog runs on grass", "a brown dog runs"], "2": ["a man rides a horse"], "3": ["two cats sit"]}


def coco_scores(candidates: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    """Return the scores by coco-caption's own Python code."""
    bleu, cider, rouge = (
        pytest.importorskip(f"pycocoevalcap.{name}.{name}") for name in ("bleu", "cider", "rouge")
    )  # fmt: skip
    results = {key: [text] for key, text in candidates.items()}
    bleus = bleu.Bleu(4).compute_score(references, results, verbose=0)[0]
    scores = {f"bleu_{n}": value for n, value in enumerate(bleus, 1)}
    scores |= {"rouge_l": rouge.Rouge().compute_score(references, results)[0]}
    scores |= {"cider": cider.Cider().compute_score(references, results)[0]}
    return {name: 100.0 * float(value) for name, value in scores.items()}


def test_caption_scores() -> None:
    perfect = caption_scores({key: captions[0] for key, captions in REFERENCES.items()}, REFERENCES)
    poor = caption_scores(dict.fromkeys(REFERENCES, "a dog"), REFERENCES)
    assert perfect.keys() == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"}
    assert (perfect["bleu_1"], perfect["rouge_l"]) == (pytest.approx(100.0), pytest.approx(100.0))
    assert perfect["cider"] > 100 > poor["cider"]


def test_caption_scores_are_those_of_coco_caption() -> None:
    draw = random.Random(0)
    words = ["a", "the", "dog", "cat", "man", "horse", "runs", "sits", "rides", "on", "grass", "red"]

    def sentence() -> str:
        return " ".join(draw.choices(words, k=draw.randint(1, 12)))

    references = {str(key): [sentence() for _ in range(draw.randint(1, 6))] for key in range(200)}
    candidates = {key: sentence() for key in references}
    assert caption_scores(candidates, references) == pytest.approx(coco_scores(candidates, references), rel=1e-9)


def test_sentence_scores_make_up_those_of_the_corpus() -> None:
    candidates = ["a dog runs", "a man sits", ""]
    scores = score_texts(candidates, list(REFERENCES.values()), sentence_smoothing="exp")
    assert scores.sentences.keys() == scores.corpus.keys() - {"bleu"}
    for name in ("rouge_l", "cider", "sentence_bleu"):
        assert scores.corpus[name] == pytest.approx(float(scores.sentences[name].mean()))
    assert scores.sentences["rouge_l"][2] == 0
    assert scores.corpus["bleu"] == pytest.approx(
        float(corpus_bleu(candidates, [[own[0] for own in REFERENCES.values()], ["a brown dog runs", "", ""]])["bleu"])
    )


def test_document_frequencies_may_come_from_elsewhere() -> None:
    candidates, references = ["a dog runs on grass"], [["a dog runs on grass"]]
    assert score_texts(candidates, references).corpus["cider"] == 0, "all that one document has is in every document"
    scores = score_texts(candidates, references, documents=REFERENCES.values())
    # Of the five words only "a" is in two of the three documents; equal sentences have cosine 1 in every order.
    assert scores.corpus["cider"] == pytest.approx(1000.0)


def test_caption_scores_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="same ids; only one has 2"):
        caption_scores({"1": "a"}, {"1": ["a"], "2": ["b"]})
    with pytest.raises(ValueError, match="got none for 1"):
        caption_scores({"1": "a"}, {"1": []})
    with pytest.raises(ValueError, match="got none, expected a corpus"):
        caption_scores({}, {})
