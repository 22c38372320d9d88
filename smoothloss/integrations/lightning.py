"""PyTorch Lightning: steps with the loss of a model of transformers, averaged over the tokens of all processes.

A LightningModule needs no adapter for `smoothloss.nn`, whose losses are modules like others. With a model of
transformers, `ModelLoss` is the two steps::

    from smoothloss.integrations.lightning import ModelLoss
    from smoothloss.integrations.transformers import without_logits

    class Module(ModelLoss, lightning.LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model = model
            without_logits(model, label_smoothing=0.1)

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from smoothloss.integrations.transformers import base_model, shifts_labels

__all__ = ["ModelLoss"]


class ModelLoss:
    """Mixin for a LightningModule whose attribute `model` is one of transformers: its training and validation steps.

    The sum of the losses of a batch is divided by the mean number of labels in the processes' batches, so that the
    average of the processes' gradients is that of one batch of all. Batches that Lightning accumulates weigh the same.
    """

    model: Any

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Return the loss of a batch, and log it as "train_loss"."""
        return self._logged("train_loss", batch)

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Return the loss of a batch, and log it as "val_loss"."""
        return self._logged("val_loss", batch)

    def _logged(self, name: str, batch: dict[str, Any]) -> Tensor:
        module: Any = self
        labels = batch["labels"][..., 1:] if shifts_labels(base_model(self.model)) else batch["labels"]
        count = module.all_gather((labels != -100).sum().float()).mean()
        loss: Tensor = self.model(**batch, num_items_in_batch=count).loss
        module.log(name, loss.detach(), sync_dist=name != "train_loss")
        return loss
