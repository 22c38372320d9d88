"""Captions to score: the outputs of four captioning models beside the captions people gave, or drawn ones."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.problems import Shape

REAL_SHAPES = ("captions", "samples")
_MODELS = ("base_bw3", "comb_bw3", "seq_bw3", "tok_bw3")


class Captions(NamedTuple):
    """Sentences of words.

    Attributes:
        source: "coco" or "drawn".
        candidates: ``(L, B)`` candidates of B inputs.
        references: of each of the B inputs.
    """

    source: str
    candidates: list[list[str]]
    references: list[list[str]]


def captions(shape: Shape) -> Captions:
    """Return ``shape.rows`` candidates, ``shape.length`` of each input, and ``shape.hidden`` references of each input.

    Where ``SMOOTHLOSS_DATA`` names the folder of real data, the named shapes are what the models of Elbayad et
    al. say of the COCO test images; all others are drawn from ``shape.classes`` words.
    """
    folder = Path(os.environ.get("SMOOTHLOSS_DATA", ""), "paper_outputs")
    is_real = shape.name in REAL_SHAPES and folder.is_dir()
    return _read(folder.parent, shape) if is_real else _draw(shape)


def _read(data: Path, shape: Shape) -> Captions:
    def read(path: str) -> Any:
        content = (data / path).read_bytes()
        return json.loads(gzip.decompress(content) if path.endswith(".gz") else content)

    given = read("coco/captions_val2014.ptb.json.gz")
    inputs = shape.rows // shape.length
    outputs = [
        {str(entry["image_id"]): entry["caption"] for entry in read(f"paper_outputs/{_MODELS[i % len(_MODELS)]}.json")}
        for i in range(shape.length)
    ]
    images = list(outputs[0])[:inputs]
    return Captions(
        "coco", [[output[image] for image in images] for output in outputs], [given[i][: shape.hidden] for i in images]
    )


def _draw(shape: Shape) -> Captions:
    """Draw words by Zipf's law; the sentences of an input are one sentence with half of the words drawn again."""
    generator = random.Random(0)
    words = [f"w{i}" for i in range(shape.classes)]
    frequencies = [1 / (i + 3) for i in range(shape.classes)]

    def draw(count: int) -> list[str]:
        return generator.choices(words, frequencies, k=count)

    def vary(sentence: list[str]) -> str:
        kept = [word if generator.random() < 0.5 else draw(1)[0] for word in sentence]
        return " ".join(kept[generator.randrange(3) :] + draw(generator.randrange(4)))

    topics = [draw(generator.randint(8, 13)) for _ in range(shape.rows // shape.length)]
    candidates = [[vary(topic) for topic in topics] for _ in range(shape.length)]
    return Captions("drawn", candidates, [[vary(topic) for _ in range(shape.hidden)] for topic in topics])


def encoder() -> Callable[[str], list[int]]:
    """Return what makes ids of a sentence's words, with a vocabulary that grows."""
    vocabulary: defaultdict[str, int] = defaultdict(lambda: len(vocabulary))
    return lambda sentence: list(map(vocabulary.__getitem__, sentence.split()))


def pad(sentences: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids ``(N, T)`` and lengths ``(N,)``."""
    rows = [torch.tensor(sentence, dtype=torch.int64) for sentence in sentences]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return padded.to(device), torch.tensor([len(sentence) for sentence in sentences], device=device)
