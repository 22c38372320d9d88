from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.tasks import TASKS, map_tensors, pad_rows, select_rows, shift_right, task_class


class Pair(NamedTuple):
    first: Tensor
    second: tuple[Tensor, Tensor] | None


def test_rows_are_selected_in_every_nesting() -> None:
    numbers = torch.arange(3)
    state = Pair(numbers, (numbers[:, None] * 10, numbers))
    found = select_rows(state, torch.tensor([2, 0, 2]))
    assert isinstance(found, Pair)
    assert found.first.tolist() == [2, 0, 2]
    assert found.second[0].tolist() == [[20], [0], [20]]
    assert select_rows(Pair(numbers, None), torch.tensor([1])).second is None


def test_a_function_reaches_every_tensor() -> None:
    found = map_tensors(lambda tensor: tensor + 1, (torch.zeros(2), Pair(torch.ones(1), None)))
    assert found[0].tolist() == [1, 1]
    assert found[1].first.tolist() == [2]
    assert map_tensors(None, None) is None


def test_shift_and_pad() -> None:
    samples = torch.arange(4, 16).view(2, 2, 3)
    assert shift_right(samples).tolist() == [[[1, 4, 5], [1, 7, 8]], [[1, 10, 11], [1, 13, 14]]]
    assert samples[0, 0, 0] == 4, "the target itself must not change"
    assert pad_rows([[1], [2, 3]]).tolist() == [[1, 0], [2, 3]]
    assert pad_rows([]).shape == (0, 0)


def test_unknown_tasks_are_named() -> None:
    with pytest.raises(RecipeError, match=f"task must be one of {', '.join(TASKS)}, got 'poetry'"):
        task_class("poetry")
