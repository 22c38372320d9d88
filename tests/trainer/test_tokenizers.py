from __future__ import annotations

from pathlib import Path

import pytest
from sacrebleu.metrics.bleu import BLEU

from smoothloss.trainer.files import read_json
from smoothloss.trainer.tokenizers import ptb_like, tokenizer


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A dog's bed, isn't it?", "a dog 's bed is n't it"),
        ('The sign says "4:30" (or so)...', "the sign says 4:30 -lrb- or so -rrb-"),
        ("a two-door car -- cannot move!", "a two-door car can not move"),
        ("the U.S. flag ; 1/2 of it", "the u.s. flag 1/2 of it"),
        ("They're  here\n", "they 're here"),
        ("", ""),
    ],
)
def test_ptb_like(text: str, words: str) -> None:
    assert ptb_like(text) == words


def test_ptb_like_agrees_with_the_original_on_real_captions(data_dir: Path) -> None:
    raw = read_json(f"{data_dir}/coco/captions_val2014.json.gz", "raw")["annotations"]
    expected = {
        image: iter(captions)
        for image, captions in read_json(f"{data_dir}/coco/captions_val2014.ptb.json.gz", "ptb").items()
    }
    wrong = sum(ptb_like(entry["caption"]) != next(expected[str(entry["image_id"])]) for entry in raw)
    assert len(raw) == 202654
    assert 1 - wrong / len(raw) == pytest.approx(0.9992, abs=5e-5), "the share that the docstring states"


@pytest.mark.parametrize("name", ["none", "13a", "intl"])
def test_others_are_sacrebleus(name: str) -> None:
    text = 'He said: "Hello, world\u2019s end" -- $5.30 &amp; more.'
    assert tokenizer(name)(text) == BLEU(tokenize=name).tokenizer(text)  # type: ignore[arg-type]
    assert (tokenizer(name)(text) == text) == (name == "none")  # type: ignore[arg-type]
