from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path

import pytest
import torch

from smoothloss.similarity import SimilarityTable
from smoothloss_trainer import table as module
from smoothloss_trainer.cli import main
from smoothloss_trainer.config import EmbeddingsConfig, LossConfig
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.table import build_table, describe_words, word_vectors
from smoothloss_trainer.vocabulary import SPECIAL_TOKENS, SPECIAL_WORDS, Vocabulary

SENTENCES = [["a", "dog", "runs"], ["a", "cat", "runs"], ["the", "dog", "sleeps"], ["the", "cat", "sleeps"]] * 5


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary.build(SENTENCES)


def test_glove_is_trained_once_per_text_and_setting(
    vocabulary: Vocabulary, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EmbeddingsConfig(dim=4, window=2, epochs=2)
    first = word_vectors(settings, vocabulary, SENTENCES, seed=1)
    assert first.shape == (len(vocabulary), 4)
    assert not first[: len(SPECIAL_TOKENS)].any()
    assert len(list(own_cache.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.setattr(module, "train_glove", None)  # another training would fail
        assert torch.equal(word_vectors(settings, vocabulary, SENTENCES, seed=1), first)
    word_vectors(settings, vocabulary, SENTENCES, seed=2)
    word_vectors(settings, vocabulary, SENTENCES[1:], seed=1)
    word_vectors(EmbeddingsConfig(dim=4, window=3, epochs=2), vocabulary, SENTENCES, seed=1)
    assert len(list(own_cache.iterdir())) == 4


def test_a_cache_that_cannot_be_used_stops_nobody(
    vocabulary: Vocabulary, own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = EmbeddingsConfig(dim=4, window=2, epochs=2)
    first = word_vectors(settings, vocabulary, SENTENCES, seed=1)
    [cached] = own_cache.iterdir()
    cached.write_bytes(cached.read_bytes()[:-9])
    assert torch.equal(word_vectors(settings, vocabulary, SENTENCES, seed=1), first), "trained again"
    blocked = own_cache / "file"
    blocked.touch()
    monkeypatch.setenv("SMOOTHLOSS_CACHE", str(blocked / "cache"))
    assert torch.equal(word_vectors(settings, vocabulary, SENTENCES, seed=1), first)
    assert f"the vectors are not kept for other runs: {blocked / 'cache'}: Not a directory" in caplog.text


def test_vectors_from_disk(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text("dog 1 0\ncat 0.9 0.1\nhorse 0 1\n")
    config = LossConfig(name="tok", neighbours=50, token_tau=0.2, embeddings=EmbeddingsConfig(path=str(path)))
    table = build_table(config, vocabulary, [], seed=0)
    assert table.num_tokens == table.num_neighbours == len(vocabulary)
    assert set(table.row(vocabulary.tokens["dog"])[0].tolist()) == {vocabulary.tokens["dog"], vocabulary.tokens["cat"]}
    assert table.row(vocabulary.tokens["runs"])[0].tolist() == [vocabulary.tokens["runs"]]


@pytest.mark.parametrize("content", [None, "horse 1 0\n", "dog x\n", ""])
def test_vectors_that_cannot_be_used_are_named(tmp_path: Path, vocabulary: Vocabulary, content: str | None) -> None:
    path = tmp_path / "vectors.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RecipeError, match=r"loss\.embeddings\.path: .*vectors\.txt"):
        word_vectors(EmbeddingsConfig(path=str(path)), vocabulary, [], seed=0)


BUILD = ["table", "build", "vectors.txt", "--vocabulary", "v.json", "--out", "t.safetensors"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({2: "nope.txt"}, "VECTORS: no such file: nope.txt"),
        ({2: "."}, "VECTORS: . is a folder, expected a file"),
        ({2: "other.txt"}, "VECTORS: other.txt has a vector for no word of the target vocabulary"),
        ({2: "broken.txt"}, "VECTORS: broken.txt: line 1: got 'dog x', expected a token and its numbers"),
        ({2: "header.txt"}, "VECTORS: header.txt: the header says 400000 words, the file has 2: is it cut off?"),
        ({2: "g.zip:nope"}, "VECTORS: g.zip:nope: there is no 'nope' in it, but a.txt, b.txt"),
        ({2: "g.zip"}, "VECTORS: g.zip: the archive holds 2 files"),
        ({4: "nope.json"}, "--vocabulary: no such file: nope.json"),
        ({4: "vectors.txt"}, "--vocabulary: cannot read vectors.txt"),
        ({4: "list.json"}, "--vocabulary: list.json is not a vocabulary"),
        ({4: "half.json"}, "--vocabulary: cannot read half.json: words[4] has half a character"),
    ],
)
def test_the_command_names_its_arguments(
    tmp_path: Path,
    vocabulary: Vocabulary,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[int, str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    vocabulary.save("v.json")
    texts = {"vectors": "dog 1 0\ncat 0.9 0.1\n", "other": "horse 1 0\n", "broken": "dog x\n"}
    texts["header"] = f"400000 2\n{texts['vectors']}"
    for name, text in texts.items():
        Path(f"{name}.txt").write_text(text)
    Path("list.json").write_text("[1]")
    words = [*SPECIAL_WORDS, "\ud83d"]
    Path("half.json").write_text(json.dumps({"words": words, "counts": [0] * 5}))
    with zipfile.ZipFile("g.zip", "w") as archive:
        for name in ("a.txt", "b.txt"):
            archive.writestr(name, texts["vectors"])
    assert main([*BUILD]) == 0
    assert main([*BUILD[:2], "g.zip:b.txt", *BUILD[3:]]) == 0
    Path("t.safetensors").unlink()
    capsys.readouterr()
    arguments = {**dict(enumerate(BUILD)), **changes}
    assert main([arguments[number] for number in sorted(arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1 and "loss." not in error
    assert not Path("t.safetensors").exists()


def test_words_of_other_frequency_are_promoted() -> None:
    sentences = [*SENTENCES, *[["the", "dog", "runs"]] * 40]
    vocabulary = Vocabulary.build(sentences)

    def cat_for_dog(beta: float) -> float:
        embeddings = EmbeddingsConfig(dim=4, window=2, epochs=2)
        config = LossConfig(name="tok", beta=beta, token_tau=0.3, neighbours=9, embeddings=embeddings)
        row = build_table(config, vocabulary, sentences, seed=1).dense()[vocabulary.tokens["dog"]]
        return float(row[vocabulary.tokens["cat"]] / row[vocabulary.tokens["dog"]])

    # The penalty is beta at the word itself and beta times the ratio of the counts, 10 to 50, at the other.
    assert cat_for_dog(0.3) / cat_for_dog(0.0) == pytest.approx(math.exp(0.3 * (1 - 10 / 50) / 0.3), rel=1e-5)


def test_words_are_described(tmp_path: Path, vocabulary: Vocabulary) -> None:
    embeddings = EmbeddingsConfig(dim=4, window=2, epochs=2)
    table = build_table(LossConfig(name="tok", embeddings=embeddings), vocabulary, SENTENCES, seed=1)
    table.save(tmp_path / "t.safetensors")
    vocabulary.save(tmp_path / "v.json")
    text = describe_words(str(tmp_path / "t.safetensors"), str(tmp_path / "v.json"), ["dog", "cat"], 2)
    assert text.splitlines()[0].startswith("dog (seen 10 times)")
    assert text.splitlines()[1].split()[-1] == "dog"
    assert len(text.splitlines()) == 7
    with pytest.raises(RecipeError, match="not in the vocabulary: horse"):
        describe_words(str(tmp_path / "t.safetensors"), str(tmp_path / "v.json"), ["horse"], 2)


def test_a_table_of_another_vocabulary_is_refused(tmp_path: Path, vocabulary: Vocabulary) -> None:
    table = SimilarityTable.from_embeddings(torch.randn(3, 2), k=2, tau=0.5)
    table.save(tmp_path / "t.safetensors")
    vocabulary.save(tmp_path / "v.json")
    with pytest.raises(RecipeError, match=f"{len(vocabulary)}"):
        describe_words(str(tmp_path / "t.safetensors"), str(tmp_path / "v.json"), ["dog"], 2)
