"""TRL's own trainers: with the adapters a step is theirs, where theirs can be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from integrations.tiny_models import V, examples, make
from torch import Tensor

from smoothloss.integrations.trl import OwnLoss, TopKTeacher

trl = pytest.importorskip("trl", reason="trl is not installed")
datasets = pytest.importorskip("datasets", reason="datasets is not installed")
ROUNDING = 2e-6


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Return a tokenizer of V words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "</s>": 1, **{f"w{number}": number for number in range(2, V)}}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<pad>")


def arguments(folder: Path, **more: Any) -> dict[str, Any]:
    """Return the options of a trainer that takes one step of two batches, and writes nothing."""
    quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "bf16": False}
    size = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 1, "max_grad_norm": 0.0}
    return {"output_dir": str(folder), "gradient_checkpointing": False, **quiet, **size, **more}


def step(trainer: Any) -> tuple[float, float, dict[str, Tensor]]:
    """Return the losses of training and evaluation, and the gradients that the optimizer was given."""
    gradients: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        named = trainer.model.named_parameters()
        gradients.update({name: weight.grad.clone() for name, weight in named if weight.grad is not None})

    trainer.create_optimizer()
    trainer.optimizer.register_step_pre_hook(keep)
    evaluated = trainer.evaluate()["eval_loss"]
    return trainer.train().training_loss, evaluated, gradients


@pytest.mark.parametrize("kind", ["llama", "gemma2, softcap"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_fine_tuning(kind: str, smoothing: float, tokenizer: Any, tmp_path: Path, apart: Any) -> None:
    class Trainer(OwnLoss, trl.SFTTrainer):
        pass

    texts = [" ".join(f"w{int(token)}" for token in row["input_ids"][: 4 + n]) for n, row in enumerate(examples())]
    data = datasets.Dataset.from_dict({"text": texts})
    common = {"train_dataset": data, "eval_dataset": data, "processing_class": tokenizer}
    own = trl.SFTConfig(**arguments(tmp_path, label_smoothing_factor=smoothing))
    expected = step(trl.SFTTrainer(make(kind), args=own, **common))
    config = trl.SFTConfig(**arguments(tmp_path))
    got = step(Trainer(make(kind), args=config, loss_options={"label_smoothing": smoothing}, **common))
    assert got[:2] == pytest.approx(expected[:2], rel=1e-6)
    assert apart(got[2], expected[2]) < ROUNDING


def _prompted(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Return a batch whose first two tokens are a prompt, as the trainer's collator of chats makes it."""
    tokens, labels = (torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels"))
    labels[:, :2] = -100
    prompts = {"prompts": tokens[:, :2], "prompt_attention_mask": torch.ones_like(tokens[:, :2])}
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels, **prompts}


@pytest.mark.parametrize("on_policy", [0.0, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_distillation(beta: float, on_policy: float, tokenizer: Any, tmp_path: Path, apart: Any) -> None:
    gkd = pytest.importorskip("trl.experimental.gkd", reason="this trl has no GKDTrainer")

    class Trainer(TopKTeacher, gkd.GKDTrainer):
        pass

    def trainer(kind: Any, **more: Any) -> Any:
        data = datasets.Dataset.from_list([{name: value.tolist() for name, value in row.items()} for row in examples()])
        config = gkd.GKDConfig(**arguments(tmp_path, beta=beta, lmbda=on_policy, max_new_tokens=4))
        teacher = make("llama", seed=5, initializer_range=0.5)
        return kind(
            make(), teacher_model=teacher, args=config, train_dataset=data, eval_dataset=data, data_collator=_prompted,
            processing_class=tokenizer, **more,
        )  # fmt: skip

    expected = step(trainer(gkd.GKDTrainer))
    got = step(trainer(Trainer, teacher_k=V))
    assert got[:2] == pytest.approx(expected[:2], rel=2e-6)
    assert apart(got[2], expected[2]) < ROUNDING
    if not on_policy:  # classes that are taken together can only be nearer to each other
        assert 0 < step(trainer(Trainer, teacher_k=32))[0] < expected[0]


def test_distillation_with_a_share_of_labels(tokenizer: Any, tmp_path: Path) -> None:
    gkd = pytest.importorskip("trl.experimental.gkd", reason="this trl has no GKDTrainer")

    class Trainer(TopKTeacher, gkd.GKDTrainer):
        pass

    def loss(share: float) -> float:
        data = datasets.Dataset.from_list([{name: value.tolist() for name, value in row.items()} for row in examples()])
        config = gkd.GKDConfig(**arguments(tmp_path, beta=0.5, lmbda=0.0))
        made = Trainer(
            make(), teacher_model=make(seed=5, initializer_range=0.5), args=config, train_dataset=data,
            data_collator=_prompted, processing_class=tokenizer, loss_options={"teacher_share": share},
        )  # fmt: skip
        return float(made.train().training_loss)

    labels, both, teacher = loss(0.0), loss(0.25), loss(1.0)
    assert both == pytest.approx(0.75 * labels + 0.25 * teacher, rel=1e-5)
    assert labels != pytest.approx(teacher, rel=0.1)
