"""Trains a small language model of words on real text and saves what its classifier sees at some of the steps.

    python -m benchmarks.language_models captions_val2014.ptb.json.gz --out build/heads/coco
    python -m benchmarks.language_models deu-eng.txt.gz --column 1 --out build/heads/tatoeba_de

Each file ``step_N.safetensors`` holds, of the model after N steps, ``hidden (rows, D)`` of sentences it is not trained
on, their ``labels (rows,)``, the classifier's ``weight (V, D)`` and ``bias (V,)``, all float32: what
`benchmarks.compensated` measures the linear op on.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import smoothloss.functional as F
from smoothloss.ops.linear_layer import has_fast_gemm

END, UNKNOWN = 0, 1
BATCH, CLIP, IGNORED = 64, 1.0, -100
HELD_OUT = 1000  # sentences


def read(path: Path, column: int | None) -> list[list[str]]:
    """Return the sentences of a text, of a column of a table, or of a JSON file ``{image: [captions]}`` as words."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        if ".json" in path.suffixes:
            lines = [caption for captions in json.load(file).values() for caption in captions]
        else:
            lines = [line.rstrip("\n") if column is None else line.rstrip("\n").split("\t")[column] for line in file]
    words = [re.findall(r"\w+|[^\w\s]", line.lower()) for line in lines]
    return [list(sentence) for sentence in dict.fromkeys(map(tuple, words)) if sentence]


class Text:
    """Sentences as tokens, shuffled once; the first `HELD_OUT` are kept for evaluation."""

    def __init__(self, sentences: list[list[str]], least: int) -> None:
        counts = Counter(itertools.chain.from_iterable(sentences))
        self.words = ["</s>", "<unk>", *(word for word, count in counts.most_common() if count >= least)]
        number = {word: index for index, word in enumerate(self.words)}
        order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(0)).tolist()
        self.sentences = [[*(number.get(word, UNKNOWN) for word in sentences[place]), END] for place in order]

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and labels ``(B, T)`` of the training sentences, for ever."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            for chosen in (torch.randperm(len(self.sentences) - HELD_OUT, generator=generator) + HELD_OUT).split(BATCH):
                if len(chosen) == BATCH:
                    yield batch([self.sentences[place] for place in chosen.tolist()])


def batch(sentences: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return inputs and labels ``(B, T)`` of sentences."""
    labels = nn.utils.rnn.pad_sequence([torch.tensor(each) for each in sentences], True, IGNORED)
    return torch.cat((torch.zeros(len(labels), 1, dtype=torch.int64), labels[:, :-1].clamp(min=0)), 1), labels


class LanguageModel(nn.Module):
    """An LSTM; classifier and embedding share their weights."""

    def __init__(self, words: int, width: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.lstm, self.dropout = nn.LSTM(width, width, batch_first=True), nn.Dropout(dropout)
        self.bias = nn.Parameter(torch.zeros(words))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return hidden states ``(B, T, D)``."""
        return self.dropout(self.lstm(self.dropout(self.embedding(inputs)))[0])


def optimizer_of(model: LanguageModel, steps: int, rate: float) -> tuple[torch.optim.Optimizer, Any]:
    """Return Adam and its schedule: the rate falls to 0."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)


@torch.no_grad()
def heads(model: LanguageModel, text: Text, rows: int) -> dict[str, Tensor]:
    """Return what the classifier sees of the held-out sentences."""
    model.eval()
    hidden, labels = [], []
    for start in range(0, HELD_OUT, BATCH):
        inputs, target = (
            tensor.to(model.bias.device) for tensor in batch(text.sentences[start : min(start + BATCH, HELD_OUT)])
        )
        hidden.append(model(inputs)[target != IGNORED])
        labels.append(target[target != IGNORED])
    model.train()
    first = torch.randperm(len(torch.cat(labels)), generator=torch.Generator().manual_seed(0))[:rows]
    first = first.to(model.bias.device)
    found = {"hidden": torch.cat(hidden)[first], "labels": torch.cat(labels)[first]}
    return {**found, "weight": model.embedding.weight.detach().clone(), "bias": model.bias.detach().clone()}


def perplexity(found: dict[str, Tensor]) -> float:
    """Return the perplexity of what `heads` found."""
    logits = nn.functional.linear(found["hidden"], found["weight"], found["bias"])
    return float(nn.functional.cross_entropy(logits, found["labels"]).exp())


def train(text: Text, options: argparse.Namespace) -> None:
    """Train, and save what the classifier sees at the steps asked for."""
    torch.manual_seed(0)
    model, device = LanguageModel(len(text.words), options.width).to(options.device), options.device
    is_narrow = has_fast_gemm(device.type, torch.bfloat16)
    optimizer, schedule = optimizer_of(model, options.steps, options.rate)
    for step, (inputs, labels) in enumerate(itertools.islice(text.batches(0), options.steps + 1)):
        if step in options.save or step == options.steps:
            found = heads(model, text, options.rows)
            options.out.mkdir(parents=True, exist_ok=True)
            save_file(found, options.out / f"step_{step}.safetensors")
            said = f"step {step}: V = {len(text.words)}, perplexity {perplexity(found):.1f}"
            print(said, file=sys.stderr, flush=True)
        if step == options.steps:
            return
        inputs, labels = inputs.to(device), labels.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=is_narrow):
            loss = F.linear_cross_entropy(model(inputs), model.embedding.weight, labels, linear_bias=model.bias)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()


def main(arguments: list[str] | None = None) -> int:
    """Train one model; return 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="sentences: text, a table, or JSON of captions; .gz or not")
    parser.add_argument("--column", type=int, help="of a table")
    parser.add_argument("--least", type=int, default=2, help="how often a word is seen to be one of the vocabulary")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--rows", type=int, default=8192, help="hidden states to save")
    parser.add_argument("--save", type=int, nargs="*", default=[0, 100, 300, 1000], help="at these steps, too")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    train(Text(read(options.text, options.column), options.least), options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
