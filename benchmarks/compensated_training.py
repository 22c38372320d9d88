"""Training with the linear op's option ``tail="compensated"``, beside all columns and columns dropped; three losses.

    python -m benchmarks.compensated_training captions_val2014.ptb.json.gz --table build/heads/coco/step_N.safetensors
        --runs build/compensated_training --out benchmarks/results/compensated_training.json

The model is that of `benchmarks.language_models`, with hidden states and classifier rounded to bfloat16 for the loss.
Each run is a file under `--runs`; those that are there already are not made again. Similarity rows for Tok-Seq come
from the classifier of a trained model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import smoothloss.functional as F
from benchmarks.compensated import Filtered, recorded
from benchmarks.language_models import CLIP, HELD_OUT, IGNORED, LanguageModel, Text, batch, optimizer_of, read
from benchmarks.measure import Row, write_json
from smoothloss import SimilarityTable, targets
from smoothloss.ops.compensated import CompensatedSums
from smoothloss.sampling import BatchPool, HammingSampler
from smoothloss.targets import Target

WAYS: dict[str, type[CompensatedSums] | None] = {
    "dense": None, "filtered": Filtered, "compensated": CompensatedSums,
}  # fmt: skip
LOSSES = ("labels", "label smoothing", "lazy Tok-Seq")
NEIGHBOURS, TAU, SAMPLES, ALPHA, TOKEN_ALPHA, SMOOTHING = 8, 0.1, 2, 0.3, 0.2, 0.1

Objective = Callable[[Tensor, int], "tuple[Target, dict[str, float]]"]


def objective(loss: str, table: SimilarityTable) -> Objective:
    """Return what makes a target and options of labels ``(B, T)`` at a step."""
    sampler = HammingSampler(0.5, BatchPool())

    def make(labels: Tensor, step: int) -> tuple[Target, dict[str, float]]:
        if loss == "lazy Tok-Seq":
            generator = torch.Generator().manual_seed(step)
            samples = sampler(labels, (labels != IGNORED).sum(1), SAMPLES, generator).tokens
            return targets.lazy_sequence(labels, samples, alpha=ALPHA, table=table, token_alpha=TOKEN_ALPHA), {}
        return targets.labels(labels), {"label_smoothing": SMOOTHING} if loss == "label smoothing" else {}

    return make


@torch.no_grad()
def held_out(model: LanguageModel, text: Text, sentences: int) -> float:
    """Return the cross-entropy of a word of sentences that are not trained on."""
    model.eval()
    total, words = 0.0, 0
    for start in range(0, sentences, 100):
        inputs, labels = batch(text.sentences[start : start + 100])
        count = int((labels != IGNORED).sum())
        logits = nn.functional.linear(model(inputs), model.embedding.weight, model.bias)
        total += count * float(nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))
        words += count
    model.train()
    return total / words


def train(text: Text, table: SimilarityTable, loss: str, way: str, seed: int, options: argparse.Namespace) -> list[Row]:
    """Return a row of each evaluation of one run."""
    torch.manual_seed(seed)
    model = LanguageModel(len(text.words), options.width)
    optimizer, schedule = optimizer_of(model, options.steps, options.rate)
    make, rows = objective(loss, table), []
    how = {} if WAYS[way] is None else {"tail": "compensated", "tail_tolerance": options.tolerance}
    with recorded(WAYS[way] or CompensatedSums) as kept:
        for step, (inputs, labels) in enumerate(itertools.islice(text.batches(seed), options.steps + 1)):
            target, more = make(labels, step)
            hidden, weight = model(inputs).bfloat16(), model.embedding.weight.bfloat16()
            value = F.linear_cross_entropy(
                hidden, weight, target, linear_bias=model.bias.bfloat16(), **more, **how
            )  # fmt: skip
            if step % options.every == 0 or step == options.steps:
                rows.append({
                    "suite": "compensated_training", "loss": loss, "way": way, "seed": seed, "step": step,
                    "classes": len(text.words), "hidden": options.width, "rows": labels.numel(),
                    "tolerance": options.tolerance, "steps": options.steps, "train_loss": float(value.detach()),
                    "held_out_loss": held_out(model, text, options.sentences),
                    "columns_kept": sum(kept) / len(kept) / len(text.words) if kept else 1.0,
                })  # fmt: skip
                kept.clear()
            if step == options.steps:
                break
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            schedule.step()
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Train, write; return 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="see benchmarks.language_models")
    parser.add_argument("--column", type=int, help="of a table")
    parser.add_argument("--least", type=int, default=2)
    parser.add_argument("--table", type=Path, required=True, help="a file of benchmarks.language_models")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tolerance", type=float, default=1.0)
    parser.add_argument("--sentences", type=int, default=HELD_OUT // 2, help="to evaluate on")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    text = Text(read(options.text, options.column), options.least)
    table = SimilarityTable.from_embeddings(load_file(options.table)["weight"], k=NEIGHBOURS, tau=TAU)
    options.runs.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for seed, loss, way in itertools.product(options.seeds, LOSSES, WAYS):
        path = options.runs / f"{loss.replace(' ', '_')}-{way}-{seed}.json"
        if not path.exists():
            found = train(text, table, loss, way, seed, options)
            part = path.with_suffix(".part")
            part.write_text(json.dumps(found) + "\n")
            part.replace(path)
            print(f"{path.stem}: {found[-1]['held_out_loss']:.4f}", file=sys.stderr, flush=True)
        rows += json.loads(path.read_text())
    write_json(options.out, torch.device("cpu"), rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
