"""A cached teacher in the batches of a collator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from smoothloss.distillation import Teacher, TeacherCache
from smoothloss.integrations.teacher import TeacherCollator

V, LENGTHS = 11, (4, 2, 3)


def padded(rows: list[dict[str, Any]], left: bool = False) -> dict[str, torch.Tensor]:
    """Return a batch with as many positions as the longest example has."""
    assert all(set(row) == {"input_ids"} for row in rows)
    width = max(len(row["input_ids"]) for row in rows)
    tokens, mask = torch.zeros(len(rows), width, dtype=torch.int64), torch.zeros(len(rows), width, dtype=torch.int64)
    for number, row in enumerate(rows):
        place = slice(width - len(row["input_ids"]), None) if left else slice(len(row["input_ids"]))
        tokens[number, place], mask[number, place] = row["input_ids"], 1
    return {"input_ids": tokens, "attention_mask": mask, "labels": tokens.where(mask == 1, -100)}


@pytest.fixture(params=[True, False], ids=["with what is left", "without"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> TeacherCache:
    """Return a cache of three sequences."""
    generator = torch.Generator().manual_seed(0)
    options = {"vocabulary_size": V, "fingerprint": "test", "log_rest": request.param}
    with TeacherCache.write(tmp_path / "cache", **options) as writer:
        for length in LENGTHS:
            teacher = Teacher.from_logits(torch.randn(length, V, generator=generator), 3)
            writer.add(teacher if request.param else Teacher(teacher.indices, teacher.log_probs))
    return TeacherCache(tmp_path / "cache")


def rows(*numbers: int, column: str = "teacher") -> list[dict[str, Any]]:
    """Return examples as a data set has them."""
    return [{"input_ids": torch.arange(1, LENGTHS[number] + 1), column: number} for number in numbers]


def test_each_sequence_has_its_own_teacher(cache: TeacherCache) -> None:
    examples = rows(2, 0, 1)
    batch = TeacherCollator(padded, cache)(examples)
    assert [example["teacher"] for example in examples] == [2, 0, 1]  # what it was given is left as it was
    for place, number in enumerate((2, 0, 1)):
        own, length = cache[number], LENGTHS[number]
        assert torch.equal(batch["teacher_indices"][place, :length], own.indices)
        assert torch.equal(batch["teacher_log_probs"][place, :length], own.log_probs)
        assert (batch["teacher_indices"][place, length:] == -1).all()
        if own.log_rest is not None:
            assert torch.equal(batch["teacher_log_rest"][place, :length], own.log_rest)
    assert ("teacher_log_rest" in batch) == (cache[0].log_rest is not None)
    assert batch["teacher_indices"].shape == (3, *batch["labels"].shape[1:], 3)


def test_a_batch_of_short_sequences_is_as_wide_as_its_labels(cache: TeacherCache) -> None:
    def wide(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {name: torch.nn.functional.pad(value, (0, 3)) for name, value in padded(examples).items()}

    assert TeacherCollator(wide, cache)(rows(1, 2))["teacher_indices"].shape == (2, 6, 3)


def test_another_column(cache: TeacherCache) -> None:
    batch = TeacherCollator(padded, cache, column="row")(rows(1, column="row"))
    assert torch.equal(batch["teacher_indices"][0], cache[1].indices)


def test_what_does_not_fit(cache: TeacherCache) -> None:
    collate = TeacherCollator(padded, cache)
    with pytest.raises(KeyError, match="teacher"):
        collate([{"input_ids": torch.arange(3)}])
    with pytest.raises(IndexError, match="numbers: got 3, expected the number of one of 3 sequences"):
        collate([{"input_ids": torch.arange(3), "teacher": 3}])
    with pytest.raises(ValueError, match="pad: got T = 2, expected at least 4"):
        collate([{"input_ids": torch.arange(2), "teacher": 0}])
    with pytest.raises(ValueError, match="padded at the left, expected the right"):
        TeacherCollator(lambda examples: padded(examples, left=True), cache)(rows(0, 1))
