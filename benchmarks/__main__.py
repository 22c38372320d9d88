"""One command for all benchmarks, on whatever machine it is on.

    python -m benchmarks                                    # everything, at the shapes of the device
    python -m benchmarks --suite logits --shapes coco 64x501x32 --dtype bfloat16 --out build/benchmarks

Suites:
    logits  the loss on given logits        linear  the loss with the linear layer
    lazy    what smoothing costs            exact   dense similarity rows with the linear layer
    rewards CIDEr, BLEU, ... of candidates  sampling  what drawing samples costs
    statistics  log-probability and entropy, on given logits and with the linear layer
    distillation, linear_distillation       divergences against a teacher's top-k

Peers that are not installed, or cannot run here, are rows that say why. Every suite writes one JSON file, whole again
after each shape.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import distillation, exact, linear, logits, mle_vs_lazy, rewards, sampling, token_statistics
from benchmarks.contest import Settings, broken, run_suite
from benchmarks.measure import Row, markdown, write_json
from benchmarks.problems import Shape, parse_shape

SUITES: dict[str, Callable[[list[Shape], list[torch.dtype], Settings], list[Row]]] = {
    "logits": functools.partial(run_suite, logits.suite),
    "linear": functools.partial(run_suite, linear.suite),
    "lazy": mle_vs_lazy.run,
    "exact": functools.partial(run_suite, exact.suite),
    "rewards": rewards.run,
    "sampling": sampling.run,
    "statistics": token_statistics.run,
    "distillation": functools.partial(distillation.run, "logits"),
    "linear_distillation": functools.partial(distillation.run, "linear"),
}
SHAPES = {
    "cpu": {
        "logits": ("coco", "30k"),
        "linear": ("coco", "wmt"),
        "lazy": ("coco", "wmt"),
        "exact": ("coco", "wmt"),
        "rewards": ("captions", "samples"),
        "sampling": ("coco",),
        "statistics": ("coco", "2k"),
        "distillation": ("2k",),
        "linear_distillation": ("coco",),
    },
    "cuda": {
        "logits": ("coco", "wmt", "32k", "64k", "llama3", "gemma2"),
        "linear": ("coco", "wmt", "llama3", "gemma2"),
        "lazy": ("coco", "wmt"),
        "exact": ("coco", "wmt"),
        "rewards": ("samples", "captions"),
        "sampling": ("coco",),
        "statistics": ("coco", "wmt", "llama3"),
        "distillation": ("32k", "llama3"),
        "linear_distillation": ("32k", "llama3"),
    },
}
DTYPES = {
    "cpu": {
        "logits": ("float32", "bfloat16"),
        "linear": ("float32",),
        "lazy": ("float32",),
        "exact": ("float32",),
        "rewards": ("int64",),
        "sampling": ("float32",),
        "statistics": ("float32",),
        "distillation": ("float32",),
        "linear_distillation": ("float32",),
    },
    "cuda": {
        "logits": ("bfloat16", "float32"),
        "linear": ("bfloat16",),
        "lazy": ("bfloat16",),
        "exact": ("bfloat16",),
        "rewards": ("int64",),
        "sampling": ("float32",),
        "statistics": ("bfloat16",),
        "distillation": ("bfloat16",),
        "linear_distillation": ("bfloat16",),
    },
}
COLUMNS = {
    "shape": "shape",
    "dtype": "dtype",
    "mode": "mode",
    "what": "what",
    "ms": "ms",
    "ms_p20": "20 %",
    "ms_p80": "80 %",
}
MORE_COLUMNS = {
    "relative_to_mle": "relative to MLE",
    "relative_to_statistics": "to the statistics",
    "speedup": "times faster than the peer",
    "data": "data",
    "peak_mib": "peak MiB",
    "of_floor": "of the floor",
    "gb_per_s": "GB/s",
    "tflops": "TFLOP/s",
    "extra_mib": "extra MiB",
    "launches": "launches",
    "score_error": "difference of scores",
    "loss_error": "error of loss",
    "d_logits_error": "of d logits",
    "d_input_error": "of d input",
    "d_weight_error": "of d weight",
    "setting": "setting",
    "not_run": "not run",
    "not_inspected": "not inspected",
}


def shape(text: str) -> Shape:
    """Return a shape, for argparse, which shows this error's message and no other's."""
    try:
        return parse_shape(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", nargs="+", default=list(SUITES), choices=list(SUITES))
    parser.add_argument("--shapes", nargs="+", type=shape, help="names, or NxVxD; default: by suite and device")
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16", "float16", "float64"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, help="default: 30 to 50 on CUDA, 3 to 30 on a CPU, by the time it takes")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="budget of each suite")
    parser.add_argument("--quick", action="store_true", help="the first shape and dtype of each suite, 3 runs")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), help="folder for the JSON files")
    return parser.parse_args(arguments)


def table(rows: list[Row]) -> str:
    """Return the rows as a table with the columns that any of them fills."""
    used = {key: heading for key, heading in MORE_COLUMNS.items() if any(row.get(key) is not None for row in rows)}
    return markdown(rows, COLUMNS | used)


def run(name: str, shapes: list[Shape], dtypes: list[torch.dtype], settings: Settings, path: Path) -> list[Row]:
    """Run a suite, print its rows, and write them as each shape ends: what is killed later leaves those before."""
    rows: list[Row] = []
    begin = time.perf_counter()
    print(f"\n## {name}", flush=True)
    for shape, dtype in itertools.product(shapes, dtypes):
        left = settings.seconds - (time.perf_counter() - begin)
        found = SUITES[name]([shape], [dtype], settings._replace(seconds=left))
        print(f"\n{table(found)}", flush=True)
        rows += found
        write_json(path, settings.device, rows)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; return 1 when something of ours could not run, else 0."""
    options = parse(arguments)
    device = torch.device(options.device)
    settings = Settings(device, 3 if options.quick and options.repeats is None else options.repeats, options.seconds)
    kind = "cuda" if device.type == "cuda" else "cpu"
    measured: list[Row] = []
    for name in options.suite:
        shapes = options.shapes or [parse_shape(default) for default in SHAPES[kind][name]]
        dtypes = [getattr(torch, dtype) for dtype in options.dtype or DTYPES[kind][name]]
        if options.quick:
            shapes, dtypes = shapes[:1], dtypes[:1]
        measured += run(name, shapes, dtypes, settings, options.out / f"{name}_{device.type}.json")
    return int(any(broken(row) for row in measured))


if __name__ == "__main__":
    raise SystemExit(main())
