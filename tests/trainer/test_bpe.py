from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

pytest.importorskip("tokenizers")

from smoothloss_trainer.bpe import Bpe
from smoothloss_trainer.errors import RunError
from smoothloss_trainer.tasks.translation.corpus import read_part
from smoothloss_trainer.tasks.translation.data import TranslationData
from smoothloss_trainer.vocabulary import BOS, EOS, PAD, SPECIAL_WORDS, UNK, Vocabulary


def made_up(seed: int = 0) -> list[list[str]]:
    draw = random.Random(seed)
    parts = ["ab", "ba", "cd", "é", "日本", "-", "'", "x"]
    return [["".join(draw.choices(parts, k=draw.randint(1, 5))) for _ in range(draw.randint(1, 9))] for _ in range(300)]


def test_merges_by_hand() -> None:
    # Pairs: (▁l, o) 7 after (▁, l) 7, then (▁lo, w) 5: the most frequent first.
    text = [["low"] * 5, ["lot"] * 2, ["t"]]
    bpe = Bpe.learn(text, 1 + 5 + 3)
    assert bpe.pieces == ["<unk>", "l", "o", "t", "w", "▁", "lo", "▁lo", "▁low"]
    assert bpe.segment(["low", "lot", "wolt"]) == ["▁low", "▁lo", "t", "▁", "w", "o", "l", "t"]


@pytest.mark.parametrize("size", [5, 40, 200])
def test_words_come_back(size: int) -> None:
    vocabulary = Vocabulary.learn_bpe(made_up(), size)
    pieces = 0
    for words in made_up(1):
        tokens = vocabulary.encode(words)
        assert UNK not in tokens
        assert vocabulary.decode([BOS, *tokens, EOS, PAD]) == words
        pieces += len(tokens)
    characters = sum(len(word) + 1 for words in made_up(1) for word in words)
    assert pieces == characters if size == 5 else pieces < characters


def test_the_vocabulary_has_the_size_asked_for_and_counts_its_pieces() -> None:
    text = made_up()
    vocabulary = Vocabulary.learn_bpe(text, 60)
    assert len(vocabulary) == 60
    assert tuple(vocabulary.words[:4]) == SPECIAL_WORDS
    segmented = [piece for words in text for piece in vocabulary.segment(words)]
    assert vocabulary.counts == [segmented.count(word) for word in vocabulary.words]
    assert Vocabulary.learn_bpe(text, 60).words == vocabulary.words


def test_a_size_without_place_for_a_piece_is_refused() -> None:
    with pytest.raises(ValueError, match="size must be more than the 4 special tokens, got 4"):
        Vocabulary.learn_bpe(made_up(), 4)


def test_rare_and_unseen_characters_are_unknown_and_words_stay_apart() -> None:
    vocabulary = Vocabulary.learn_bpe([["aa", "ab", "z"], ["ab"]], 20, min_count=2)
    assert vocabulary.counts[UNK] == 1
    tokens = vocabulary.encode(["a", "ü", "bz", "ab"])
    assert tokens.count(UNK) == 2
    assert vocabulary.decode(tokens) == ["a", "<unk>", "b<unk>", "ab"]


def test_text_that_looks_like_the_vocabulary_is_text() -> None:
    vocabulary = Vocabulary.learn_bpe([["<eos>", "<pad>", "<unk>"] * 3], 200)
    tokens = vocabulary.encode(["<pad>", "<eos>", "a▁"])
    assert not {PAD, BOS, EOS} & set(tokens)
    assert vocabulary.decode(tokens[: len(vocabulary.encode(["<pad>", "<eos>"]))]) == ["<pad>", "<eos>"]
    assert Bpe.learn([["a_b"]], 30).segment(["a▁b"]) == Bpe.learn([["a_b"]], 30).segment(["a_b"])


def test_it_survives_the_disk(tmp_path: Path) -> None:
    vocabulary = Vocabulary.learn_bpe(made_up(), 80)
    vocabulary.save(tmp_path / "v.json")
    loaded = Vocabulary.load(tmp_path / "v.json")
    assert (loaded.words, loaded.counts) == (vocabulary.words, vocabulary.counts)
    unseen = [*made_up(2), ["new", "wörds"]]
    assert [loaded.encode(words) for words in unseen] == [vocabulary.encode(words) for words in unseen]


@pytest.mark.parametrize("model", ["3", '"{}"', '"nonsense"'])
def test_a_damaged_model_is_refused(tmp_path: Path, model: str) -> None:
    (tmp_path / "v.json").write_text(
        f'{{"words": ["<pad>", "<bos>", "<eos>", "<unk>"], "counts": [0], "bpe": {model}}}'
    )
    with pytest.raises(ValueError, match="BPE model is damaged"):
        Vocabulary.load(tmp_path / "v.json")


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        RunError, match=r"data\.bpe needs the package tokenizers: pip install 'smoothloss\[translate\]'"
    ):
        Vocabulary.learn_bpe(made_up(), 80)


def test_multi30k_comes_back(data_dir: Path) -> None:
    data = TranslationData(train="", source="de", target="en")

    def read(part: str) -> list[list[str]]:
        pairs = read_part(f"{data_dir}/multi30k/{part}.lc.norm.tok", data, "data.train").pairs
        return [line.split() for pair in pairs for line in pair]

    vocabulary = Vocabulary.learn_bpe(read("train"), 4000)
    assert len(vocabulary) == 4000
    lines = read("test_2016_flickr")
    tokens = [vocabulary.encode(words) for words in lines]
    known = [number for number, line in enumerate(tokens) if UNK not in line]
    assert len(known) > 1990
    assert all(vocabulary.decode(tokens[number]) == lines[number] for number in known)
    assert sum(map(len, tokens)) < 1.3 * sum(map(len, lines))
