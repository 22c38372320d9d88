"""What smoothing costs: time and peak memory of MLE, Tok, exact and lazy Seq, lazy Tok-Seq, and of CIDEr as a reward.

For each loss (a) the loss and its backward on given logits, target building included, and (b) a whole training step
of an LSTM language model: sampling, reward, forward, loss, backward, Adam. Exact Seq forwards its L samples too, lazy
does not. Beside the steps stand two of their parts alone: drawing samples, and the reward of 250 of them. On CUDA the
steps are timed as graphs too.

    python -m benchmarks --suite lazy --device cpu --shapes coco
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import smoothloss.functional as F
from benchmarks.contest import NO_TIME, OURS, Settings, attempt, note, release
from benchmarks.measure import Row, interleaved, peak_memory, replay
from benchmarks.problems import Shape
from smoothloss import SimilarityTable
from smoothloss.rewards import Cider, References
from smoothloss.sampling import BatchPool, HammingSampler, Samples, importance_weights

NEIGHBOURS = 20
SPECIAL_TOKENS = (0, 1, 2, 3)
ALPHA, TOKEN_ALPHA = 0.4, 0.3
REWARD_TAU = 0.5
NUM_REFERENCES, NUM_DOCUMENTS = 5, 2000
CANDIDATES = 250  # rewarded together: 50 captions with 5 samples each


class Case(NamedTuple):
    """A loss: its kind, the number of samples, whether these are scored lazily, whether tokens are smoothed.

    With a reward the samples weigh by their CIDEr.
    """

    name: str
    num_samples: int = 0
    lazy: bool = True
    smooth: bool = False
    reward: bool = False

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
    Case("Seq CIDEr, lazy, L = 5", 5, reward=True),
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

    def __init__(self, shape: Shape, device: torch.device, dtype: torch.dtype) -> None:
        """Draw a batch, build a table, make a model."""
        torch.manual_seed(0)
        batch, length, vocabulary = shape.rows // shape.length, shape.length, shape.classes
        self.device, self.dtype, self.vocabulary = device, dtype, vocabulary
        self.target = torch.randint(len(SPECIAL_TOKENS), vocabulary, (batch, length), device=device)
        self.lengths = torch.full((batch,), length, device=device)
        self.table = SimilarityTable.from_embeddings(
            torch.randn(vocabulary, 64), k=NEIGHBOURS, tau=0.1, exclude=SPECIAL_TOKENS
        ).to(device)
        self.sampler = HammingSampler(0.15, pool=BatchPool(exclude=SPECIAL_TOKENS))
        self.cider, self.references = self._rewards()
        self.model = LanguageModel(vocabulary, shape.hidden).to(device)
        on_cuda = device.type == "cuda"
        self.optimizer = torch.optim.Adam(self.model.parameters(), fused=on_cuda, capturable=on_cuda)

    def _rewards(self) -> tuple[Cider, References]:
        """Return document frequencies of random texts, and references of the batch, the ground truths among them."""

        def texts(*size: int) -> Tensor:
            return torch.randint(len(SPECIAL_TOKENS), self.vocabulary, (*size, self.target.shape[1]))

        own = torch.cat((self.target.cpu()[:, None], texts(len(self.target), NUM_REFERENCES - 1)), 1)
        documents = texts(NUM_DOCUMENTS, NUM_REFERENCES)
        return Cider(References(documents.tolist())), References(own.tolist(), device=self.device)

    def sample(self, num_samples: int) -> Samples:
        """Return samples ``(L, B, T)`` around the ground truth."""
        return self.sampler(self.target, self.lengths, num_samples)

    def score(self, tokens: Tensor) -> Tensor:
        """Return the CIDEr of samples ``(L, B', T)`` of the first B' ground truths."""
        count, inputs = tokens.shape[:2]
        references = self.references.select(torch.arange(inputs, device=self.device))
        return self.cider(tokens, self.lengths[:inputs].expand(count, -1), references)

    def draw(self, case: Case) -> tuple[Tensor | None, Tensor | None]:
        """Return samples and their weights ``(L, B)``, None where the loss needs none."""
        if not case.num_samples:
            return None, None
        drawn = self.sample(case.num_samples)
        if not case.reward:
            return drawn.tokens, None
        return drawn.tokens, importance_weights(self.score(drawn.tokens), drawn.log_prob, tau=REWARD_TAU)

    def loss(self, case: Case, logits: Tensor, samples: Tensor | None, weights: Tensor | None) -> Tensor:
        """Return the loss of logits ``(B, T, V)``, or ``(L + 1, B, T, V)`` for an exact one."""
        table = self.table if case.smooth else None
        if samples is None:
            return F.cross_entropy(logits, self.target, table=table, alpha=TOKEN_ALPHA if case.smooth else 0.0)
        function = F.lazy_sequence_cross_entropy if case.lazy else F.sequence_cross_entropy
        token_alpha = TOKEN_ALPHA if case.smooth else 0.0
        return function(logits, self.target, samples, weights, alpha=ALPHA, table=table, token_alpha=token_alpha)

    def loss_and_backward(self, case: Case, logits: Tensor, samples: Tensor | None, weights: Tensor | None) -> None:
        """Run (a)."""
        torch.autograd.grad(self.loss(case, logits, samples, weights), logits)

    def step(self, case: Case) -> None:
        """Run (b)."""
        samples, weights = self.draw(case)
        sequences = self.target
        if samples is not None and not case.lazy:
            sequences = torch.cat((self.target.unsqueeze(0), samples)).flatten(0, 1)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(sequences)
        if not case.lazy:
            logits = logits.unflatten(0, (case.forwards, -1))
        self.loss(case, logits, samples, weights).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def bench_losses(problem: Problem, settings: Settings) -> list[Row]:
    """Return a row of (a) for each case."""
    functions: dict[str, Callable[[], object]] = {}
    for case in CASES:
        shape = (*((case.forwards,) if not case.lazy else ()), *problem.target.shape, problem.vocabulary)
        logits = torch.randn(shape, device=problem.device, dtype=problem.dtype, requires_grad=True)
        functions[case.name] = functools.partial(problem.loss_and_backward, case, logits, *problem.draw(case))
    return collect("loss + backward", functions, settings)


def bench_steps(problem: Problem, settings: Settings) -> list[Row]:
    """Return a row of (b) for each case, and of the parts."""
    functions: dict[str, Callable[[], object]] = {case.name: functools.partial(problem.step, case) for case in CASES}
    candidates = problem.sample(5).tokens[:, : CANDIDATES // 5]
    functions["drawing alone, L = 5"] = functools.partial(problem.sample, 5)
    functions[f"CIDEr of {candidates.shape[:2].numel()} candidates alone"] = functools.partial(
        problem.score, candidates
    )
    return collect("training step", functions, settings)


def bench_graphs(problem: Problem, settings: Settings) -> list[Row]:
    """Return a row of (b) for each case as one CUDA graph, the draw and the rewards in it too; none on a CPU."""
    if problem.device.type != "cuda":
        return []
    replays: dict[str, Callable[[], object]] = {}
    failures: dict[str, str] = {}

    def capture(case: Case) -> None:
        replays[case.name] = replay(functools.partial(problem.step, case))

    for case in CASES:
        reason = attempt(functools.partial(capture, case))
        if reason is not None:
            failures[case.name] = reason
    rows = collect("training step, graph", replays, settings)
    head = {"kind": OURS, "mode": "training step, graph"}
    return rows + [head | {"what": what, "not_run": reason} for what, reason in failures.items()]


def collect(mode: str, functions: dict[str, Callable[[], object]], settings: Settings) -> list[Row]:
    """Time all functions interleaved, then measure the memory of each."""
    most, least = settings.rounds
    device = settings.device
    timings = interleaved(functions, device, most, warmup=1, least=least, seconds=min(settings.seconds, 60.0))
    baseline = timings.get("MLE", {}).get("ms", float("nan"))
    return [
        {"what": name, "kind": OURS, "mode": mode, **timings[name]}
        | {"relative_to_mle": timings[name]["ms"] / baseline, "peak_mib": peak_memory(function, device)}
        for name, function in functions.items()
    ]


def run(shapes: list[Shape], dtypes: list[torch.dtype], settings: Settings) -> list[Row]:
    """Return the rows of (a) and (b) at all shapes and dtypes; those that the budget leaves no time for say so."""
    rows: list[Row] = []
    begin = time.perf_counter()
    for shape in shapes:
        for dtype in dtypes:
            head = {"suite": "lazy", **shape.label, "dtype": str(dtype).removeprefix("torch.")}
            left = settings.seconds - (time.perf_counter() - begin)
            note(f"lazy, {shape.name}, {dtype}")
            if left <= 0:
                rows += [head | {"what": c.name, "kind": OURS, "not_run": NO_TIME} for c in CASES]
                continue
            problem = Problem(shape, settings.device, dtype)
            for bench in (bench_steps, bench_graphs, bench_losses):
                rows += [head | row for row in bench(problem, settings._replace(seconds=left))]
            release(settings.device)
    return rows
