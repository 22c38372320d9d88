from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smoothloss_trainer.config import Recipe
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.loop import train
from smoothloss_trainer.recipe import load_recipe
from smoothloss_trainer.run import RunDirectory
from smoothloss_trainer.tasks import task_class
from smoothloss_trainer.tasks.translation import TranslationTask

WORDS = ["red", "green", "blue", "dog", "cat", "bird", "runs", "sleeps", "sings", "here"]

Make = Callable[..., Recipe]


def test_batches_hold_the_corpus(make_recipe: Make) -> None:
    task = TranslationTask(make_recipe())
    assert task.test_splits == ["test"]
    batch = task.train_batch([0, 5])
    source, target = task.vocabularies["source"], task.vocabulary
    for row, number in enumerate([0, 5]):
        assert source.decode(batch.source[0][row].tolist()) == task.train.source[number]
        assert target.decode(batch.target[row].tolist()) == task.train.target[number]
        assert batch.lengths[row] == len(task.train.target[number])
    assert batch.inputs is not None
    references = task.training_references()
    assert len(references) == len(task.train)
    said = [[target.decode(tokens) for tokens in own] for own in references.select(batch.inputs).tolist()]
    assert said == [[task.train.target[0]], [task.train.target[5]]]


def test_generation_ids_and_scores_go_by_line(make_recipe: Make) -> None:
    task = TranslationTask(make_recipe())
    ids = [name for names, _ in task.sources("test", 7) for name in names]
    assert sorted(map(int, ids)) == list(range(30))
    right = {str(number): " ".join(words) for number, words in enumerate(task.splits["test"].target)}
    assert task.score("test", right)["bleu"] == pytest.approx(100.0)
    shifted = {str(number): right[str((number + 1) % 30)] for number in range(30)}
    assert float(task.score("test", shifted)["bleu"]) < 30


def test_validation_covers_every_word(make_recipe: Make) -> None:
    task = TranslationTask(make_recipe(decoding={"batch_size": 6}))
    words = sum(int(batch.lengths.sum()) for batch in task.validation_batches())
    assert words == sum(map(len, task.splits["validation"].target))


def test_an_empty_reference_is_refused(tmp_path: Path, corpus: Path, make_recipe: Make) -> None:
    for language in ("up", "low"):
        lines = (corpus / f"test.{language}").read_text().splitlines()
        lines[3] = "" if language == "low" else lines[3]
        (tmp_path / f"bare.{language}").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(
        RecipeError,
        match=r"data\.test\.bare: bare: 1 of 30 pairs cannot be used, the first is line 4: its target is empty",
    ):
        TranslationTask(make_recipe(data={"test": {"bare": f"{tmp_path}/bare"}}))


def test_given_vocabularies_are_kept(make_recipe: Make) -> None:
    first = TranslationTask(make_recipe())
    again = TranslationTask(make_recipe(data={"min_count": 1000}), first.vocabularies)
    assert again.vocabularies is first.vocabularies


def test_long_pairs_are_left_out_of_training(make_recipe: Make) -> None:
    recipe = make_recipe(data={"max_length": 3})
    task = TranslationTask(recipe)
    assert 0 < len(task.train) < 200
    assert max(map(len, task.train.target)) == 3
    with pytest.raises(RecipeError, match="no pair of sentences"):
        recipe.data.max_length = 0
        TranslationTask(recipe)


def test_an_unknown_split_is_named(make_recipe: Make) -> None:
    with pytest.raises(RecipeError, match="split must be one of validation, test, got 'tset'"):
        next(iter(TranslationTask(make_recipe()).sources("tset", 3)))


def test_a_joint_vocabulary_counts_each_side(make_recipe: Make) -> None:
    apart = TranslationTask(make_recipe()).vocabularies
    joint = TranslationTask(make_recipe(data={"joint_vocabulary": True})).vocabularies
    assert joint["source"].words == joint["target"].words
    assert set(joint["target"].words) == {*apart["source"].words, *apart["target"].words}
    for side in ("source", "target"):
        counts = dict(zip(joint[side].words, joint[side].counts, strict=True))
        assert {word: count for word, count in counts.items() if count} == {
            word: count for word, count in zip(apart[side].words, apart[side].counts, strict=True) if count
        }


def test_pieces_are_what_the_losses_see_and_words_what_is_scored(make_recipe: Make) -> None:
    pytest.importorskip("tokenizers")
    task = TranslationTask(make_recipe(data={"bpe": 30}))
    assert len(task.vocabulary) == 30
    for words, pieces in zip(task.train.target, task.target_sentences(), strict=True):
        assert [task.vocabulary.tokens[piece] for piece in pieces] == task.vocabulary.encode(words)
    batch = task.train_batch([0, 5])
    assert batch.inputs is not None
    assert batch.lengths[0] == len(task.vocabulary.encode(task.train.target[0])) > len(task.train.target[0])
    references = task.training_references().select(batch.inputs).tolist()
    said = [task.vocabulary.decode(tokens) for own in references for tokens in own]
    assert said == [task.train.target[0], task.train.target[5]]
    right = {each.name: each.references[0] for each in task.inputs("test")}
    assert set(" ".join(right.values()).split()) <= set(WORDS)
    assert task.score("test", right)["bleu"] == pytest.approx(100.0)


BPE: dict[str, Any] = {"bpe": 40, "joint_vocabulary": True, "batch_tokens": 64}


@pytest.mark.parametrize("sampler", ["hamming", "edit"])
def test_pieces_tied_weights_and_token_batches_train_resume_and_reopen(
    make_recipe: Make, tmp_path: Path, sampler: str
) -> None:
    pytest.importorskip("tokenizers")
    loss = {"name": "tok_seq", "alpha": 0.5, "token_alpha": 0.3, "beta": 0.05, "sampler": sampler, "num_samples": 2}
    loss |= {"embeddings": {"dim": 8, "epochs": 1}, "reward": {"name": "bleu"}}
    sections = {"data": BPE, "model": {"tie": "all"}, "loss": loss, "training": {"epochs": 1}}
    whole, broken = RunDirectory(tmp_path / "whole"), RunDirectory(tmp_path / "broken")
    scores = train(make_recipe(**sections), whole)
    train(make_recipe(**{**sections, "training": {"epochs": 1, "max_steps": 7}}), broken)
    assert train(make_recipe(**sections), broken, resume=True) == scores
    losses = [run.metrics()[-1]["validation_loss"] for run in (whole, broken)]
    assert losses[0] == losses[1]
    first, again = (TranslationTask(whole.recipe(), known) for known in (None, whole.vocabularies()))
    assert again.vocabulary.encode(["red", "wörld"]) == first.vocabulary.encode(["red", "wörld"])
    with pytest.raises(RecipeError, match=r"cannot resume .*: data\.batch_tokens is 64 there and 32 in the recipe"):
        train(make_recipe(**{**sections, "data": {**BPE, "batch_tokens": 32}}), broken, resume=True)


def test_token_batches_take_the_place_of_sentence_batches(make_recipe: Make) -> None:
    task = TranslationTask(make_recipe(data={"batch_tokens": 40}))
    plan = task.train_plan(0)
    assert sorted(number for batch in plan for number in batch) == list(range(200))
    sizes = [task.train_batch(batch).target.numel() for batch in plan]
    assert 30 < sum(sizes) / len(sizes) <= max(sizes) <= 40


def test_detokenised_bleu_reads_raw_text(make_recipe: Make, tmp_path: Path) -> None:
    pytest.importorskip("sacremoses")
    lines = ["a red dog runs , a cat sleeps here .", "the bird ( a blue one ) sings !"]
    (tmp_path / "t.up").write_text("".join(f"{line.upper()}\n" for line in lines))
    (tmp_path / "t.low").write_text("".join(f"{line}\n" for line in lines))
    (tmp_path / "raw").write_text("A red dog runs, a cat sleeps here.\nThe bird (a blue one) sings!\n")
    data = {"test": {"test": f"{tmp_path}/t"}, "raw": {"test": f"{tmp_path}/raw"}}
    right = {"0": lines[0].replace(" ,", ","), "1": lines[1]}
    scores = TranslationTask(make_recipe(data={**data, "lowercase": True})).score("test", right)
    assert scores["bleu_detokenized"] == pytest.approx(100.0)
    assert "case:lc" in str(scores["bleu_detokenized_signature"])
    assert float(scores["bleu"]) < 99
    task = TranslationTask(make_recipe(data=data))
    assert float(task.score("test", right)["bleu_detokenized"]) < 90, "capitals count"
    validation = {each.name: "a" for each in task.inputs("validation")}
    assert "bleu_detokenized" not in task.score("validation", validation)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"tie": "all"}}, r"model\.tie all needs .*: data\.joint_vocabulary true"),
        ({"model": {"layers": 0}}, r"model\.layers must be a whole number from 1 to 64, got 0"),
        ({"data": {"batch_tokens": -1}}, r"data\.batch_tokens must be a whole number from 0 to .*, got -1"),
        ({"data": {"bpe": 4}}, r"data\.bpe must be 0 or more than the 4 special tokens, got 4"),
        ({"data": {"bpe": 30, "max_words": 3}}, r"data\.max_words"),
    ],
)
def test_settings_that_make_no_sense_are_named(make_recipe: Make, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        TranslationTask(make_recipe(**sections))


def test_rare_words_go_by_number(make_recipe: Make) -> None:
    assert len(TranslationTask(make_recipe(data={"max_words": 3})).vocabulary) == 7


def test_multi30k(data_dir: Path) -> None:
    recipe = load_recipe("multi30k/tok_seq_lazy")
    task = task_class(recipe.task)(recipe)
    assert isinstance(task, TranslationTask)
    assert (len(task.train), len(task.splits["validation"]), len(task.splits["test"])) == (29000, 1014, 1000)
    assert (len(task.vocabularies["source"]), len(task.vocabulary)) == (7859, 5921)


def test_multi30k_in_pieces(data_dir: Path) -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("sacremoses")
    recipe = load_recipe("multi30k/bpe")
    task = TranslationTask(recipe)
    assert (len(task.vocabularies["source"]), len(task.vocabulary)) == (8000, 8000)
    assert max(task.train_batch(batch).target.numel() for batch in task.train_plan(0)[:50]) <= 1024
    right = {each.name: each.references[0] for each in task.inputs("test")}
    # What normalisation changed is all that is lost.
    assert 99 < float(task.score("test", right)["bleu_detokenized"]) < 100


@pytest.mark.slow
def test_tatoeba(data_dir: Path) -> None:
    pytest.importorskip("sacremoses")
    task = TranslationTask(load_recipe("tatoeba/mle"))
    assert {name: len(text) for name, text in task.splits.items()} == {"validation": 2000, "test": 4000}
    sources = [{" ".join(words) for words in text.source} for text in (task.train, *task.splits.values())]
    assert len(task.train) > 150_000
    # Spaces and such that words do not show may be all that tells two sentences apart.
    assert len(sources[0] & (sources[1] | sources[2])) < 20
    right = {each.name: each.references[0] for each in task.inputs("test")}
    assert float(task.score("test", right)["bleu_detokenized"]) > 99


def test_a_fingerprint_is_of_the_examples_and_not_of_their_files(
    tmp_path: Path, corpus: Path, make_recipe: Make
) -> None:
    def fingerprints(**data: Any) -> dict[str, str]:
        task = TranslationTask(make_recipe(data=data))
        return {part: task.fingerprint(part) for part in ("train", "validation", "test", "vocabulary.target")}

    first = fingerprints()
    assert len(set(first.values())) == 4
    for file in corpus.iterdir():
        (tmp_path / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    moved = {"train": f"{tmp_path}/train", "validation": f"{tmp_path}/val", "test": {"test": f"{tmp_path}/test"}}
    assert fingerprints(**moved) == first
    for side in ("up", "low"):
        lines = (corpus / f"test.{side}").read_text().splitlines(keepends=True)
        (tmp_path / f"test.{side}").write_text("".join(lines[1:] + lines[:1]))
    found = fingerprints(**moved)
    assert [part for part in first if found[part] != first[part]] == ["test"], "in another order"


def test_a_training_that_tests_nothing_keeps_no_held_out_part(tmp_path: Path, make_recipe: Make) -> None:
    lines = [f"der satz {number}\tthe sentence {number}\tsource\n" for number in range(60)]
    (tmp_path / "pairs.txt").write_text("".join(lines))
    data = {"train": f"{tmp_path}/pairs.txt", "format": "tsv", "source": "de", "target": "en"}
    data |= {"validation": None, "test": {}, "held_out": {"validation": 7, "test": 11}}
    whole, blind = (TranslationTask(make_recipe(data=data, training={"test": test})) for test in (True, False))
    assert (whole.test_splits, blind.test_splits) == (["test"], [])
    assert len(whole.train) == len(blind.train) == 42  # what is held out is not trained on either way
    assert [each.source for each in blind.inputs("validation")] == [each.source for each in whole.inputs("validation")]
    assert blind.vocabulary.words == whole.vocabulary.words
    with pytest.raises(RecipeError, match="test"):
        blind.inputs("test")
