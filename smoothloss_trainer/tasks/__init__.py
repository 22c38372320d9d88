"""What a task is: data, a model, and how its outputs are scored. The loop, the losses and the search know only this.

A task is a subclass of :class:`Task`, its model a subclass of :class:`SequenceModel`. :data:`TASKS` names them; they
are imported when a recipe asks for them.
"""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from smoothloss.rewards import References
from smoothloss_trainer.config import Recipe
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.vocabulary import BOS, PAD, SPECIAL_TOKENS, Vocabulary

TASKS = {
    "translation": "smoothloss_trainer.tasks.translation:TranslationTask",
    "captioning": "smoothloss_trainer.tasks.captioning:CaptioningTask",
    "demo": "smoothloss_trainer.demo:DemoTask",
}

Picture = np.ndarray[Any, np.dtype[np.uint8]]  # (H, W, 3) RGB
State = Any  # a tensor whose first dimension is the batch, or any nesting of (named) tuples of such tensors


def select_rows(state: State, index: Tensor) -> State:
    """``state[index]`` in every tensor of a nesting of (named) tuples; None stays None."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        return state.index_select(0, index)
    parts = [select_rows(part, index) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def map_tensors(function: Any, state: State) -> State:
    """``function`` applied to every tensor of a nesting of (named) tuples; None stays None."""
    if state is None or isinstance(state, Tensor):
        return None if state is None else function(state)
    parts = [map_tensors(function, part) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


class SequenceModel(nn.Module, ABC):
    """A model that writes a sequence of tokens about its source.

    ``memory`` is what the encoder hands to the decoder, ``state`` what the decoder carries from step to step (the
    memory included): nestings of tuples of tensors, batch first, so that :func:`select_rows` repeats and reorders both.
    ``classifier`` is the last layer, hidden (D) to vocabulary (V).
    """

    classifier: nn.Linear

    @abstractmethod
    def encode(self, *source: Tensor) -> State:
        """The memory of a batch's source tensors."""

    @abstractmethod
    def decode(self, memory: State, inputs: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Teacher forcing: hidden states (B, T, D) for input tokens (B, T), ready for ``classifier``.

        Args:
            memory: What :meth:`encode` gave.
            inputs: The tokens.
            lengths: (B,) on the CPU: how many states of each row are wanted; what the others hold is open. None: all.
        """

    @abstractmethod
    def initial_state(self, memory: State) -> State:
        """The decoder's state before the first token."""

    @abstractmethod
    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits (B, V) and the next state after reading ``tokens`` (B,)."""


@dataclass(frozen=True)
class Batch:
    """A training or validation batch.

    Args:
        source: What ``model.encode`` is called with.
        target: (B, T) tokens, EOS after the last word, then PAD.
        lengths: (B,) number of words, EOS not counted.
        source_index: (B,) the source row each target belongs to, when several targets share one source; None: one each.
        references: (B, R) tokens of all ground truths of each row's input, padded with PAD, for the ``references``
            pool; None: the task has one ground truth per input, the target.
        inputs: (B,) numbers of the rows' inputs in :meth:`Task.training_references`; None outside training.
    """

    source: tuple[Tensor, ...]
    target: Tensor
    lengths: Tensor
    source_index: Tensor | None = None
    references: Tensor | None = None
    inputs: Tensor | None = None

    @property
    def parts(self) -> tuple[State, ...]:
        """What it was made of, in order."""
        return tuple(getattr(self, name) for name in self.__dataclass_fields__)

    @property
    def decoder_inputs(self) -> Tensor:
        """(B, T) what teacher forcing reads: BOS and the target less its last position."""
        return shift_right(self.target)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Batch:
        """The batch on another device; with a dtype, numbers that are no integers in that."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else None, non_blocking=True)

        return replace(self, **{name: map_tensors(move, getattr(self, name)) for name in self.__dataclass_fields__})


def shift_right(target: Tensor) -> Tensor:
    """``cat([BOS, target[..., :-1]])``: the decoder's inputs for a target (..., T)."""
    shifted = torch.roll(target, 1, -1)
    shifted[..., 0] = BOS
    return shifted


def round_up(size: int, multiple: int) -> int:
    """The least multiple that is not below a size."""
    return -(-size // multiple) * multiple


def pad_rows(rows: Sequence[Sequence[int]], *, pad: int = PAD, multiple: int = 1) -> Tensor:
    """(B, T) int64 from lists of token ids of different lengths, T being a multiple of ``multiple``."""
    width = round_up(max(map(len, rows), default=0), multiple)
    return torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], dtype=torch.int64).view(len(rows), width)


class Input(NamedTuple):
    """An input and what people wrote about it.

    Args:
        name: Its id.
        references: Tokens joined by spaces.
        source: The input itself, where it is text.
        file: The name of its file, where it has one.
    """

    name: str
    references: list[str]
    source: str | None = None
    file: str | None = None


class Task(ABC):
    """Data, model and scores of one kind of problem.

    Reading the data happens in ``__init__``, so that whatever is missing is said before training starts (as
    :class:`~smoothloss_trainer.errors.RecipeError`, one line). Vocabularies are built from the training part, or taken
    as given when a run is opened again.
    """

    data_config: ClassVar[type]  # the dataclass of the recipe's data: section
    model_config: ClassVar[type]  # the dataclass of the recipe's model: section
    metric: ClassVar[str]  # the key of `score` that chooses the best checkpoint; higher is better
    # The splits that a finished run is scored on, none with `training.test` false; "validation" is there besides.
    test_splits: Sequence[str]

    reader: ClassVar[type[Reader] | None] = None  # what reads new input for a trained model; None: nothing does

    recipe: Recipe
    vocabularies: dict[str, Vocabulary]  # "target" is the one the loss and the search work on

    @classmethod  # noqa: B027 (a task may have nothing to refuse)
    def check(cls, recipe: Recipe) -> None:
        """Refuse keys that contradict each other, before any data are read.

        Raises:
            RecipeError: naming them.
        """

    @classmethod
    def without_test(cls, data: dict[str, Any]) -> dict[str, Any]:
        """The plain values of a recipe's data section, less what names files that only test splits need."""
        return data

    @abstractmethod
    def __init__(self, recipe: Recipe, vocabularies: dict[str, Vocabulary] | None = None) -> None: ...

    @property
    def vocabulary(self) -> Vocabulary:
        """The target vocabulary."""
        return self.vocabularies["target"]

    @abstractmethod
    def build_model(self) -> SequenceModel:
        """A freshly initialised model (torch's global generator has been seeded)."""

    @abstractmethod
    def target_sentences(self) -> Iterable[Sequence[str]]:
        """The training part's target sentences as words: what GloVe is trained on."""

    @abstractmethod
    def train_plan(self, epoch: int) -> Sequence[Sequence[int]]:
        """The example numbers of every batch of an epoch, in order: a function of the seed and the epoch alone."""

    @abstractmethod
    def train_batch(self, examples: Sequence[int]) -> Batch:
        """The training batch of these examples."""

    @abstractmethod
    def training_references(self) -> References:
        """The ground truths of every training input as tokens, EOS not among them: what rewards compare with."""

    @abstractmethod
    def validation_batches(self) -> Iterable[Batch]:
        """Batches of the validation part, for its loss per token."""

    @abstractmethod
    def sources(self, split: str, batch_size: int) -> Iterable[tuple[list[str], tuple[Tensor, ...]]]:
        """The inputs of a split to generate for: batches of (ids, source tensors). Ids are unique strings.

        Raises:
            RecipeError: when the recipe has no such split.
        """

    @abstractmethod
    def score(self, split: str, hypotheses: dict[str, str]) -> dict[str, float | str]:
        """Metrics, :attr:`metric` among them, of generated text (tokens joined by spaces) by id.

        Strings are signatures.
        """

    @abstractmethod
    def statistics(self, split: str, hypotheses: dict[str, str]) -> Tensor:
        """``(N, K)`` what :attr:`metric` adds up over the N inputs of a split, in a fixed order."""

    @staticmethod
    @abstractmethod
    def metric_of(totals: Tensor) -> Tensor:
        """:attr:`metric`, ``(...)``, of summed statistics ``(..., K)``."""

    @abstractmethod
    def inputs(self, split: str) -> list[Input]:
        """The inputs of a split as a person would read them."""

    def sizes(self) -> dict[str, int]:
        """How many inputs each part has, ``train`` first; left to itself, ``train`` has what makes up an epoch."""
        others = {split: len(self.inputs(split)) for split in ("validation", *self.test_splits)}
        return {"train": sum(map(len, self.train_plan(0))), **others}

    def picture(self, name: str) -> Path | Picture | None:
        """What is to be seen of an input of this id: an image file, or (H, W, 3) RGB; None: nothing."""
        return None

    @abstractmethod
    def examples(self, part: str) -> Iterable[bytes]:
        """The examples of ``train`` or a split in order, as bytes that nothing else has a part in.

        Not the paths of their files, nor how these are compressed, nor the machine.
        """

    def fingerprint(self, part: str) -> str:
        """The sha256 of :meth:`examples`, in hexadecimal; of ``vocabulary.<name>`` that of its words in their order."""
        digest = hashlib.sha256()
        kind, _, name = part.partition(".")
        known = self.vocabularies.get(name) if kind == "vocabulary" else None
        if known is not None:
            model = None if known.bpe is None else known.bpe.serialize()
            digest.update(json.dumps([known.words, model]).encode())
            return digest.hexdigest()
        for example in self.examples(part):
            digest.update(len(example).to_bytes(8, "little") + example)
        return digest.hexdigest()

    def detokenized(self, split: str, hypotheses: dict[str, str]) -> tuple[list[str], list[str]] | None:
        """Generated text and references as people write them, in the order of the inputs.

        None where the task knows no raw text.
        """
        return None

    def exports(self, split: str, hypotheses: dict[str, str]) -> dict[str, Any]:
        """Further files of JSON that generated text is written to, by name: what a test server takes, say."""
        return {}

    def notes(self) -> dict[str, Any]:
        """What a run keeps of its data, as JSON, so that its :attr:`reader` can do without them."""
        return {}


class Reader(ABC):
    """Reads new input as the training part of a run was read, and writes outputs as text. It needs no data of the run.

    Args:
        recipe: The run's.
        vocabularies: The run's.
        notes: What :meth:`Task.notes` gave when the run was trained.
    """

    def __init__(self, recipe: Recipe, vocabularies: dict[str, Vocabulary], notes: dict[str, Any]) -> None:
        self.recipe, self.vocabularies, self.notes = recipe, vocabularies, notes

    @abstractmethod
    def build_model(self, weights: Mapping[str, Tensor]) -> SequenceModel:
        """A model of the sizes of these weights, which are put into it afterwards."""

    @abstractmethod
    def tensors(self, inputs: Sequence[Any]) -> tuple[Tensor, ...]:
        """The source tensors of a batch of inputs."""

    def difference(self, other: Reader) -> str | None:
        """What the runs of two readers do differently, so that their models cannot write one text together."""
        if type(self) is not type(other):
            return "tasks"
        for name, vocabulary in self.vocabularies.items():
            words = other.vocabularies[name].words if name in other.vocabularies else None
            if vocabulary.words != words:
                return f"{name} vocabularies"
        return None

    def words(self, tokens: Sequence[int]) -> str:
        """Words with spaces between them, on one line."""
        return " ".join(" ".join(self.vocabularies["target"].decode(tokens)).split())

    def text(self, tokens: Sequence[int]) -> str:
        """Text as people write it, where it is known how, on one line."""
        return self.words(tokens)


def check_vocabulary(vocabulary: Vocabulary, min_count: int) -> None:
    """Refuse a vocabulary of special tokens alone.

    Raises:
        RecipeError: naming the key that made it so.
    """
    if len(vocabulary) <= len(SPECIAL_TOKENS):
        raise RecipeError(f"data.min_count {min_count} leaves no word of the training text in the vocabulary")


def check_fits(build: Callable[[], nn.Module]) -> None:
    """Refuse a model whose weights, gradients and moments of Adam this machine cannot hold.

    Args:
        build: Makes the model; it is made without memory here.

    Raises:
        RecipeError: saying how much it needs.
    """
    try:
        with torch.device("meta"):
            needed = 4 * sum(weight.nbytes for weight in build().parameters())
    except RuntimeError as error:  # sizes beyond 64 bits
        raise RecipeError(f"model: no such sizes: {' '.join(str(error).split())[:200]}") from None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        parts = f"{needed / 2**30:,.1f} GiB for weights, gradients and moments"
        raise RecipeError(f"model: its sizes need {parts}, and this machine has {memory / 2**30:,.1f} GiB")


def task_class(name: str) -> type[Task]:
    """The task of this name.

    Raises:
        RecipeError: when there is none.
    """
    if not isinstance(name, str) or name not in TASKS:
        raise RecipeError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    module, _, attribute = TASKS[name].partition(":")
    kind: type[Task] = getattr(import_module(module), attribute)
    return kind
