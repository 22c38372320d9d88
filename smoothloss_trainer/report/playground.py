"""What the page to play with is given: the cosines of some words, and samples of one sentence with their rewards.

The script computes Eq. 13 and 14 of the paper for the words, at any temperature, and importance weights for the
samples; all else is the library's. Nothing is fetched.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from smoothloss.rewards import References, rouge_l, sentence_bleu
from smoothloss.sampling import HammingSampler, Pool, SimilarPool, VocabularyPool
from smoothloss.similarity import SimilarityTable

MOST_WORDS, MOST_BYTES = 24, 600_000  # of the words that can be chosen, and of what these take
MOST_KEPT = 64
TAUS = (0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.18, 0.2, 0.22, 0.25,
        0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.0)  # fmt: skip
NUM_SAMPLES = 8
REPLACED = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6)  # shares of the words, for which temperatures are found
REWARDS: dict[str, Callable[..., Tensor]] = {
    "BLEU-4": partial(sentence_bleu, smoothing="add-k-all"),
    "ROUGE-L": rouge_l,
}
SENTENCE_LENGTHS = range(4, 21)
_TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True)
class Start:
    """Where the sliders stand at first.

    Args:
        tau: The temperature of the rows.
        beta: The weight of the frequency penalty.
        kept: K, the entries kept of a row.
        alpha: The share of the row.
    """

    tau: float = 0.12
    beta: float = 0.0
    kept: int = 16
    alpha: float = 0.4


@dataclass(frozen=True)
class Playground:
    """The page to play with.

    Args:
        content: What the script reads, as JSON that may stand in HTML.
        choices: The words that can be chosen, with their ids.
        taus: The temperatures of the slider.
        start: Where the sliders stand at first.
        most_kept: The largest K.
        draws: At how many temperatures the sentence was sampled, by the name of the pool; none without a sentence.
    """

    content: Markup
    choices: list[tuple[int, str]]
    taus: list[float]
    start: Start
    most_kept: int
    draws: dict[str, int]
    rewards: tuple[str, ...] = tuple(REWARDS)


def playground(
    words: Sequence[str],
    table: SimilarityTable,
    counts: Sequence[float] | None = None,
    *,
    chosen: Sequence[str] = (),
    sentences: Sequence[Sequence[str]] = (),
    start: Start | None = None,
) -> Playground | None:
    """What is shown of a table; None where no word of it has neighbours, or its rows would make the page too large.

    Args:
        words: The vocabulary.
        table: A table of its words; its own temperature, penalty and K are of no account.
        counts: Term counts, for the penalty.
        chosen: Words that can be chosen, as far as they have neighbours; more are added by frequency.
        sentences: What people wrote about one input: the first is sampled, all are its references.
        start: Where the sliders stand at first.
    """
    known = table.has_neighbours.nonzero()[:, 0].tolist()
    room = min(MOST_WORDS, MOST_BYTES // (6 * max(1, len(known))))
    if len(known) < 2 or room < 3:
        return None
    start = start or Start()
    choices = _choices(words, known, counts, chosen, room)
    sampled = _sentence(words, table, known, sentences)
    content = {
        "words": list(words),
        "known": known,
        "counts": None if counts is None else [float(counts[token]) for token in known],
        "cosines": {str(token): _packed(_cosines(table, token, known)) for token in choices},
        "sentence": sampled,
    }
    return Playground(
        content=Markup(_json(content)),
        choices=[(token, words[token]) for token in choices],
        taus=sorted({*TAUS, start.tau}),
        start=start,
        most_kept=min(len(known), max(MOST_KEPT, start.kept)),
        draws={} if sampled is None else {name: len(draws) for name, draws in sampled["pools"].items()},
    )


def first_fit(sentences: Sequence[Sequence[str]], words: Container[str]) -> Sequence[str] | None:
    """The first sentence of a fitting length whose words are all known."""
    fit = (each for each in sentences if len(each) in SENTENCE_LENGTHS and all(word in words for word in each))
    return next(fit, None)


def html(it: Playground) -> Markup:
    """The playground as a piece of HTML that needs nothing else: style, markup, data and script."""
    style, script = ((_TEMPLATES / f"playground.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return Markup(_template().render(it=it, style=Markup(style), script=Markup(script)))


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("playground.html.j2")


def _choices(
    words: Sequence[str], known: Sequence[int], counts: Sequence[float] | None, chosen: Sequence[str], room: int
) -> list[int]:
    """Ids of the words that can be chosen: those asked for, then the most frequent, then by their place."""
    ids = {words[token]: token for token in known}
    first = [ids[word] for word in dict.fromkeys(chosen) if word in ids]
    others = sorted(known, key=lambda token: 0.0 if counts is None else -counts[token])
    return list(dict.fromkeys([*first, *others]))[:room]


def _cosines(table: SimilarityTable, token: int, known: Sequence[int]) -> Tensor:
    vectors = torch.nn.functional.normalize(table.unit_vectors.double(), dim=-1)
    return vectors[known] @ vectors[token]


def _packed(values: Tensor) -> str:
    """Float32 numbers, little-endian, in the alphabet of addresses."""
    return base64.urlsafe_b64encode(values.numpy().astype("<f4").tobytes()).decode()


def _json(content: Any) -> str:
    """JSON that ends no script element and opens no comment."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").replace("/", "\\/")


# ---- the sentence


def _sentence(
    words: Sequence[str], table: SimilarityTable, known: Sequence[int], sentences: Sequence[Sequence[str]]
) -> dict[str, Any] | None:
    """The first sentence that fits, with its samples; None where there is none."""
    ids = {word: token for token, word in enumerate(words)}
    sentence = first_fit(sentences, ids)
    if sentence is None:
        return None
    references = [[ids[word] for word in other if word in ids] for other in sentences]
    return _samples(words, table, known, [ids[word] for word in sentence], references)


def _samples(
    words: Sequence[str], table: SimilarityTable, known: Sequence[int], sentence: list[int], references: list[list[int]]
) -> dict[str, Any]:
    excluded = sorted({*range(len(words))} - {*known})
    pools: dict[str, Pool] = {
        "the vocabulary": VocabularyPool(len(words), exclude=excluded),
        "similar words": SimilarPool(table, exclude=excluded),
    }
    packed = References([[other for other in references if other]])
    taus = _temperatures(len(known) - 1)
    drawn = {name: [_draw(tau, pool, sentence, packed) for tau in taus] for name, pool in pools.items()}
    return {"tokens": sentence, "references": references, "pools": drawn}


def _temperatures(substitutes: int) -> list[float]:
    """Temperatures at which about so many words are replaced, where each has so many substitutes."""
    odds = [share / (1 - share) / substitutes for share in REPLACED]
    return sorted({float(f"{-1 / math.log(each):.2g}") for each in odds if each < 0.9})


def _draw(tau: float, pool: Pool, sentence: list[int], references: References) -> dict[str, Any]:
    target, lengths = torch.tensor([sentence]), torch.tensor([len(sentence)])
    samples = HammingSampler(tau, pool)(target, lengths, NUM_SAMPLES, torch.Generator().manual_seed(1))
    tokens, long = samples.tokens, samples.lengths
    rewards = {name: reward(tokens, long, references)[:, 0].tolist() for name, reward in REWARDS.items()}
    return {
        "tau": tau,
        "tokens": tokens[:, 0].tolist(),
        "distance": samples.distance[:, 0].tolist(),
        "log_prob": samples.log_prob[:, 0].tolist(),
        "rewards": rewards,
    }
