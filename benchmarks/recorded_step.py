"""Steps of the trainer on a CUDA device, computed as they come and replayed as CUDA graphs (`training.graphs`).

    python -m benchmarks.recorded_step --out benchmarks/results/recorded_step_h100.json
    python -m benchmarks.recorded_step multi30k/mle multi30k/seq --steps 100

A row for each recipe, plain and recorded: milliseconds and launches a step (`smoothloss profile`), and what it costs
of the first recipe of its kind, the MLE. Without arguments: the demo's losses, and Multi30k's and COCO's where
SMOOTHLOSS_DATA says where the data are.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.measure import Row, write_json
from smoothloss_trainer.demo.run import RECIPES
from smoothloss_trainer.devices import choose_device
from smoothloss_trainer.profiling import profile
from smoothloss_trainer.recipe import load_recipe

DEMO = [f"{RECIPES}/mle.yaml", *(f"{RECIPES}/tok_seq_lazy.yaml --loss.name {name}" for name in ("tok_seq_lazy", "seq"))]
OTHERS = ["multi30k/mle", "multi30k/seq_lazy", "multi30k/seq", "multi30k/tok_seq_bleu_lazy"]
OTHERS += ["coco_labels/mle", "coco_labels/tok_seq_lazy --loss.name seq_lazy", "coco_labels/attention_mle"]


def measure(text: str, device: str, steps: int, multiple: int) -> list[Row]:
    """Return the rows of a recipe, given as its name and what is changed of it."""
    name, *words = text.split()
    rows = []
    for graphs in (False, True) if device.startswith("cuda") else (False,):
        own = ["--training.graphs", str(graphs).lower(), "--training.pad_to_multiple_of", str(multiple)]
        recipe = load_recipe(name, [*words, "--device", device, *own])
        found = profile(recipe, steps)
        row = {"recipe": recipe.name, "loss": recipe.loss.name, "task": recipe.task, "graphs": graphs}
        rows.append(row | {key: found[key] for key in ("ms", "launches", "tokens_per_second", "parts")})
        rows[-1]["steps_per_second"] = 1000 / found["ms"]
        print(f"{recipe.name:<24} {recipe.loss.name:<14} graphs {graphs!s:<6} {found['ms']:8.2f} ms", flush=True)
    return rows


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=DEMO + (OTHERS if os.environ.get("SMOOTHLOSS_DATA") else []))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pad_to_multiple_of", type=int, default=8)
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args()
    rows: list[Row] = []
    for recipe in options.recipes:
        rows += measure(recipe, options.device, options.steps, options.pad_to_multiple_of)
    for row in rows:
        first = next(each for each in rows if (each["task"], each["graphs"]) == (row["task"], row["graphs"]))
        row["of_mle"] = row["ms"] / first["ms"]
    if options.out:
        write_json(options.out, choose_device(options.device), rows)


if __name__ == "__main__":
    main()
