from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from smoothloss.trainer.config import RecipeError
from smoothloss.trainer.tasks.translation.data import (
    TranslationData,
    bucketed_plan,
    by_length,
    make_batch,
    read_lines,
    read_parallel,
)
from smoothloss.trainer.vocabulary import BOS, EOS, PAD


def settings(folder: Path) -> TranslationData:
    return TranslationData(train=f"{folder}/train", validation=f"{folder}/val", source="de", target="en")


def test_plain_and_gzipped_files_are_read_line_by_line(tmp_path: Path) -> None:
    # A line separator other than the line feed is part of a line, an empty line is an empty sentence.
    text = "ein\u2028hund .\n\nzwei  katzen\n"
    (tmp_path / "a.de").write_text(text, encoding="utf-8", newline="\n")
    (tmp_path / "b.de.gz").write_bytes(gzip.compress(text.encode()))
    expected = [["ein", "hund", "."], [], ["zwei", "katzen"]]
    assert read_lines(f"{tmp_path}/a", "de", "key") == expected
    assert read_lines(f"{tmp_path}/b", "de", "key") == expected


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.train: no such file: .*train\.de"):
        read_parallel(f"{tmp_path}/train", settings(tmp_path), "data.train")
    (tmp_path / "train.de").write_text("a\nb\n")
    (tmp_path / "train.en").write_text("a\n")
    with pytest.raises(RecipeError, match=r"data\.train: train has 2 lines of de and 1 of en"):
        read_parallel(f"{tmp_path}/train", settings(tmp_path), "data.train")
    (tmp_path / "train.en").write_bytes(b"\xff\xfe\n")
    with pytest.raises(RecipeError, match=r"cannot read .*train\.en"):
        read_parallel(f"{tmp_path}/train", settings(tmp_path), "data.train")
    (tmp_path / "x.de.gz").write_bytes(b"nonsense")
    with pytest.raises(RecipeError, match=r"cannot read .*x\.de\.gz"):
        read_lines(f"{tmp_path}/x", "de", "key")


def test_a_plan_covers_every_example_once_and_depends_on_seed_and_epoch_alone() -> None:
    lengths = [(number % 17 + 1, number % 5) for number in range(1000)]
    plan = bucketed_plan(lengths, 8, seed=1, epoch=0)
    assert sorted(number for batch in plan for number in batch) == list(range(1000))
    assert max(map(len, plan)) == 8
    assert plan == bucketed_plan(lengths, 8, seed=1, epoch=0)
    assert plan != bucketed_plan(lengths, 8, seed=1, epoch=1) != bucketed_plan(lengths, 8, seed=2, epoch=1)


def test_batches_hold_sentences_of_about_one_length_in_no_order() -> None:
    lengths = [(number % 17 + 1, number % 5) for number in range(1000)]
    plan = bucketed_plan(lengths, 8, seed=1, epoch=0)
    spread = [max(lengths[n][0] for n in batch) - min(lengths[n][0] for n in batch) for batch in plan]
    assert sum(spread) / len(spread) < 1.5
    longest = [max(lengths[n][0] for n in batch) for batch in plan]
    assert longest != sorted(longest)


def test_a_batch_ends_with_eos_and_starts_with_bos() -> None:
    batch = make_batch([[5, 6], [7]], [[8], [9, 10, 11]])
    assert batch.source[0].tolist() == [[5, 6, EOS], [7, EOS, PAD]]
    assert batch.source[1].tolist() == [3, 2]
    assert batch.target.tolist() == [[8, EOS, PAD, PAD], [9, 10, 11, EOS]]
    assert batch.lengths.tolist() == [1, 3]
    assert batch.decoder_inputs.tolist() == [[BOS, 8, EOS, PAD], [BOS, 9, 10, 11]]
    assert batch.to(torch.device("meta")).source[0].device.type == "meta"


def test_the_longest_sentences_come_first() -> None:
    sentences = [[1], [1, 2, 3], [1, 2]]
    assert list(by_length(sentences, 2)) == [[1, 2], [0]]
