"""What a reward costs: CIDEr-D, BLEU-4, ROUGE-L, Hamming and edit distance of a batch of candidates.

    python -m benchmarks --suite rewards --device cpu

A shape NxVxD has N candidates, V words and D references of each input. Shapes:
    captions  5,000 candidates, one of each input; on the CPU beside pycocoevalcap and sacrebleu
    samples   320 candidates, four of each input, beside BLEU from operators of torch

"Prepared" is given candidates as tensors, and references that are packed, with their document frequencies and norms.
"From ids" begins with lists of ids, and "from text" with strings, as the peers do.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import measure, reward_peers
from benchmarks.captions import captions, encoder, pad
from benchmarks.contest import NO_TIME, OURS, PEER, Settings, attempt, note, release
from benchmarks.measure import Row
from benchmarks.problems import Shape
from smoothloss.rewards import Cider, References, edit_distance, hamming, rouge_l, sentence_bleu
from smoothloss.testing import relative_error

CIDER, BLEU, ROUGE, HAMMING, EDITS = "CIDEr-D", "BLEU-4", "ROUGE-L", "Hamming", "edit distance"
OURS_ON_GPU, OURS_IN_GRAPH = "smoothloss", "smoothloss, CUDA graph"
COCO, SACREBLEU = "pycocoevalcap", "sacrebleu"
UNIQUE = "torch unique + bincount, as TensorBLEU"
MODES = (CIDER, BLEU, ROUGE, HAMMING, EDITS)
THREADS = (1, 2)
MAX_UNIQUE = 1000  # candidates: their counts of all distinct n-grams fit in memory
Scores = Callable[[], Tensor]


def ours(how: str, threads: int) -> str:
    """Return the name of a row of ours on the CPU."""
    return f"smoothloss, {how}, {threads} thread{'s' if threads > 1 else ''}"


class Contender(NamedTuple):
    """Something to time.

    Attributes:
        mode: the reward.
        scores: one run.
        same: how we compute the same scores, for the error; None where that is what `scores` does.
        graph: whether the replay of a CUDA graph is timed.
    """

    what: str
    kind: str
    mode: str
    scores: Scores
    same: Scores | None = None
    graph: bool = False


class Problem:
    """One batch on a device, as text and as ids."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.device = device
        self.texts = captions(shape)
        encode = encoder()
        self.token_ids = [[encode(text) for text in given] for given in self.texts.references]
        self.candidate_ids = [encode(text) for sample in self.texts.candidates for text in sample]
        self.references = References(self.token_ids, device=device)
        self.flat_samples, self.flat_lengths = pad(self.candidate_ids, device)
        self.samples = self.flat_samples.unflatten(0, (shape.length, -1))
        self.lengths = self.flat_lengths.unflatten(0, (shape.length, -1))
        self.corpus = Cider(self.references)
        self.corpus.prepare(self.references)
        tokens, lengths = pad([ids for given in self.token_ids for ids in given], device)
        self.reference_tokens = tokens.unflatten(0, (-1, shape.hidden)).repeat(shape.length, 1, 1)  # (C, R, T)
        self.reference_lengths = lengths.unflatten(0, (-1, shape.hidden)).repeat(shape.length, 1)  # (C, R)

    def reward(self, mode: str, **options: object) -> Scores:
        """Return a reward of the prepared batch."""
        functions = {CIDER: self.corpus, BLEU: sentence_bleu, ROUGE: rouge_l, HAMMING: hamming, EDITS: edit_distance}
        return functools.partial(functions[mode], self.samples, self.lengths, self.references, **options)

    def cider_from_ids(self) -> Tensor:
        """Return CIDEr-D of lists of ids, with nothing prepared."""
        references = References(self.token_ids)
        return Cider(references)(self.candidate_ids, None, references)

    def cider_from_text(self) -> Tensor:
        """Return CIDEr-D of strings, with nothing prepared."""
        encode = encoder()
        references = References([[encode(text) for text in given] for given in self.texts.references])
        return Cider(references)([encode(text) for text in self.texts.candidates[0]], None, references)

    def unique_ngrams_bleu(self) -> Tensor:
        """Return BLEU-4 as TensorBLEU computes it."""
        length = max(self.flat_samples.shape[1], self.reference_tokens.shape[2], reward_peers.ORDER)
        fit = [
            torch.nn.functional.pad(tokens, (0, length - tokens.shape[-1]))
            for tokens in (self.flat_samples, self.reference_tokens)
        ]
        return reward_peers.unique_ngrams_bleu(fit[0], self.flat_lengths, fit[1], self.reference_lengths)


def with_threads(threads: int, scores: Scores) -> Scores:
    """Return the function with another number of threads."""

    def run() -> Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return scores()
        finally:
            torch.set_num_threads(before)

    return run


def contenders(problem: Problem) -> list[Contender]:
    """Return who scores this batch on its device."""
    is_cuda = problem.device.type == "cuda"
    found = [contender for mode in MODES for contender in (_on_gpu if is_cuda else _on_cpu)(problem, mode)]
    if len(problem.samples) == 1 and not is_cuda:
        found += _on_text(problem)
    elif len(problem.flat_samples) <= MAX_UNIQUE:
        same = problem.reward(BLEU, smoothing="add-k-all")
        found.append(Contender(UNIQUE, PEER, BLEU, problem.unique_ngrams_bleu, same))
    return found


def _on_cpu(problem: Problem, mode: str) -> list[Contender]:
    scores = problem.reward(mode)
    return [Contender(ours("prepared", threads), OURS, mode, with_threads(threads, scores)) for threads in THREADS]


def _on_gpu(problem: Problem, mode: str) -> list[Contender]:
    scores = problem.reward(mode)
    return [Contender(OURS_ON_GPU, OURS, mode, scores), Contender(OURS_IN_GRAPH, OURS, mode, scores, graph=True)]


def _on_text(problem: Problem) -> list[Contender]:
    found = [
        Contender(ours(how, threads), OURS, CIDER, with_threads(threads, scores))
        for how, scores in (("from ids", problem.cider_from_ids), ("from text", problem.cider_from_text))
        for threads in THREADS
    ]
    for what, mode, function, options in (
        (COCO, CIDER, reward_peers.coco_cider, {}),
        (COCO, BLEU, reward_peers.coco_bleu, {"smoothing": "coco"}),
        (COCO, ROUGE, reward_peers.coco_rouge, {}),
        (SACREBLEU, BLEU, reward_peers.sacrebleu, {"smoothing": "exp"}),
    ):
        scores = functools.partial(function, problem.texts)
        found.append(Contender(what, PEER, mode, scores, problem.reward(mode, **options)))
    return found


def measure_batch(problem: Problem, settings: Settings) -> list[Row]:
    """Time all contenders interleaved; a row for each, whether it ran or not."""
    functions: dict[str, measure.Function] = {}
    rows: list[Row] = []
    for contender in contenders(problem):
        row = {"what": contender.what, "kind": contender.kind, "mode": contender.mode}
        note(f"  {contender.mode}, {contender.what}")
        reason = attempt(functools.partial(_prepare, contender, row, functions, problem.device))
        rows.append(row if reason is None else row | {"not_run": reason})
    most, least = settings.rounds
    seconds = min(settings.seconds, 30.0)
    timings = measure.interleaved(functions, problem.device, most, 0, least=least, seconds=seconds)
    for row in rows:
        row.update(timings.get(_key(row), {}))
    return rows


def _key(row: Row) -> str:
    return f"{row['mode']}, {row['what']}"


def _prepare(contender: Contender, row: Row, functions: dict[str, measure.Function], device: torch.device) -> None:
    """Run once; note what is to be timed, the difference from our scores, and the launches."""
    scores = contender.scores()
    if contender.same is not None:
        row["score_error"] = relative_error(scores.flatten(), contender.same().flatten())
    if device.type == "cuda" and not contender.graph:
        row["launches"] = measure.launches(contender.scores, device)
    functions[_key(row)] = measure.replay(contender.scores) if contender.graph else contender.scores


def add_speedups(rows: list[Row]) -> None:
    """Note how many times faster than the first peer of its reward each row of ours is."""
    peers: dict[str, float] = {}
    for row in rows:
        if row["kind"] == PEER and "ms" in row:
            peers.setdefault(row["mode"], row["ms"])
    for row in rows:
        if row["kind"] == OURS and "ms" in row and row["mode"] in peers:
            row["speedup"] = peers[row["mode"]] / row["ms"]


def run(shapes: list[Shape], dtypes: list[torch.dtype], settings: Settings) -> list[Row]:
    """Return the rows of all shapes; those that the budget leaves no time for say so. Ids are int64."""
    del dtypes
    rows: list[Row] = []
    begin = time.perf_counter()
    for shape in shapes:
        left = settings.seconds - (time.perf_counter() - begin)
        note(f"rewards, {shape.name}")
        head = {"suite": "rewards", **shape.label, "dtype": "int64"}
        if left <= 0:
            rows += [head | {"what": OURS_ON_GPU, "kind": OURS, "mode": mode, "not_run": NO_TIME} for mode in MODES]
            continue
        problem = Problem(shape, settings.device)
        measured = measure_batch(problem, settings._replace(seconds=left))
        add_speedups(measured)
        rows += [head | {"data": problem.texts.source} | row for row in measured]
        release(settings.device)
    return rows
