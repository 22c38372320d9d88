"""What drawing samples costs: each sampler with each pool, L = 10 samples of every sentence.

Temperatures are such that about a fifth of the positions is replaced. The floor is one random number a position.

    python -m benchmarks --suite sampling --device cpu --shapes coco
"""

from __future__ import annotations

import functools
import math
import time

import torch

from benchmarks.contest import FLOOR, NO_TIME, OURS, Settings, note, release
from benchmarks.measure import Function, Row, interleaved
from benchmarks.problems import Shape, Vocabulary
from smoothloss import SimilarityTable
from smoothloss.sampling import (
    BatchPool,
    EditSampler,
    HammingSampler,
    Pool,
    ReferencePool,
    SimilarPool,
    UniformPool,
    VocabularyPool,
)

NUM_SAMPLES = 10
NUM_REFERENCES = 5
NEIGHBOURS = 64
REPLACED = 0.2
SPECIAL_TOKENS = (0, 1, 2, 3)
NUMBERS = "random numbers alone"
EXACT = "Hamming, similar, exact"
MODE = f"{NUM_SAMPLES} samples"


class Problem:
    """Sentences of one shape with words drawn by Zipf's law, their references, and all pools."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        """Draw a batch and build the tables."""
        torch.manual_seed(0)
        self.batch, self.length, self.device = shape.rows // shape.length, shape.length, device
        first, size = len(SPECIAL_TOKENS), shape.classes
        # The frequency of a word is the inverse of its rank.
        frequency = 1 / torch.arange(1, size - first + 1, device=device)
        drawn = torch.multinomial(frequency, self.batch * NUM_REFERENCES * self.length, replacement=True)
        self.references = first + drawn.view(self.batch, -1)
        self.target = self.references[:, : self.length].contiguous()
        self.lengths = torch.full((self.batch,), self.length, device=device)
        self.generator = torch.Generator(device).manual_seed(0)
        vectors = Vocabulary(size, device).vectors
        table = functools.partial(
            SimilarityTable.from_embeddings, vectors, k=min(NEIGHBOURS, size // 2), tau=0.1, exclude=SPECIAL_TOKENS
        )
        # Each with about how many substitutes a token has there.
        self.pools: dict[str, tuple[Pool, int]] = {
            "vocabulary": (VocabularyPool(size, SPECIAL_TOKENS), size),
            "batch": (BatchPool(SPECIAL_TOKENS), min(size, shape.rows)),
            "references": (ReferencePool(SPECIAL_TOKENS), min(size, self.references.shape[1])),
            "similar, renormalize": (SimilarPool(table(tail="renormalize"), SPECIAL_TOKENS), NEIGHBOURS),
            "similar, uniform": (SimilarPool(table(tail="uniform"), SPECIAL_TOKENS), size),
            "similar, exact": (SimilarPool(table(tail="exact"), SPECIAL_TOKENS), size),
        }

    def samplers(self) -> dict[str, HammingSampler | EditSampler]:
        """Return every sampler with every pool that it takes."""
        made: dict[str, HammingSampler | EditSampler] = {}
        for name, (pool, count) in self.pools.items():
            tau = 1 / math.log(max(count, 2) * (1 / REPLACED - 1))
            made[f"Hamming, {name}"] = HammingSampler(tau, pool)
            if isinstance(pool, UniformPool):
                made[f"edit, {name}"] = EditSampler(tau, pool)
        return dict(sorted(made.items(), key=lambda item: item[0].startswith("edit")))

    def functions(self) -> dict[str, Function]:
        """Return what is timed."""
        shape = (NUM_SAMPLES, self.batch, self.length)
        numbers = functools.partial(
            torch.rand, shape, dtype=torch.float64, device=self.device, generator=self.generator
        )
        arguments = (self.target, self.lengths, NUM_SAMPLES, self.generator, self.references)
        samplers = {name: functools.partial(sampler, *arguments) for name, sampler in self.samplers().items()}
        return {**samplers, NUMBERS: numbers}


def measure(shape: Shape, settings: Settings) -> list[Row]:
    """Return a row for each sampler and pool."""
    functions = Problem(shape, settings.device).functions()
    most, least = (200, 20) if settings.repeats is None else settings.rounds
    timings: dict[str, Row] = {}
    # The light ones by themselves: what the others leave of the cache is not theirs to pay for.
    edit = [name for name in functions if name.startswith("edit")]
    light = [name for name in functions if name not in (*edit, EXACT)]
    seconds = min(settings.seconds, 40.0)
    for names in (light, edit, [EXACT]):
        part = {name: functions[name] for name in names}
        timings |= interleaved(part, settings.device, most, warmup=3, least=least, seconds=seconds)
    return [
        {"what": name, "kind": FLOOR if name == NUMBERS else OURS, "mode": MODE, **timings[name]} for name in functions
    ]


def run(shapes: list[Shape], dtypes: list[torch.dtype], settings: Settings) -> list[Row]:
    """Return the rows at all shapes; tokens are int64 whatever `dtypes` says."""
    rows: list[Row] = []
    begin = time.perf_counter()
    for shape in shapes:
        head = {"suite": "sampling", **shape.label, "dtype": "int64"}
        left = settings.seconds - (time.perf_counter() - begin)
        note(f"sampling, {shape.name}")
        if left <= 0:
            rows.append(head | {"what": NUMBERS, "kind": FLOOR, "mode": MODE, "not_run": NO_TIME})
            continue
        rows += [head | row for row in measure(shape, settings._replace(seconds=left))]
        release(settings.device)
    return rows
