from __future__ import annotations

import torch

from smoothloss_trainer.tasks.translation.data import bucketed_plan, by_length, make_batch
from smoothloss_trainer.vocabulary import BOS, EOS, PAD


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


def test_token_batches_hold_at_most_so_many_target_positions() -> None:
    lengths = [(number % 17 + 1, number % 5) for number in range(1000)]
    plan = bucketed_plan(lengths, 8, seed=1, epoch=0, batch_tokens=64)
    assert sorted(number for batch in plan for number in batch) == list(range(1000))
    positions = [len(batch) * (max(lengths[n][0] for n in batch) + 1) for batch in plan]
    assert max(positions) <= 64
    assert sum(positions) / len(positions) > 55, "batches are full"
    assert sum(positions) < 1.1 * sum(target + 1 for target, _ in lengths), "of sentences of about one length"
    assert plan == bucketed_plan(lengths, 99, seed=1, epoch=0, batch_tokens=64)
    assert plan != bucketed_plan(lengths, 8, seed=1, epoch=1, batch_tokens=64)


def test_a_sentence_longer_than_a_token_batch_is_one_of_its_own() -> None:
    lengths = [(9, 1), (1, 1), (1, 1), (20, 1)]
    plan = bucketed_plan(lengths, 8, seed=1, epoch=0, batch_tokens=4)
    assert sorted(map(sorted, plan)) == [[0], [1, 2], [3]]
    assert bucketed_plan([], 8, seed=1, epoch=0, batch_tokens=4) == []


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
