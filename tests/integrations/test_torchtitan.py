"""torchtitan's hook: what its own tests check of split classes, in sizes that torch cuts unevenly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import in_threads
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from smoothloss.integrations.torchtitan import Loss, cross_entropy_loss


def _expected(logits: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(leaf.flatten(0, -2), labels.flatten(), reduction="sum", **options)
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("classes", [64, 67])
def test_the_sum_over_split_classes_is_that_of_one_process(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(32, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (32,), generator=generator).masked_fill(
        torch.rand(32, generator=generator) < 0.3, -100
    )
    loss, gradient = _expected(logits, labels, label_smoothing=0.1)

    def work(rank: int, group: Any) -> tuple[Tensor, Tensor, Tensor]:
        mesh = init_device_mesh("cpu", (4,), mesh_dim_names=("tp",))
        pred = distribute_tensor(logits, mesh, [Shard(1)], src_data_rank=None).requires_grad_()
        found = cross_entropy_loss(pred, labels, label_smoothing=0.1)
        found.backward()
        by_group = Loss.Config(options={"label_smoothing": 0.1}, group=lambda: group).build(compile_config=None)
        plain, metrics = by_group(pred.detach().to_local(), labels, torch.tensor(5.0), positions=None)
        assert metrics == {}
        assert pred.grad is not None
        return found.detach(), pred.grad.to_local(), plain

    losses, grads, plain = zip(*in_threads(4, work), strict=True)
    for own, divided in zip(losses, plain, strict=True):
        torch.testing.assert_close(own, loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(divided, loss / 5, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.cat(grads, -1), gradient, rtol=1e-12, atol=1e-14)


def test_without_a_mesh_it_is_a_loss_like_any() -> None:
    logits, labels = torch.randn(2, 3, 7), torch.tensor([[1, 2, -100], [6, 0, 3]])
    loss, metrics = Loss.Config().build()(logits, labels)
    torch.testing.assert_close(loss, _expected(logits, labels)[0])
    assert metrics == {}
    with pytest.raises(TypeError, match="reduction"):
        Loss.Config(options={"reduction": "mean"}).build()
