"""What DTensors say of hidden states: split along the sequence they are gathered, and their gradient is scattered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import in_threads
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

import smoothloss.functional as F
from smoothloss import distillation

CLASSES, SIZE, LENGTH, RANKS = 37, 5, 7, 3  # none of which is a multiple of another
Y = torch.randint(CLASSES, (2, LENGTH), generator=torch.Generator().manual_seed(0))
TEACHER = distillation.Teacher(torch.stack((Y, (Y + 5) % CLASSES), -1), torch.full((2, LENGTH, 2), 0.3).double().log())
CALLS: dict[str, Callable[..., Tensor]] = {
    "loss": lambda h, w, b: F.linear_cross_entropy(h, w, Y, linear_bias=b, label_smoothing=0.1),
    "statistics": lambda h, w, b: F.linear_token_statistics(h, w, Y.unsqueeze(-1), linear_bias=b).log_rest.sum(),
    "reverse KL": lambda h, w, b: distillation.linear_loss(h, w, TEACHER, linear_bias=b, divergence="reverse_kl"),
    "all classes": lambda h, w, b: distillation.linear_loss(
        h, w, TEACHER, linear_bias=b, divergence="jensen_shannon", missing="uniform"
    ),
}


def _layer() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (2, LENGTH, SIZE), (CLASSES, SIZE), (CLASSES,)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _split(tensor: Tensor, mesh: DeviceMesh, dim: int) -> DTensor:
    """Return what every rank has, split as torch splits: without `distribute_tensor`, which would send it."""
    own = tensor.chunk(RANKS, dim)[mesh.get_rank()].contiguous()
    return DTensor.from_local(own, mesh, [Shard(dim)], shape=tensor.shape, stride=tensor.stride())


@pytest.mark.parametrize("name", CALLS)
def test_a_split_sequence_is_gathered_and_its_gradient_scattered(name: str) -> None:
    whole = [tensor.requires_grad_() for tensor in _layer()]
    expected = CALLS[name](*whole)
    expected.backward()

    def work(rank: int, group: Any) -> tuple[Tensor, list[Tensor]]:
        mesh = init_device_mesh("cpu", (RANKS,))
        split = [_split(tensor, mesh, dim).requires_grad_() for tensor, dim in zip(_layer(), (1, 0, 0), strict=True)]
        loss = CALLS[name](*split)
        loss.backward()
        grads = [tensor.grad for tensor in split]
        assert [grad.placements for grad in grads] == [tensor.placements for tensor in split]
        return loss.detach(), [grad.to_local() for grad in grads]

    losses, grads = zip(*in_threads(RANKS, work), strict=True)
    for loss in losses:
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
    for tensor, pieces, dim in zip(whole, zip(*grads, strict=True), (1, 0, 0), strict=True):
        torch.testing.assert_close(torch.cat(pieces, dim), tensor.grad, rtol=1e-12, atol=1e-13)


def test_other_ways_of_splitting_hidden_states_are_refused_by_name() -> None:
    def work(rank: int, group: Any) -> list[str]:
        mesh = init_device_mesh("cpu", (RANKS,))
        hidden, weight, bias = _layer()
        rows, said = _split(weight, mesh, 0), []
        for dim, classes in ((2, rows), (1, weight)):
            given = _split(hidden, mesh, dim)
            with pytest.raises(ValueError, match="input: got a DTensor placed") as found:
                F.linear_cross_entropy(given, classes, Y)
            said.append(str(found.value))
        with pytest.raises(ValueError, match="linear_bias: got one that is a plain tensor"):
            F.linear_cross_entropy(hidden, rows, Y, linear_bias=bias)
        return said

    assert all("\n" not in text for said in in_threads(RANKS, work) for text in said)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_a_batch_of_nothing_is_one(reduction: str) -> None:
    """Of every loss, statistic and divergence, as where no process has classes of its own."""
    y, empty = Y[:0, 0], distillation.Teacher(TEACHER.indices[:0, 0], TEACHER.log_probs[:0, 0])
    calls: dict[str, Callable[..., Tensor]] = {
        "loss": lambda h, w, **how: F.linear_cross_entropy(h, w, y, reduction=reduction, **how),
        "of logits": lambda h, w, **how: F.cross_entropy(h @ w.t(), y, reduction=reduction, **how),
        "statistics": lambda h, w, **how: F.linear_token_statistics(h, w, empty.indices, **how).log_prob.sum(),
        "of logits, statistics": lambda h, w, **how: F.token_statistics(h @ w.t(), empty.indices, **how).entropy.sum(),
    }
    for divergence in ("forward_kl", "reverse_kl", "jensen_shannon"):
        how = {"divergence": divergence, "missing": "uniform", "reduction": reduction}
        calls[divergence] = lambda h, w, how=how, **more: distillation.linear_loss(h, w, empty, **how, **more)
    hidden, weight, _ = _layer()

    def work(rank: int, group: Any) -> dict[str, Tensor]:
        own, results = weight.chunk(RANKS)[rank].clone().requires_grad_(), {}
        for name, call in calls.items():
            results[name] = call(hidden[:0, 0], own, group=group)
            (grad,) = torch.autograd.grad(results[name], own)
            assert not grad.any()
        return results

    expected = {name: call(hidden[:0, 0], weight) for name, call in calls.items()}
    for results in in_threads(RANKS, work):
        torch.testing.assert_close(results, expected, equal_nan=True)


def test_a_divergence_sends_no_more_than_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("all_gather", "all_reduce"):
        real = getattr(dist, name)
        monkeypatch.setattr(dist, name, lambda *a, real=real, name=name, **more: calls.append(name) or real(*a, **more))
    hidden, weight, bias = _layer()

    def work(rank: int, group: Any) -> None:
        own = hidden.clone().requires_grad_()
        how = {"linear_bias": bias, "divergence": divergence, "missing": missing, "group": group}
        distillation.linear_loss(own, weight, teacher, **how).backward()

    teacher = TEACHER
    for divergence in ("forward_kl", "reverse_kl", "jensen_shannon"):
        for missing in ("bucket", "uniform", "renormalize", "drop"):
            calls.clear()
            in_threads(2, work)
            forward = 4 if (divergence, missing) == ("jensen_shannon", "uniform") else 2
            assert len(calls) == 2 * (forward + 1), (divergence, missing)
