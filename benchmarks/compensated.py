"""Measures the linear op's option ``tail="compensated"`` on models of `benchmarks.language_models`.

    python -m benchmarks.compensated build/heads/coco/step_*.safetensors --out benchmarks/results/compensated_cpu.json

One interleaved run times forward and backward of `functional.linear_cross_entropy` in bfloat16: the three products
alone in the dtypes that they have on this device, dense, compensated, and filtered: the same columns, and nothing put
back, as Cut Cross-Entropy does. With ``--threads 1`` times are the process's own and not the wall's. Errors of dX and
dW are against float64, in units of those of the dense op.
benchmarks/NOTES.md has the mathematics.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

import smoothloss.functional as F
from benchmarks.measure import Function, Row, interleaved, markdown, work_ahead, write_json
from smoothloss.ops import linear_passes
from smoothloss.ops.compensated import CompensatedSums
from smoothloss.ops.compensated_columns import Parts
from smoothloss.ops.linear_layer import LinearLayer, matmul

COLUMNS = {
    "file": "model", "rows": "rows", "classes": "V", "entropy": "entropy", "label_smoothing": "eps",
    "tolerance": "tolerance", "what": "what", "ms": "ms", "columns_kept": "columns kept",
    "of_gemms": "of the three products",
    "d_input_error_of_rounding": "error of dX / dense's", "d_weight_error_of_rounding": "of dW / dense's",
}  # fmt: skip


class Filtered(CompensatedSums):
    """Leaves out the same columns and puts nothing back but the uniform mass."""

    def _parts(self, rows: slice | None, d_logits: Tensor) -> Parts | None:
        parts = super()._parts(rows, d_logits)
        if parts is None:
            return None
        shares = parts.shares.clone()
        shares[:, :-1] = 0
        return parts._replace(shares=shares)


@contextmanager
def recorded(kind: type[CompensatedSums] = CompensatedSums) -> Iterator[list[int | Tensor]]:
    """Let the linear op sum as `kind` does while the context is open, and record the columns kept of each chunk."""
    kept: list[int | Tensor] = []

    class Recording(kind):  # type: ignore[misc, valid-type]
        def add_chunk(self, rows: slice | None, d_logits: Tensor) -> None:
            super().add_chunk(rows, d_logits)
            kept.append(self.columns_kept[-1])

    before = linear_passes.CompensatedSums
    linear_passes.CompensatedSums = Recording  # type: ignore[misc]
    try:
        yield kept
    finally:
        linear_passes.CompensatedSums = before  # type: ignore[misc]


class Head(NamedTuple):
    """Hidden states, classifier and labels; the first three bfloat16, leaves that require a gradient."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    labels: Tensor


def head_of(path: Path, rows: int, device: torch.device) -> Head:
    """Return what a saved model's classifier sees of its first rows."""
    saved = load_file(path)
    hidden, weight, bias = (saved[name].to(device, torch.bfloat16) for name in ("hidden", "weight", "bias"))
    leaves = [tensor.requires_grad_() for tensor in (hidden[:rows].clone(), weight, bias)]
    return Head(*leaves, saved["labels"][:rows].to(device))


def gradients(head: Head, smoothing: float, **options: Any) -> tuple[Tensor, ...]:
    """Return the gradients of hidden states, weight and bias by the library."""
    *leaves, labels = head
    loss = F.linear_cross_entropy(
        head.hidden, head.weight, labels, linear_bias=head.bias, label_smoothing=smoothing, **options
    )
    return torch.autograd.grad(loss, leaves)


def exact(head: Head, smoothing: float) -> tuple[Tensor, Tensor, float]:
    """Return the gradients of hidden states and weight in float64, and the mean entropy of a row."""
    hidden, weight, bias, labels = (tensor.detach().double() for tensor in head)
    log_p = torch.addmm(bias, hidden, weight.t()).log_softmax(-1)
    entropy = float(-(log_p.exp() * log_p).sum(-1).mean())
    d_logits = log_p.exp_().sub_(smoothing / len(weight))
    d_logits[torch.arange(len(hidden), device=labels.device), labels.long()] -= 1 - smoothing
    return d_logits @ weight / len(hidden), d_logits.t() @ hidden / len(hidden), entropy


def error(got: Tensor, expected: Tensor) -> float:
    """Return the relative error in the Frobenius norm."""
    return float((got.double() - expected).norm() / expected.norm())


def products(head: Head) -> Function:
    """Return a function that makes the three products and nothing else, as the library has them here."""
    layer = LinearLayer(head.hidden.detach(), head.weight.detach(), None)
    scratch = layer.scratch(layer.num_rows, layer.num_classes, layer.accumulator)
    d_logits = layer.logits(None, scratch).clone().to(layer.compute)
    d_inputs, d_weight = torch.empty_like(layer.inputs), torch.empty_like(layer.weight)

    def make() -> None:
        layer.logits(None, scratch)
        matmul(d_logits, layer.weight, d_inputs)
        matmul(d_logits.t(), layer.inputs, d_weight)

    return make


def measured(head: Head, name: str, tolerance: float, smoothing: float, repeats: int) -> list[Row]:
    """Return the rows of one head."""
    device = head.hidden.device
    how: dict[str, Any] = {"tail": "compensated", "tail_tolerance": tolerance}

    def filtered() -> tuple[Tensor, ...]:
        with recorded(Filtered):
            return gradients(head, smoothing, **how)

    ways: dict[str, Function] = {
        "dense": lambda: gradients(head, smoothing),
        "filtered": filtered,
        "compensated": lambda: gradients(head, smoothing, **how),
    }
    # One thread's own time, where the machine does other things too.
    clock = time.process_time if torch.get_num_threads() == 1 and device.type == "cpu" else time.perf_counter
    times = interleaved(
        {"three products": products(head), **ways}, device, repeats, 1, clock=clock, ahead=work_ahead(device)
    )
    *expected, entropy = exact(head, smoothing)
    rounding = [error(got, want) for got, want in zip(ways["dense"](), expected, strict=False)]  # type: ignore[call-overload]
    with recorded() as kept:
        ways["compensated"]()
    common = {
        "suite": "compensated", "file": name, "rows": len(head.hidden),
        "classes": len(head.weight), "hidden": head.hidden.shape[1], "dtype": "bfloat16",
        "compute_dtype": str(LinearLayer(*head[:3]).compute).removeprefix("torch."), "entropy": entropy,
        "labels_distinct": len(head.labels.unique()), "label_smoothing": smoothing, "tolerance": tolerance,
        "threads": torch.get_num_threads(), "clock": clock.__name__,
        "d_input_rounding": rounding[0], "d_weight_rounding": rounding[1], "floor_ms": times["three products"]["ms"],
    }  # fmt: skip
    found: list[Row] = []
    for what, way in ways.items():
        errors = [error(got, want) for got, want in zip(way(), expected, strict=False)]  # type: ignore[call-overload]
        found.append({
            **common, "what": what, **times[what], "of_gemms": times[what]["ms"] / times["three products"]["ms"],
            "columns_kept": 1.0 if what == "dense" else int(kept[0]) / len(head.weight),
            "d_input_error_of_rounding": errors[0] / rounding[0],
            "d_weight_error_of_rounding": errors[1] / rounding[1],
        })  # fmt: skip
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; return 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="of benchmarks.language_models")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--rows", type=int, nargs="+", default=[1280], help="rows of the chunk")
    parser.add_argument("--tolerance", type=float, nargs="+", default=[0.5, 1.0], help="in units of bfloat16 rounding")
    parser.add_argument("--smoothing", type=float, nargs="+", default=[0.0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    found: list[Row] = []
    for path in options.files:
        for rows in options.rows:
            head = head_of(path, rows, options.device)
            for smoothing in options.smoothing:
                for tolerance in options.tolerance:
                    print(f"{path}: {rows} rows, tolerance {tolerance}", file=sys.stderr)
                    found += measured(head, f"{path.parent.name}/{path.stem}", tolerance, smoothing, options.repeats)
    print(markdown(found, COLUMNS))
    write_json(options.out, options.device, found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
