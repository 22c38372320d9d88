from __future__ import annotations

import numpy as np
import pytest
import torch

from smoothloss.distillation import fingerprint

WORDS = ["a", "b", "c"]
TEXT = [[1, 2], [0]]


def test_it_is_the_same_for_the_same() -> None:
    expected = fingerprint(WORDS, TEXT)
    assert expected == fingerprint(iter(WORDS), [torch.tensor([1, 2]), np.array([0], np.int32)])
    assert len(expected) == 65


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["a", "c", "b"], TEXT),
        (["ab", "c"], TEXT),
        (["a", "b", "c", ""], TEXT),
        ([b"a", "b", "c"], TEXT),
        (WORDS, [[1], [2, 0]]),
        (WORDS, [[1, 2, 0]]),
        (WORDS, [[0], [1, 2]]),
        (WORDS, [[1, 2], [0], []]),
        (WORDS, ["1 2", "0"]),
    ],
)
def test_it_differs_for_others(words: list[str], text: list[list[int]]) -> None:
    ours, theirs = fingerprint(WORDS, TEXT).split("-"), fingerprint(words, text).split("-")
    assert [one == other for one, other in zip(ours, theirs, strict=True)] == [words == WORDS, text == TEXT]


def test_only_text_and_integers() -> None:
    with pytest.raises(TypeError, match=r"^data: got list of float64, expected text, bytes or integers"):
        fingerprint(WORDS, [[0.5]])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"^vocabulary: got "):
        fingerprint([None], TEXT)  # type: ignore[list-item]
