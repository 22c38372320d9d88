"""What the contenders compute on: shapes, random inputs, the targets, and float64 oracles for the errors."""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from smoothloss import SimilarityTable
from smoothloss.backends.common import RowOptions
from smoothloss.similarity import TailMode
from smoothloss.testing import dense_loss, dense_target, relative_error

HARD, SIMILAR = "hard labels", "similarity rows"
# -log p of the target, less a share of the entropy: what a policy gradient is made of.
POLICY, POLICY_ENTROPY = "log-probability and entropy", 0.01
ENTRIES = (21, 64)
ALPHA, TAU, NEIGHBOURS = 0.4, 0.18, 20
VECTOR_SIZE = 300
LARGEST_MATRIX = 4 * 2**30  # bytes of a dense (V, V) matrix that is still built: V up to 32,768 in float32


class Shape(NamedTuple):
    """N rows (sequences of `length` positions), V classes, D hidden units; `rnn`: small enough to be launch-bound."""

    name: str
    rows: int
    classes: int
    hidden: int
    length: int = 1
    rnn: bool = False

    @property
    def label(self) -> dict[str, object]:
        """Return what identifies the shape in a row of results."""
        return {"shape": self.name, "rows": self.rows, "classes": self.classes, "hidden": self.hidden}


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("coco", 1280, 9800, 512, 16, rnn=True),
        Shape("wmt", 2560, 30000, 1024, 32, rnn=True),
        Shape("30k", 2048, 30000, 1024, 32),
        Shape("2k", 2048, 32000, 1024, 32),
        Shape("32k", 8192, 32768, 4096, 32),
        Shape("64k", 8192, 65536, 4096, 32),
        Shape("llama3", 8192, 128256, 4096, 32),
        Shape("gemma2", 8192, 256000, 2304, 32),
        # Of the rewards: candidates, words, references of an input; `length` candidates of each input.
        Shape("captions", 5000, 9800, 5),
        Shape("samples", 320, 9800, 5, 4),
    )
}


def parse_shape(text: str) -> Shape:
    """Return a shape by its name, or from ``NxVxD``.

    Raises:
        ValueError: neither.
    """
    if text in SHAPES:
        return SHAPES[text]
    sizes = text.split("x")
    if len(sizes) != 3 or not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise ValueError(f"shape: got {text!r}, expected one of {', '.join(SHAPES)}, or NxVxD")
    rows, classes, hidden = map(int, sizes)
    return Shape(text, rows, classes, hidden, length=4 if rows % 4 == 0 else 1, rnn=True)


def small(shape: Shape) -> Shape:
    """Return a shape for measuring errors: at most 1,024 rows and 512 hidden units, and the same V / D."""
    hidden = min(shape.hidden, 512)
    classes = min(shape.classes, max(8, shape.classes * hidden // shape.hidden // 8 * 8))
    return Shape(f"{shape.name}, small", min(shape.rows, 1024), classes, hidden)


class NotRunnableError(Exception):
    """Why a contender cannot run here."""


class Vocabulary:
    """What all batches share: word vectors, tables, the dense matrix of similarities, and settings that were tuned.

    Attributes:
        tuned: the setting that was found fastest, by the name of the peer.
    """

    def __init__(self, classes: int, device: torch.device) -> None:
        self.classes, self.device = classes, device
        self.tuned: dict[str, str] = {}
        self._tables: dict[str, SimilarityTable] = {}

    @functools.cached_property
    def vectors(self) -> Tensor:
        """Word vectors of length 1, ``(V, 300)``."""
        generator = torch.Generator(self.device).manual_seed(1)
        vectors = torch.randn(self.classes, VECTOR_SIZE, device=self.device, generator=generator)
        return vectors / vectors.norm(dim=-1, keepdim=True)

    @functools.cached_property
    def matrix(self) -> Tensor:
        """The dense cosines, ``(V, V)`` float32: what the authors' code loads from a file."""
        nbytes = 4 * self.classes**2
        if nbytes > LARGEST_MATRIX:
            raise NotRunnableError(f"its dense (V, V) matrix would take {nbytes / 2**30:.0f} GiB")
        return self.vectors @ self.vectors.T

    def table(self, tail: TailMode) -> SimilarityTable:
        """Return the table of the vectors with 20 neighbours."""
        if tail not in self._tables:
            k = min(NEIGHBOURS, self.classes)
            self._tables[tail] = SimilarityTable.from_embeddings(self.vectors, k=k, tau=TAU, tail=tail)
        return self._tables[tail]


class Problem:
    """One batch: the differentiable inputs and all targets.

    Attributes:
        kind: "logits" or "linear".
        inputs: ``(logits (N, V),)``, or ``(hidden (N, D), weight (V, D))``; they require grad.
        target: ``(N,)`` int64, drawn by Zipf's law like words.
        sparse: for each S the indices ``(N, S)`` int32 and weights ``(N, S)`` float32, which sum to one.
    """

    def __init__(
        self,
        kind: Literal["logits", "linear"],
        shape: Shape,
        dtype: torch.dtype,
        vocabulary: Vocabulary,
        seed: int = 0,
    ) -> None:
        self.kind, self.shape, self.dtype, self.vocabulary = kind, shape, dtype, vocabulary
        self.device = vocabulary.device
        self._generator = torch.Generator(self.device).manual_seed(seed)
        if kind == "logits":
            self.inputs: tuple[Tensor, ...] = (self._random(shape.rows, shape.classes, 3.0),)
        else:
            hidden = self._random(shape.rows, shape.hidden, 1.0)
            self.inputs = hidden, self._random(shape.classes, shape.hidden, 3.0 * shape.hidden**-0.5)
        frequency = 1 / torch.arange(3, shape.classes + 3, device=self.device)
        self.target = torch.multinomial(frequency, shape.rows, replacement=True, generator=self._generator)
        self.sparse = {entries: self._sparse(entries) for entries in ENTRIES}

    def _random(self, rows: int, columns: int, scale: float) -> Tensor:
        values = torch.empty(rows, columns, device=self.device, dtype=self.dtype)
        return values.normal_(0.0, scale, generator=self._generator).requires_grad_()

    def _sparse(self, entries: int) -> tuple[Tensor, Tensor]:
        size = (self.shape.rows, entries)
        indices = torch.randint(self.shape.classes, size, device=self.device, generator=self._generator)
        scores = torch.empty(size, device=self.device).normal_(generator=self._generator)
        return indices.int(), scores.softmax(-1)

    def logits(self) -> Tensor:
        """Return the logits, computed from the hidden states where these are the inputs."""
        return self.inputs[0] if self.kind == "logits" else torch.nn.functional.linear(*self.inputs)

    def dense(self, entries: int) -> Tensor:
        """Return a sparse target as class probabilities ``(N, V)`` in the dtype of the inputs."""
        indices, weights = self.sparse[entries]
        zeros = torch.zeros(self.shape.rows, self.shape.classes, device=self.device)
        return zeros.scatter_add_(1, indices.long(), weights).to(self.dtype)

    def oracle(self, target: str) -> tuple[Tensor, ...]:
        """Return mean loss and gradients in float64 against a target: HARD, POLICY, SIMILAR, or ``soft(entries)``."""
        wide = [tensor.detach().double().requires_grad_() for tensor in self.inputs]
        logits = wide[0] if self.kind == "logits" else wide[0] @ wide[1].T
        options = RowOptions(entropy=POLICY_ENTROPY if target == POLICY else 0.0)
        loss = dense_loss(logits, self._target64(target), options).mean()
        return loss.detach(), *torch.autograd.grad(loss, wide)

    def _target64(self, target: str) -> Tensor:
        one_hot = torch.nn.functional.one_hot(self.target, self.shape.classes).double()
        if target in (HARD, POLICY):
            return one_hot
        if target == SIMILAR:
            return (1 - ALPHA) * one_hot + ALPHA * self.vocabulary.table("exact").rows(self.target, dtype=torch.float64)
        entries = next(entries for entries in ENTRIES if soft(entries) == target)
        return dense_target(*self.sparse[entries], None, self.shape.classes)


def soft(entries: int) -> str:
    """Return the name of the sparse target of S entries."""
    return f"S = {entries}"


def errors(problem: Problem, target: str, actual: tuple[Tensor, ...]) -> dict[str, float]:
    """Return the relative errors of ``(loss, *gradients)`` against the oracle."""
    names = ("loss", "d_logits") if problem.kind == "logits" else ("loss", "d_input", "d_weight")
    expected = problem.oracle(target)
    return {f"{name}_error": relative_error(a, e) for name, a, e in zip(names, actual, expected, strict=True)}
