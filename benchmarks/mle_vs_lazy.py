"""What smoothing costs: time and peak memory of MLE, Tok, exact and lazy Seq, lazy Tok-Seq.

For each loss (a) the loss and its backward on given logits, target building included, and (b) a whole training step
of an LSTM language model: sampling, forward, loss, backward, Adam. Exact Seq forwards its L samples too, lazy does not.

    python -m benchmarks.mle_vs_lazy --device cpu --shapes coco --out benchmarks/results/mle_vs_lazy_cpu
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import smoothloss.functional as F
from benchmarks.measure import Row, interleaved, markdown, peak_memory, write_json
from smoothloss import SimilarityTable
from smoothloss.sampling import BatchPool, HammingSampler

SHAPES = {"coco": (80, 16, 9800, 512), "wmt": (80, 32, 30000, 1024)}  # B, T, V, D
NEIGHBOURS = 20
SPECIAL_TOKENS = (0, 1, 2, 3)
ALPHA, TOKEN_ALPHA = 0.4, 0.3


class Case(NamedTuple):
    """A loss: its kind, the number of samples, whether they are scored lazily, whether tokens are smoothed."""

    name: str
    num_samples: int = 0
    lazy: bool = True
    smooth: bool = False

    @property
    def forwards(self) -> int:
        """How many sequences go through the model for each ground truth."""
        return 1 if self.lazy else 1 + self.num_samples


CASES = [
    Case("MLE"),
    Case("Tok", smooth=True),
    Case("Seq, exact, L = 1", 1, lazy=False),
    Case("Seq, exact, L = 5", 5, lazy=False),
    Case("Seq, lazy, L = 1", 1),
    Case("Seq, lazy, L = 5", 5),
    Case("Seq, lazy, L = 10", 10),
    Case("Tok-Seq, lazy, L = 1", 1, smooth=True),
    Case("Tok-Seq, lazy, L = 5", 5, smooth=True),
    Case("Tok-Seq, lazy, L = 10", 10, smooth=True),
]


class LanguageModel(nn.Module):
    """An LSTM that predicts the next token."""

    def __init__(self, vocabulary: int, size: int) -> None:
        """Make a model with embeddings and states of one size."""
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, size)
        self.lstm = nn.LSTM(size, size, batch_first=True)
        self.classifier = nn.Linear(size, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of teacher forcing on tokens ``(B, T)``."""
        shifted = torch.nn.functional.pad(tokens, (1, -1), value=SPECIAL_TOKENS[1])
        logits: Tensor = self.classifier(self.lstm(self.embedding(shifted))[0])
        return logits


class Problem:
    """Random data at one shape, and everything the losses need."""

    def __init__(self, shape: tuple[int, int, int, int], device: torch.device, dtype: torch.dtype) -> None:
        """Draw a batch, build a table, make a model."""
        torch.manual_seed(0)
        batch, length, vocabulary, size = shape
        self.device, self.dtype, self.vocabulary = device, dtype, vocabulary
        self.target = torch.randint(len(SPECIAL_TOKENS), vocabulary, (batch, length), device=device)
        self.lengths = torch.full((batch,), length, device=device)
        self.table = SimilarityTable.from_embeddings(
            torch.randn(vocabulary, 64), k=NEIGHBOURS, tau=0.1, exclude=SPECIAL_TOKENS
        ).to(device)
        self.sampler = HammingSampler(0.15, pool=BatchPool(exclude=SPECIAL_TOKENS))
        self.generator = torch.Generator(device).manual_seed(0)
        self.model = LanguageModel(vocabulary, size).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), fused=device.type == "cuda")

    def draw(self, case: Case) -> Tensor | None:
        """Return samples ``(L, B, T)`` around the ground truth, None where the loss needs none."""
        if not case.num_samples:
            return None
        return self.sampler(self.target, self.lengths, case.num_samples, self.generator).tokens

    def loss(self, case: Case, logits: Tensor, samples: Tensor | None) -> Tensor:
        """Return the loss of logits ``(B, T, V)``, or ``(L + 1, B, T, V)`` for an exact one."""
        table = self.table if case.smooth else None
        if samples is None:
            return F.cross_entropy(logits, self.target, table=table, alpha=TOKEN_ALPHA if case.smooth else 0.0)
        function = F.lazy_sequence_cross_entropy if case.lazy else F.sequence_cross_entropy
        token_alpha = TOKEN_ALPHA if case.smooth else 0.0
        return function(logits, self.target, samples, alpha=ALPHA, table=table, token_alpha=token_alpha)

    def loss_and_backward(self, case: Case, logits: Tensor, samples: Tensor | None) -> None:
        """Run (a)."""
        torch.autograd.grad(self.loss(case, logits, samples), logits)

    def step(self, case: Case) -> None:
        """Run (b)."""
        samples = self.draw(case)
        sequences = self.target
        if samples is not None and not case.lazy:
            sequences = torch.cat((self.target.unsqueeze(0), samples)).flatten(0, 1)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(sequences)
        if not case.lazy:
            logits = logits.unflatten(0, (case.forwards, -1))
        self.loss(case, logits, samples).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def bench_losses(problem: Problem, repeats: int) -> list[Row]:
    """Return a row of (a) for each case."""
    functions: dict[str, Callable[[], object]] = {}
    for case in CASES:
        shape = (*((case.forwards,) if not case.lazy else ()), *problem.target.shape, problem.vocabulary)
        logits = torch.randn(shape, device=problem.device, dtype=problem.dtype, requires_grad=True)
        functions[case.name] = functools.partial(problem.loss_and_backward, case, logits, problem.draw(case))
    return collect("loss + backward", functions, problem.device, repeats)


def bench_steps(problem: Problem, repeats: int) -> list[Row]:
    """Return a row of (b) for each case."""
    functions = {case.name: functools.partial(problem.step, case) for case in CASES}
    return collect("training step", functions, problem.device, repeats)


def collect(what: str, functions: dict[str, Callable[[], object]], device: torch.device, repeats: int) -> list[Row]:
    """Time all functions interleaved, then measure the memory of each."""
    timings = interleaved(functions, device, repeats)
    baseline = timings["MLE"]["ms"]
    return [
        {"what": what, "loss": name, **timings[name], "relative_to_mle": timings[name]["ms"] / baseline}
        | {"peak_mib": peak_memory(function, device)}
        for name, function in functions.items()
    ]


def plot(rows: list[Row], path: Path) -> None:
    """Draw the time of every loss relative to MLE's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    groups = list(dict.fromkeys((row["shape"], row["what"]) for row in rows))
    figure, axes = plt.subplots(1, len(groups), figsize=(5 * len(groups), 3.6), squeeze=False, sharey=True)
    for axis, (shape, what) in zip(axes[0], groups, strict=True):
        chosen = [row for row in rows if (row["shape"], row["what"]) == (shape, what)][::-1]
        bars = axis.barh([row["loss"] for row in chosen], [row["relative_to_mle"] for row in chosen], color="#4878a8")
        axis.bar_label(bars, [f"{row['ms']:.1f} ms" for row in chosen], padding=3, fontsize=8)
        axis.axvline(1.0, color="#888888", linewidth=0.8)
        axis.margins(x=0.25)
        axis.set_title(f"{shape}: {what}", fontsize=10)
        axis.set_xlabel("time relative to MLE")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Measure, print the table, write JSON and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default=None, choices=["float32", "bfloat16"], help="default: bfloat16 on CUDA")
    parser.add_argument("--shapes", nargs="+", default=["coco", "wmt"], choices=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=None, help="default: 30 on CUDA; 15 (coco), 3 (wmt) on CPU")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/mle_vs_lazy"), help="path without ending")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    dtype = getattr(torch, arguments.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    rows: list[Row] = []
    for name in arguments.shapes:
        repeats = arguments.repeats or (30 if device.type == "cuda" else {"coco": 15, "wmt": 3}[name])
        problem = Problem(SHAPES[name], device, dtype)
        for bench in (bench_losses, bench_steps):
            rows += [{"shape": name, "dtype": str(dtype)[6:]} | row for row in bench(problem, repeats)]
    columns = {"shape": "shape", "what": "what", "loss": "loss", "ms": "ms", "ms_p20": "20 %", "ms_p80": "80 %"}
    columns |= {"relative_to_mle": "relative to MLE", "peak_mib": "peak MiB"}
    print(markdown(rows, columns))
    write_json(arguments.out.with_suffix(".json"), device, rows)
    plot(rows, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
