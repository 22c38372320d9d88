"""Measures a prototype of the linear op that leaves columns out of its gradient products and puts their mean back.

    python -m benchmarks.compensated build/heads/coco/step_*.safetensors --out benchmarks/results/compensated_cpu.json

The files are those of `benchmarks.language_models`. One interleaved run times forward and backward of hard labels in
bfloat16: the three products alone, dense, filtered (columns dropped, as Cut Cross-Entropy does) and compensated, with
equal columns. Errors of dX and dW are against float64, in units of those of the dense op. benchmarks/NOTES.md has the
mathematics. Nothing in the library uses this yet.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.measure import Function, Row, interleaved, markdown, write_json
from smoothloss import backends
from smoothloss.backends.common import RowOptions, RowTarget
from smoothloss.ops.linear_layer import LinearLayer

# Of rounding to bfloat16, relative: half a unit of the last of 8 bits, uniform, over mantissas whose logarithm is.
ROUNDING = 2**-8 * (0.541 / 3) ** 0.5
COLUMNS = {
    "file": "model", "rows": "rows", "classes": "V", "what": "what", "columns_kept": "columns kept",
    "of_gemms": "of the three products", "d_input_error_of_rounding": "error of dX / dense's",
    "d_weight_error_of_rounding": "of dW / dense's",
}  # fmt: skip


class Head(NamedTuple):
    """Hidden states, classifier and labels; the first three bfloat16."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    labels: Tensor


def gradient_of_logits(head: Head) -> Tensor:
    """Return the gradient ``(N, V)`` of the summed loss, rounded to bfloat16."""
    layer = LinearLayer(head.hidden, head.weight, head.bias)
    shape = (layer.num_rows, layer.num_classes)
    scratch, d_logits = layer.scratch(*shape, layer.accumulator), layer.scratch(*shape, head.hidden.dtype)
    target = RowTarget(head.labels, ignore_index=-100)
    backends.kernels("native").forward_backward(layer.logits(None, scratch), target, RowOptions(), d_logits, "sum")
    return d_logits


def dense(head: Head) -> tuple[Tensor, Tensor]:
    """Return the gradients of hidden states and weight by whole products."""
    d_logits = gradient_of_logits(head)
    return d_logits @ head.weight, d_logits.t() @ head.hidden


def kept_columns(d_logits: Tensor, labels: Tensor, tolerance: float) -> Tensor:
    """Return which columns stay: those of targets, and as many as bring the estimate below the tolerance."""
    # A product sums columns faster than torch's own sums do.
    squares = (d_logits.new_ones(1, len(d_logits)) @ d_logits.square())[0].float()
    limit = (tolerance * ROUNDING) ** 2 * squares.sum()
    squares[labels] = torch.inf
    ascending, order = squares.sort()
    dropped = ascending.double().cumsum(0) <= limit
    return order[~dropped].sort().values


def reduced(head: Head, tolerance: float, clusters: int) -> tuple[Tensor, Tensor, int]:
    """Return the gradients from the columns kept, with one mean tail for each cluster of rows, and how many stay."""
    d_logits = gradient_of_logits(head)
    kept = kept_columns(d_logits, head.labels, tolerance)
    compact = d_logits.index_select(1, kept)
    d_input = compact @ head.weight.index_select(0, kept)
    rows_of_weight = compact.t() @ head.hidden
    if clusters:
        tail, share = tails(head, d_logits, kept, clusters)
        d_input = d_input.float().addmm_(share.float(), (tail @ head.weight).float()).to(d_input.dtype)
        d_weight = tail.t() @ (share.t() @ head.hidden)
    else:
        d_weight = torch.zeros_like(head.weight)
    return d_input, d_weight.index_copy_(0, kept, rows_of_weight), len(kept)


def tails(head: Head, d_logits: Tensor, kept: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Return the summed tail of each cluster ``(C, V)``, 0 in columns kept, and each row's share of it ``(N, C)``."""
    rows = len(head.hidden)
    pivots = head.hidden[torch.arange(clusters) * rows // clusters]
    nearest = (head.hidden @ pivots.t()).float().sub_(pivots.float().square().sum(-1) / 2).argmax(-1)
    member = torch.zeros(rows, clusters, dtype=d_logits.dtype).scatter_(1, nearest[:, None], 1.0)
    tail = (member.t() @ d_logits).index_fill_(1, kept, 0.0)
    left_out = torch.ones(d_logits.shape[1], 1, dtype=d_logits.dtype).index_fill_(0, kept, 0.0)
    mass = (d_logits @ left_out).float()
    total = tail.sum(-1, dtype=torch.float32).clamp(min=torch.finfo(torch.float32).tiny)
    return tail, (member.float() * mass / total).to(d_logits.dtype)


def exact(head: Head) -> tuple[Tensor, Tensor]:
    """Return the gradients in float64."""
    hidden, weight = head.hidden.double(), head.weight.double()
    d_logits = torch.softmax(torch.addmm(head.bias.double(), hidden, weight.t()), -1)
    d_logits[torch.arange(len(hidden)), head.labels] -= 1
    return d_logits @ weight, d_logits.t() @ hidden


def error(got: Tensor, expected: Tensor) -> float:
    """Return the relative error in the Frobenius norm."""
    return float((got.double() - expected).norm() / expected.norm())


def products(head: Head) -> Function:
    """Return a function that makes the three products and nothing else."""
    d_logits = gradient_of_logits(head)
    return lambda: (head.hidden @ head.weight.t(), d_logits @ head.weight, d_logits.t() @ head.hidden)


def measured(path: Path, rows: int, tolerance: float, clusters: int, repeats: int) -> list[Row]:
    """Return the rows of one saved model."""
    saved = load_file(path)
    head = Head(*(saved[name].bfloat16() for name in ("hidden", "weight", "bias")), saved["labels"])
    head = head._replace(hidden=head.hidden[:rows], labels=head.labels[:rows])
    ways: dict[str, Function] = {
        "dense": lambda: dense(head),
        "filtered": lambda: reduced(head, tolerance, 0),
        "compensated, 1 tail": lambda: reduced(head, tolerance, 1),
        f"compensated, {clusters} tails": lambda: reduced(head, tolerance, clusters),
    }
    times = interleaved({"three products": products(head), **ways}, torch.device("cpu"), repeats, 1)
    expected, floor = exact(head), times["three products"]["ms"]
    rounding = [error(got, want) for got, want in zip(dense(head), expected, strict=True)]
    common = {
        "suite": "compensated", "file": f"{path.parent.name}/{path.stem}", "rows": len(head.hidden),
        "classes": len(head.weight), "hidden": head.hidden.shape[1], "dtype": "bfloat16", "tolerance": tolerance,
        "d_input_rounding": rounding[0], "d_weight_rounding": rounding[1],
    }  # fmt: skip
    found: list[Row] = []
    for what, way in ways.items():
        d_input, d_weight, *count = way()  # type: ignore[misc]
        errors = [error(got, want) for got, want in zip((d_input, d_weight), expected, strict=True)]
        found.append({
            **common, "what": what, **times[what], "of_gemms": times[what]["ms"] / floor,
            "columns_kept": (count[0] if count else len(head.weight)) / len(head.weight),
            "d_input_error_of_rounding": errors[0] / rounding[0],
            "d_weight_error_of_rounding": errors[1] / rounding[1],
        })  # fmt: skip
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; return 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="of benchmarks.language_models")
    parser.add_argument("--rows", type=int, nargs="+", default=[1280], help="rows of the chunk")
    parser.add_argument(
        "--tolerance", type=float, nargs="+", default=[0.25, 0.5, 1.0], help="in units of bfloat16 rounding"
    )
    parser.add_argument("--clusters", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    found: list[Row] = []
    for path in options.files:
        for rows in options.rows:
            for tolerance in options.tolerance:
                print(f"{path}: {rows} rows, tolerance {tolerance}", file=sys.stderr)
                found += measured(path, rows, tolerance, options.clusters, options.repeats)
    print(markdown(found, COLUMNS))
    write_json(options.out, torch.device("cpu"), found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
