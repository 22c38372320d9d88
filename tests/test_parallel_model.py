"""The model of many cards: its file and its page are what it says, and its bytes those that the op sends."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import in_threads

import smoothloss.functional as F
from benchmarks import parallel_model as model


def test_the_file_and_the_page_are_the_models() -> None:
    content = json.loads(model.RESULTS.read_text(encoding="utf-8"))
    assert content == json.loads(json.dumps(model.content())), "run python -m benchmarks.parallel_model"
    page = model.PAGE.read_text(encoding="utf-8")
    assert model.with_tables(page, content) == page


def test_its_statistics_are_what_the_op_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all collectives but that of the slices' sizes, for four ranks, forward and back."""
    rows, hidden, ranks, sent = 16, 8, 4, []
    gather, reduce = dist.all_gather, dist.all_reduce

    def gathered(parts: list[torch.Tensor], own: torch.Tensor, **how: Any) -> Any:
        sent.append(("gathered", sum(part.nbytes for part in parts)))
        return gather(parts, own, **how)

    def reduced(value: torch.Tensor, *how: Any, **more: Any) -> Any:
        sent.append(("reduced", value.nbytes))
        return reduce(value, *how, **more)

    monkeypatch.setattr(dist, "all_gather", gathered)
    monkeypatch.setattr(dist, "all_reduce", reduced)
    x, weight = torch.randn(rows, hidden), torch.randn(5, hidden)

    def work(rank: int, group: Any) -> None:
        F.linear_cross_entropy(x.clone().requires_grad_(), weight, torch.arange(rows), group=group).backward()

    in_threads(ranks, work)
    expected = [("gathered", 8 * ranks), ("gathered", model.STATISTICS_BYTES * ranks * rows)]
    assert sorted(sent) == sorted([*expected, ("reduced", rows * hidden * 4)] * ranks)


@pytest.mark.parametrize("way", model.WAYS)
def test_more_classes_take_more_time_and_more_cards_never_less(way: str) -> None:
    machine, shape = model.Machine(), model.Shape()
    times = [[float(model.row(way, cards, classes, 8192, machine, shape)["step_ms"]) for cards in model.CARDS]
             for classes in model.CLASSES]  # fmt: skip
    assert all(row == sorted(row) for row in times)
    assert all(list(column) == sorted(column) for column in zip(*times, strict=True))


def test_with_one_machine_both_is_vocabulary() -> None:
    one, other = (model.row(way, 8, 32_768, 2048, model.Machine(), model.Shape()) for way in ("vocabulary", "both"))
    assert {**one, "way": None} == {**other, "way": None}
    assert one["network_MB"] == 0
