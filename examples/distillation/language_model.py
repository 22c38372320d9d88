"""A language model of words in plain PyTorch: an LSTM, its training, and how well it predicts."""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from smoothloss import SimilarityTable
from smoothloss.distillation import Teacher, TeacherCache
from smoothloss_trainer.checkpoint import (
    flatten_optimizer,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
    with_prefix,
    without_prefix,
)
from smoothloss_trainer.errors import RunError
from smoothloss_trainer.vocabulary import EOS, PAD

BATCH, DROPOUT, CLIP = 32, 0.1, 1.0
RATE_BY_WIDTH, LARGEST_RATE = 1.024, 1e-2  # of Adam at the start: 2e-3 for 512 units, 8e-3 for 128
CHECKPOINT_STEPS = 200
IGNORED = -100


class Text(NamedTuple):
    """Sentences as tokens, EOS at their ends."""

    sentences: list[list[int]]

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs and labels ``(B, T)`` of some sentences; in padding labels are ignored."""
        chosen = [torch.tensor(self.sentences[number]) for number in numbers]
        labels = nn.utils.rnn.pad_sequence(chosen, batch_first=True, padding_value=IGNORED)
        inputs = torch.cat((torch.full((len(chosen), 1), EOS), labels[:, :-1]), 1)
        return inputs.where(inputs >= 0, PAD), labels

    def batches(self, shuffler: random.Random | None = None) -> list[list[int]]:
        """The numbers of all sentences in batches: in their own order, or shuffled, those of like length together."""
        order = list(range(len(self.sentences)))
        if shuffler is not None:
            shuffler.shuffle(order)
            order = [number for part in _parts(order, 50 * BATCH) for number in sorted(part, key=self._length)]
        cut = _parts(order, BATCH)
        if shuffler is not None:
            shuffler.shuffle(cut)
        return cut

    def _length(self, number: int) -> int:
        return len(self.sentences[number])


def _parts(order: list[int], size: int) -> list[list[int]]:
    return [order[begin : begin + size] for begin in range(0, len(order), size)]


class LanguageModel(nn.Module):
    """An LSTM whose classifier shares the embedding's weights."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.dropout = nn.Dropout(DROPOUT)
        self.bias = nn.Parameter(torch.zeros(words))

    def forward(self, inputs: Tensor) -> Tensor:
        """Hidden states ``(B, T, width)``."""
        return self.dropout(self.lstm(self.dropout(self.embedding(inputs)))[0])

    def logits(self, inputs: Tensor) -> Tensor:
        """``(B, T, V)``."""
        return nn.functional.linear(self(inputs), self.embedding.weight, self.bias)

    @property
    def parameter_count(self) -> int:
        """How many numbers it learns."""
        return sum(parameter.numel() for parameter in self.parameters())


class Step(NamedTuple):
    """What a loss may look at. The logits would be ``linear(hidden, weight, bias)``; no loss here needs them."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor
    labels: Tensor
    teacher: Teacher | None
    table: SimilarityTable | None


Loss = Callable[[Step], Tensor]


def train(
    model: LanguageModel,
    text: Text,
    loss: Loss,
    epochs: int,
    seed: int,
    *,
    cache: TeacherCache | None = None,
    table: SimilarityTable | None = None,
    checkpoint: Path | None = None,
) -> None:
    """Train with Adam, the rate falling to 0; goes on from a checkpoint, and leaves one now and then.

    Raises:
        RunError: The loss is not finite.
    """
    shuffler = random.Random(seed)
    steps = [numbers for _ in range(epochs) for numbers in text.batches(shuffler)]
    rate = min(RATE_BY_WIDTH / model.embedding.embedding_dim, LARGEST_RATE)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    model.train()
    for step in range(_resume(checkpoint, model, optimizer), len(steps)):
        torch.manual_seed(1_000_003 * seed + step)  # dropout, the same after an interruption
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / len(steps))
        inputs, labels = text.batch(steps[step])
        teacher = None if cache is None else cache.batch(steps[step], pad=(labels.shape[1], None))
        value = loss(Step(model(inputs), model.embedding.weight, model.bias, labels, teacher, table))
        if not value.isfinite():
            raise RunError(f"the loss is {value.item()} at step {step}")
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        if checkpoint is not None and ((step + 1) % CHECKPOINT_STEPS == 0 or step + 1 == len(steps)):
            _save(checkpoint, model, optimizer, step + 1)
            say(f"{checkpoint.stem}: step {step + 1} of {len(steps)}, loss {value.item():.3f}")


def _save(checkpoint: Path, model: LanguageModel, optimizer: torch.optim.Optimizer, step: int) -> None:
    tensors, rest = flatten_optimizer(optimizer)
    tensors = with_prefix("model", model.state_dict()) | with_prefix("optimizer", tensors)
    save_checkpoint(checkpoint, tensors, {"step": step, "optimizer": rest})


def _resume(checkpoint: Path | None, model: LanguageModel, optimizer: torch.optim.Optimizer) -> int:
    """Put back what a checkpoint holds, if there is one; return the number of steps taken."""
    if checkpoint is None or not checkpoint.exists():
        return 0
    tensors, state = load_checkpoint(checkpoint)
    model.load_state_dict(without_prefix("model", tensors))
    restore_optimizer(optimizer, without_prefix("optimizer", tensors), state["optimizer"])
    return int(state["step"])


@torch.no_grad()
def evaluate(model: LanguageModel, text: Text) -> dict[str, float]:
    """How well a model predicts, EOS included: perplexity, loss and entropy of its predictions in nats, accuracy."""
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64)
    for numbers in text.batches():
        inputs, labels = text.batch(numbers)
        is_word = labels != IGNORED
        log_p, label = model.logits(inputs)[is_word].log_softmax(-1), labels[is_word]
        nll = -log_p.gather(-1, label[:, None]).sum()
        entropy = -(log_p.exp() * log_p).sum()
        sums += torch.stack([nll, entropy, (log_p.argmax(-1) == label).sum(), is_word.sum()])
    nll, entropy, accuracy = (sums[:3] / sums[3]).tolist()
    return {"perplexity": math.exp(nll), "loss": nll, "entropy": entropy, "accuracy": accuracy}


def say(line: str) -> None:
    """Tell on stderr how far things are."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
