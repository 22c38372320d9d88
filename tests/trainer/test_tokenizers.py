from __future__ import annotations

import pytest
from sacrebleu.metrics.bleu import BLEU

from smoothloss_trainer.tokenizers import ptb_like, tokenizer


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A dog's bed, isn't it?", "a dog 's bed is n't it"),
        ('The sign says "4:30" (or so)...', "the sign says 4:30 -lrb- or so -rrb-"),
        ("a two-door car -- cannot move!", "a two-door car can not move"),
        ("the U.S. flag ; 1/2 of it", "the u.s. flag 1/2 of it"),
        ("They're  here\n", "they 're here"),
        ("They’ve parked 2,500 cars,buses & bikes!", "they 've parked 2,500 cars buses & bikes"),
        ("Ein schöner Äpfelkuchen ?!", "ein schöner äpfelkuchen"),
        ("", ""),
    ],
)
def test_ptb_like(text: str, words: str) -> None:
    assert ptb_like(text) == words


@pytest.mark.parametrize("name", ["none", "13a", "intl"])
def test_others_are_sacrebleus(name: str) -> None:
    text = 'He said: "Hello, world\u2019s end" -- $5.30 &amp; more.'
    assert tokenizer(name)(text) == BLEU(tokenize=name).tokenizer(text)  # type: ignore[arg-type]
    assert (tokenizer(name)(text) == text) == (name == "none")  # type: ignore[arg-type]
