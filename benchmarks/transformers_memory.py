"""What a training step of transformers' real Trainer needs at its peak: its own loss, and the two adapters.

Small models with random weights and large vocabularies, so that the loss is what counts; plain SGD. Each row is a
process of its own, and its figure that of a second step, beyond what was there before it. Losses of a kind are equal.

    python -m benchmarks.transformers_memory --out benchmarks/results/transformers_memory_cpu.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Row, markdown, peak_memory, write_json

COLUMNS = {
    "what": "model",
    "way": "loss",
    "classes": "V",
    "tokens": "tokens",
    "dtype": "dtype",
    "peak_mib": "peak MiB",
    "logits_mib": "float32 logits, MiB",
    "loss": "loss",
    "times_less": "times less than its own",
}
WAYS = ("own", "trainer_loss", "without_logits")
_T5 = {"num_layers": 2, "num_heads": 4, "d_kv": 64, "d_ff": 512, "decoder_start_token_id": 0, "dropout_rate": 0.0}
_GPT2 = {"n_layer": 2, "n_head": 4, "n_positions": 4096, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
# Name: classes of transformers, the vocabulary of the real model, the name of its width, other sizes.
KINDS: dict[str, tuple[str, str, int, str, dict[str, Any]]] = {
    "Llama": (
        "LlamaForCausalLM", "LlamaConfig", 128_256, "hidden_size",
        {"intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", 50_257, "n_embd", _GPT2),
    "T5": ("T5ForConditionalGeneration", "T5Config", 32_128, "d_model", _T5),
}  # fmt: skip


def make(kind: str, classes: int, width: int) -> Any:
    """Return a model of random weights."""
    import transformers

    model, config, _, width_name, options = KINDS[kind]
    torch.manual_seed(0)
    return getattr(transformers, model)(
        getattr(transformers, config)(vocab_size=classes, **{width_name: width}, **options)
    )


def step_of(
    model: Any, way: str, classes: int, batch: int, length: int, bf16: bool, folder: str
) -> Callable[[], float]:
    """Return a function that takes a step and returns its loss."""
    from transformers import Trainer, TrainingArguments

    from smoothloss.integrations.transformers import trainer_loss, without_logits

    tokens = torch.randint(2, classes, (batch, length), generator=torch.Generator().manual_seed(1))
    rows: Any = [{"input_ids": row, "labels": row} for row in tokens]
    if model.config.is_encoder_decoder:
        start = model.prepare_decoder_input_ids_from_labels(tokens)
        rows = [{**row, "decoder_input_ids": first} for row, first in zip(rows, start, strict=True)]
    arguments = TrainingArguments(
        folder, max_steps=1, per_device_train_batch_size=batch, optim="sgd", bf16=bf16, max_grad_norm=0.0, report_to=[],
        disable_tqdm=True, save_strategy="no", logging_strategy="no", use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    if way == "without_logits":
        without_logits(model)
    more = {"compute_loss_func": trainer_loss(model)} if way == "trainer_loss" else {}
    trainer = Trainer(model, arguments, train_dataset=rows, **more)

    def step() -> float:
        loss: float = trainer.train().training_loss
        model.zero_grad()
        return loss

    return step


def measure(kind: str, way: str, classes: int, width: int, batch: int, length: int, bf16: bool = False) -> Row:
    """Return the row of one kind and way."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        step = step_of(make(kind, classes, width), way, classes, batch, length, bf16, folder)
        loss = step()  # what is made once is there
        peak = peak_memory(step, device)
    return {
        "what": kind, "way": way, "classes": classes, "width": width, "tokens": batch * length,
        "dtype": "bfloat16" if bf16 else "float32", "peak_mib": peak,
        "logits_mib": 4 * batch * length * classes / 2**20, "loss": loss,
    }  # fmt: skip


def in_a_process(*arguments: object) -> Row:
    """Return the row that a process of its own measures."""
    call = f"import json; from benchmarks import transformers_memory as m; print(json.dumps(m.measure(*{arguments!r})))"
    environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", call], stdout=subprocess.PIPE, text=True, env=environment, check=True)
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> None:
    """Print the table, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--width", type=int, default=256, help="of the hidden states")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    rows: list[Row] = []
    for kind, (_, _, classes, _, _) in KINDS.items():
        for bf16 in (False, True):
            found = [
                in_a_process(kind, way, classes, options.width, options.batch, options.length, bf16) for way in WAYS
            ]
            peaks = [row["peak_mib"] for row in found]
            rows += [row | {"times_less": None if None in peaks else peaks[0] / row["peak_mib"]} for row in found]
    print(markdown(rows, COLUMNS))
    write_json(options.out, torch.device("cuda" if torch.cuda.is_available() else "cpu"), rows)


if __name__ == "__main__":
    main()
