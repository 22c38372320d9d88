"""One step of transformers' Trainer, with and without the adapters; run by torchrun, the gradients of each process's.

    torchrun --nproc_per_node 2 tests/integrations/trainer_step.py FOLDER

writes the gradients that each way of making the loss leaves in process 0.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from integrations.tiny_models import examples, make
from torch import Tensor

KINDS = ("llama", "gpt2, tied", "t5, tied")
WAYS = ("own", "trainer_loss", "without_logits")


def options(folder: Path, **more: Any) -> Any:
    """Return the arguments of a Trainer that takes one step and writes nothing."""
    from transformers import TrainingArguments

    quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no", "use_cpu": True}
    return TrainingArguments(str(folder), **{"max_steps": 1, "max_grad_norm": 0.0, **quiet, **more})


def collated(model: Any) -> Any:
    """Return a collator that makes the inputs of a decoder, as transformers' own does for a model it is given."""

    def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        if model.config.is_encoder_decoder:
            batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch["labels"])
        return batch

    return collate


def counts_too_few(with_encoder: bool) -> bool:
    """Tell whether the Trainer counts a label too few in each sequence, as that of transformers 5.10 to 5.14 does.

    It takes models with an encoder for such as shift labels: the `num_items_in_batch` that it passes is too small.
    """
    import transformers

    major, minor = transformers.__version__.split(".")[:2]
    return with_encoder and (5, 10) <= (int(major), int(minor)) < (5, 15)


def trainer_of(model: Any, way: str, arguments: Any, **loss_options: Any) -> Any:
    """Return a Trainer whose loss is made in one of three ways."""
    from transformers import Trainer

    from smoothloss.integrations.transformers import trainer_loss, without_logits

    more = {"compute_loss_func": trainer_loss(model, **loss_options)} if way == "trainer_loss" else {}
    if way == "without_logits":
        without_logits(model, **loss_options)
    rows: Any = examples()
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, data_collator=collated(model), **more)
    if counts_too_few(model.config.is_encoder_decoder):
        trainer._loss_shifts_labels = False  # what is compared is the loss, not the count
    return trainer


def step(kind: str, way: str, folder: Path, smoothing: float = 0.0, **more: Any) -> tuple[float, dict[str, Tensor]]:
    """Return the loss that the Trainer reports of one step, and the gradients that its optimizer was given."""
    model, loss_options = make(kind), {}
    if smoothing and way == "own":
        more["label_smoothing_factor"] = smoothing
    elif smoothing:
        loss_options["label_smoothing"] = smoothing
    trainer = trainer_of(model, way, options(folder, **more), **loss_options)
    gradients: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        named = model.named_parameters()
        gradients.update({name: weight.grad.clone() for name, weight in named if weight.grad is not None})

    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(keep)
    return trainer.train().training_loss, gradients


def main(folder: Path) -> None:
    """Take a step of two batches in each process, in each way."""
    from safetensors.torch import save_file

    for kind in KINDS:
        for way in WAYS:
            more = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
            _, gradients = step(kind, way, folder / "run", **more)
            if torch.distributed.get_rank() == 0:
                save_file(gradients, folder / f"{kind} {way}.safetensors")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
