"""Soft targets at hard-label cost? Forward + backward of the logits op beside torch's hard-label cross-entropy.

One interleaved run on given logits: eager ``torch.nn.functional.cross_entropy``; ours with hard labels, with S entries
a row, and with S entries in place; and, as the floor, a copy of the logits into a fresh and into an existing buffer.

    python -m benchmarks.logits_op --rows 1280 --classes 9800 --entries 21
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

import smoothloss.functional as F
from benchmarks.measure import Row, interleaved, markdown, write_json
from smoothloss.testing import eager, make_inputs, oracle, relative_error


def cases(
    rows: int, classes: int, entries: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    """Return the functions to time, all on the same logits."""
    inputs = make_inputs(rows, classes, entries, dtype=dtype, device=device, empty=0.0, ignored=0.0)
    logits = inputs.logits.requires_grad_()
    target, indices = inputs.indices[:, 0].long().contiguous(), inputs.indices
    weights = inputs.weights / inputs.weights.sum(-1, keepdim=True)
    buffer = torch.empty_like(logits)
    doomed = logits.detach().clone().requires_grad_()

    def torch_eager() -> None:
        torch.autograd.grad(torch.nn.functional.cross_entropy(logits, target), logits)

    def hard() -> None:
        torch.autograd.grad(F.cross_entropy(logits, target), logits)

    def soft() -> None:
        torch.autograd.grad(F.sparse_cross_entropy(logits, indices, weights), logits)

    def inplace() -> None:
        # What it computes on from the second run on is a gradient; the work is the same.
        torch.autograd.grad(F.sparse_cross_entropy(doomed, indices, weights, inplace=True), doomed)

    return {
        "torch, hard labels": torch_eager,
        "smoothloss, hard labels": hard,
        f"smoothloss, S = {entries}": soft,
        f"smoothloss, S = {entries}, in place": inplace,
        "floor: copy to a fresh buffer": lambda: logits.detach().clone(),
        "floor: copy to an existing buffer": lambda: buffer.copy_(logits.detach()),
    }


def errors(classes: int, entries: int, dtype: torch.dtype) -> Row:
    """Return the relative errors of loss and gradient against float64, ours and eager PyTorch's."""
    inputs = make_inputs(64, classes, entries, dtype=dtype)
    truth, yardstick = oracle(inputs), eager(inputs)
    logits = inputs.logits.clone().requires_grad_()
    loss = F.sparse_cross_entropy(logits, inputs.indices, inputs.weights, reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    return {
        "loss_error": relative_error(loss, truth.loss),
        "loss_error_eager": relative_error(yardstick.loss, truth.loss),
        "grad_error": relative_error(grad, truth.grad),
        "grad_error_eager": relative_error(yardstick.grad, truth.grad),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float64"])
    parser.add_argument("--rows", type=int, default=1280)
    parser.add_argument("--classes", type=int, default=9800)
    parser.add_argument("--entries", type=int, default=21)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/logits_op.json"))
    arguments = parser.parse_args()
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    shape = {"rows": arguments.rows, "classes": arguments.classes, "entries": arguments.entries}
    functions = cases(*shape.values(), device, dtype)
    timings = interleaved(functions, device, arguments.repeats, warmup=3)
    baseline = timings["torch, hard labels"]["ms"]
    rows: list[Row] = [
        {"what": name, **timings[name], "speedup": baseline / timings[name]["ms"], "dtype": arguments.dtype, **shape}
        for name in functions
    ]
    columns = {"what": "forward + backward", "ms": "ms", "ms_p20": "20 %", "ms_p80": "80 %", "speedup": "times torch"}
    print(markdown(rows, columns))
    accuracy = errors(arguments.classes, arguments.entries, dtype)
    print("relative error against float64:", ", ".join(f"{key} {value:.1e}" for key, value in accuracy.items()))
    write_json(arguments.out, device, [*rows, {"what": "relative errors", **accuracy}])


if __name__ == "__main__":
    main()
