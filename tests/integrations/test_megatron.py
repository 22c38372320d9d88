"""Megatron-Core's hooks: what its own tests check of split classes, with the classes of all ranks taken for one row."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks import in_threads
from torch import Tensor

import smoothloss.functional as F
from smoothloss.integrations.megatron import label_smoothing_of, language_model_loss, vocab_parallel_cross_entropy


def _nemo(logits: Tensor, target: Tensor, alpha: float) -> Tensor:
    """Return what NeMo defines: `alpha` of the mass on all classes but the true one."""
    classes = logits.shape[-1]
    wanted = torch.full_like(logits, alpha / (classes - 1)).scatter_(-1, target.unsqueeze(-1), 1 - alpha)
    return -(wanted * logits.log_softmax(-1)).sum(-1)


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("alpha", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_loss_and_gradient_are_those_of_all_classes(ranks: int, alpha: float, scale: float) -> None:
    """Large logits too, whose probabilities are nothing in any dtype; the row of a gradient adds up to nothing."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 2, 48, generator=generator, dtype=torch.float64) * scale
    target = torch.randint(48, (6, 2), generator=generator)
    upstream = torch.rand(6, 2, generator=generator, dtype=torch.float64)
    whole = logits.clone().requires_grad_()
    expected = _nemo(whole, target, alpha)
    expected.backward(upstream)

    def work(rank: int, group: Any) -> tuple[Tensor, Tensor]:
        own = logits.chunk(ranks, -1)[rank].clone().requires_grad_()
        loss = vocab_parallel_cross_entropy(own, target, alpha, tp_group=group)
        loss.backward(upstream)
        assert own.grad is not None
        return loss.detach(), own.grad

    losses, grads = zip(*in_threads(ranks, work), strict=True)
    for loss in losses:
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=1e-12)
    gradient = torch.cat(grads, -1)
    torch.testing.assert_close(gradient, whole.grad, rtol=1e-12, atol=1e-12)
    assert gradient.sum(-1).abs().max() < 1e-12


def test_nemos_smoothing_is_torchs_times_v_by_v_minus_one() -> None:
    assert label_smoothing_of(0.3, 4) == pytest.approx(0.4, rel=1e-15)
    assert label_smoothing_of(0.9, 10) == 1.0, "nothing is left for the true class but its share"
    with pytest.raises(ValueError, match=r"alpha: got 0\.95, expected"):
        label_smoothing_of(0.95, 10)
    with pytest.raises(ValueError, match="num_classes: got 1, expected"):
        label_smoothing_of(0.1, 1)


def test_the_models_loss_has_its_shapes_its_group_and_any_option() -> None:
    labels, logits = torch.tensor([[0, 1, 2], [2, 1, -100]]), torch.randn(3, 2, 8, dtype=torch.float64)

    def work(rank: int, group: Any) -> Tensor:
        model = SimpleNamespace(tp_group=group)
        language_model_loss(model, label_smoothing=0.1, z_loss=0.01)
        return model.compute_language_model_loss(labels=labels, logits=logits.chunk(2, -1)[rank])

    expected = F.cross_entropy(logits.transpose(0, 1), labels, label_smoothing=0.1, z_loss=0.01, reduction="none")
    for loss in in_threads(2, work):
        assert loss.is_contiguous()
        torch.testing.assert_close(loss, expected)
    with pytest.raises(TypeError, match="reduction"):
        language_model_loss(SimpleNamespace(tp_group=None), reduction="sum")
