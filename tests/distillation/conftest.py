"""Teachers at random, and caches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smoothloss.distillation import Teacher, TeacherCache

MakeTeacher = Callable[..., Teacher]
WriteCache = Callable[..., TeacherCache]


@pytest.fixture(scope="session")
def make_teacher() -> MakeTeacher:
    """Return the function that makes the teacher of a sequence, with empty slots in any place when it is ragged."""

    def make(
        seed: int, length: int, slots: int, classes: int, ragged: bool = True, draws: int | None = None
    ) -> Teacher:
        random = np.random.default_rng(seed)
        indices = random.integers(0, classes, (length, slots))
        if ragged:
            indices[random.random((length, slots)) < 0.3] = -1
        if draws is None:
            logits = torch.from_numpy(random.normal(0, 5, (length, slots + 1)))
            log_probs = logits.log_softmax(-1).float().clamp(min=-32)
            return Teacher(torch.from_numpy(indices), log_probs[:, :slots], log_probs[:, slots])
        counts = np.zeros((length, slots), np.int64)
        for row, index in zip(counts, indices, strict=True):
            occupied = np.flatnonzero(index >= 0)[:draws]
            index[np.setdiff1d(np.arange(slots), occupied)] = -1
            if len(occupied):
                row[occupied] = 1 + random.multinomial(draws - len(occupied), np.full(len(occupied), 1 / len(occupied)))
        log_probs = torch.from_numpy(counts).double().div(draws).log().float()
        return Teacher(torch.from_numpy(indices), log_probs, torch.full((length,), -torch.inf))

    return make


@pytest.fixture(scope="session")
def write_cache() -> WriteCache:
    """Return the function that writes teachers and opens the cache."""

    def write(path: Path, teachers: Iterable[Teacher], vocabulary_size: int, **options: Any) -> TeacherCache:
        with TeacherCache.write(path, vocabulary_size=vocabulary_size, fingerprint="text", **options) as writer:
            for teacher in teachers:
                writer.add(teacher)
        return TeacherCache(path)

    return write


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Teacher, Teacher], None]:
    """Return the function that asserts that a teacher came through a cache: ids as they were, values nearly."""

    def same(got: Teacher, expected: Teacher) -> None:
        slots = (expected.indices >= 0).sum(-1)
        assert torch.equal((got.indices >= 0).sum(-1), slots)
        occupied = got.indices >= 0
        assert torch.equal(occupied, torch.arange(got.indices.shape[-1]) < slots[..., None]), "empty slots come last"
        assert torch.equal(got.indices[occupied], expected.indices[expected.indices >= 0].long())
        assert (got.indices[~occupied] == -1).all()
        assert torch.isneginf(got.log_probs[~occupied]).all()
        _assert_close(got.log_probs[occupied], expected.log_probs[expected.indices >= 0])
        assert (got.log_rest is None) == (expected.log_rest is None)
        if got.log_rest is not None and expected.log_rest is not None:
            _assert_close(got.log_rest, expected.log_rest)

    return same


def _assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.dtype == torch.float32
    assert torch.equal(got.isneginf(), expected.isneginf())
    finite = ~got.isneginf()
    ratio = (got[finite].double() - expected[finite].double()).exp()
    assert ((ratio - 1).abs() <= 2.5e-4).all()
