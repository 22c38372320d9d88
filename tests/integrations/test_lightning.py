"""PyTorch Lightning's real Trainer: the losses as modules, and a model of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from integrations.tiny_models import V, batch, examples, make

import smoothloss.nn
from smoothloss.integrations.lightning import ModelLoss
from smoothloss.integrations.transformers import without_logits

lightning = pytest.importorskip("lightning", reason="lightning is not installed")


def trainer(folder: Path, **more: Any) -> Any:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return lightning.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, default_root_dir=folder, log_every_n_steps=1, **quiet, **more
    )


def loader(size: int = 4) -> Any:
    return torch.utils.data.DataLoader(examples(), batch_size=size)


@pytest.mark.parametrize("kind", ["llama", "t5, tied"])
def test_a_model_of_transformers(kind: str, tmp_path: Path, apart: Callable[..., float], step: Any) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")

    class Module(ModelLoss, lightning.LightningModule):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model
            self.gradients: dict[str, torch.Tensor] = {}
            without_logits(model)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            named = self.model.named_parameters()
            self.gradients = {name: weight.grad.clone() for name, weight in named if weight.grad is not None}

    loss, gradients = step(make(kind), batch(8))
    module = Module(make(kind))
    run = trainer(tmp_path)
    run.fit(module, loader(8), loader(8))
    assert float(run.callback_metrics["train_loss"]) == pytest.approx(loss, rel=1e-6)
    assert float(run.callback_metrics["val_loss"]) == pytest.approx(loss, rel=1e-6)
    assert apart(module.gradients, gradients) < 2e-6


def test_a_loss_is_a_module_like_others(tmp_path: Path) -> None:
    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding = torch.nn.Embedding(V, 8)
            self.head = torch.nn.Linear(8, V)
            self.loss = smoothloss.nn.LinearCrossEntropyLoss(label_smoothing=0.1)
            self.losses: list[float] = []

        def training_step(self, batch: dict[str, torch.Tensor], index: int) -> torch.Tensor:
            hidden = self.embedding(batch["input_ids"])
            loss = self.loss(hidden, self.head.weight, batch["labels"], self.head.bias)
            logits = self.head(hidden).transpose(1, 2)
            expected = torch.nn.functional.cross_entropy(logits, batch["labels"], label_smoothing=0.1)
            torch.testing.assert_close(loss, expected)
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.1)

    module = Module()
    trainer(tmp_path, limit_train_batches=2).fit(module, loader())
    assert len(module.losses) == 2
