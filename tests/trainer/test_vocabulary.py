from __future__ import annotations

from pathlib import Path

import pytest

from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.vocabulary import BOS, EOS, PAD, SPECIAL_WORDS, UNK, Vocabulary

SENTENCES = [["b", "a", "b"], ["c", "a", "b"], ["<pad>", "d"]]


def test_words_come_by_frequency_after_the_special_ones() -> None:
    vocabulary = Vocabulary.build(SENTENCES, min_count=2)
    assert vocabulary.words == [*SPECIAL_WORDS, "b", "a"]
    assert vocabulary.counts == [0, 0, 0, 2, 3, 2]
    assert (PAD, BOS, EOS, UNK) == (0, 1, 2, 3)


def test_the_most_frequent_words_alone() -> None:
    vocabulary = Vocabulary.build(SENTENCES, max_words=2)
    assert vocabulary.words == [*SPECIAL_WORDS, "b", "a"]
    assert vocabulary.counts == [0, 0, 0, 2, 3, 2]


def test_words_are_counted_again_in_other_text() -> None:
    vocabulary = Vocabulary.build(SENTENCES, min_count=2)
    assert vocabulary.recount(SENTENCES[:1]).words == vocabulary.words
    assert vocabulary.recount([["b", "a", "b"], ["x"]]).counts == [0, 0, 0, 1, 2, 1]
    assert vocabulary.counts == [0, 0, 0, 2, 3, 2]


def test_encode_and_decode() -> None:
    vocabulary = Vocabulary.build(SENTENCES)
    tokens = vocabulary.encode(["a", "nowhere", "c"])
    assert tokens[1] == UNK
    assert vocabulary.decode([BOS, *tokens, PAD, EOS, tokens[0]]) == ["a", "<unk>", "c"]


def test_it_survives_the_disk(tmp_path: Path) -> None:
    vocabulary = Vocabulary.build([["ü", "日本"], ["ü"]])
    vocabulary.save(tmp_path / "v.json")
    loaded = Vocabulary.load(tmp_path / "v.json")
    assert (loaded.words, loaded.counts) == (vocabulary.words, vocabulary.counts)


@pytest.mark.parametrize("content", ["[]", "{", '{"words": ["a"], "counts": [1]}', '{"words": 3, "counts": []}'])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "v.json").write_text(content)
    with pytest.raises(ValueError, match=r"v\.json|words"):
        Vocabulary.load(tmp_path / "v.json")


def test_repeated_words_and_wrong_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="repeat"):
        Vocabulary([*SPECIAL_WORDS, "a", "a"], [0] * 6)
    with pytest.raises(ValueError, match="counts"):
        Vocabulary([*SPECIAL_WORDS, "a"], [0])
    with pytest.raises(ValueError, match="words must be strings, got 7"):
        Vocabulary([*SPECIAL_WORDS, 7], [0] * 5)  # type: ignore[list-item]


def test_words_of_a_text_are_never_special() -> None:
    vocabulary = Vocabulary.build([["a", "<eos>", "<pad>", "b"]])
    assert vocabulary.encode(["a", "<eos>", "<pad>", "<bos>", "<unk>", "b"]) == [4, UNK, UNK, UNK, UNK, 5]


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "3",
        "{}",
        '{"words": "<pad>", "counts": []}',
        '{"words": [1, 2, 3, 4], "counts": [0, 0, 0, 0]}',
        '{"words": ["<pad>", "<bos>", "<eos>", "<unk>"], "counts": [0, 0, 0, null]}',
        '{"words": ["<pad>", "<bos>", "<eos>", "<unk>"], "counts": [0, 0, 0, -1]}',
        '{"words": ["<pad>", "<bos>", "<eos>", "<unk>", "a", "a"], "counts": [0, 0, 0, 0, 1, 1]}',
        '{"words": ["<pad>", "<bos>", "<eos>", "<unk>"], "counts": [0, 0, 0, 0], "bpe": 3}',
        r'{"words": ["<pad>", "<bos>", "<eos>", "<unk>", "\ud800"], "counts": [0, 0, 0, 0, 1]}',
    ],
)
def test_files_that_are_no_vocabulary_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "$HOME.json").write_text(content)
    with pytest.raises(RecipeError, match=r"\$HOME\.json") as caught:
        Vocabulary.load(tmp_path / "$HOME.json")
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(RecipeError, match=r"cannot read .*gone"):
        Vocabulary.load(tmp_path / "gone")
