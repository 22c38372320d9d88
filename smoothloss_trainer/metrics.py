"""Scores of generated text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from smoothloss.rewards import Cider, References, bleu_statistics, rouge_l, sentence_bleu
from smoothloss.rewards import corpus_bleu as bleu_of_statistics
from smoothloss.rewards.bleu import Smoothing
from smoothloss_trainer.errors import RecipeError


def corpus_bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float | str]:
    """``{"bleu": 0..100, "bleu_signature": ...}`` of tokenised text by sacrebleu, its own tokeniser off.

    Args:
        candidates: One line of tokens joined by spaces per input.
        references: One or more lists of reference lines, each as long as ``candidates``.
    """
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="none", force=True)
    score = metric.corpus_score(list(candidates), [list(lines) for lines in references])
    return {"bleu": float(score.score), "bleu_signature": str(metric.get_signature())}


def detokenized_bleu(
    candidates: Sequence[str], references: Sequence[Sequence[str]], *, lowercase: bool = False
) -> dict[str, float | str]:
    """``{"bleu_detokenized": 0..100, "bleu_detokenized_signature": ...}`` of raw text by sacrebleu, tokeniser 13a.

    Args:
        candidates: One line of text per input.
        references: One or more lists of reference lines, each as long as ``candidates``.
        lowercase: Leave case out.
    """
    from sacrebleu.metrics.bleu import BLEU

    metric = BLEU(tokenize="13a", lowercase=lowercase)
    score = metric.corpus_score(list(candidates), [list(lines) for lines in references])
    return {"bleu_detokenized": float(score.score), "bleu_detokenized_signature": str(metric.get_signature())}


@dataclass(frozen=True)
class Scores:
    """Scores of a set of sentences, times 100.

    ``bleu_1`` to ``bleu_4``, ``rouge_l`` and ``cider`` are coco-caption's, CIDEr being CIDEr-D; ``bleu`` is sacrebleu's
    BLEU-4; ``sentence_bleu`` is the mean of the sentences' BLEU-4, where it was asked for.

    Args:
        corpus: Score by metric.
        sentences: ``(B,)`` float64 scores of the sentences by metric; ``bleu`` is one of corpora alone.
    """

    corpus: dict[str, float]
    sentences: dict[str, Tensor]


class Numbers:
    """Numbers words as they come."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        """The numbers of a text's tokens, which spaces separate."""
        return [self._numbers.setdefault(word, len(self._numbers)) for word in text.split()]

    def pack(self, groups: Iterable[Sequence[str]]) -> References:
        """The references of each input."""
        return References([[self.encode(text) for text in texts] for texts in groups])


def text_statistics(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Tensor:
    """What BLEU-4 adds up over B texts, tokens separated by spaces: `bleu_statistics`, ``(B, 10)``."""
    numbers = Numbers()
    return bleu_statistics([numbers.encode(text) for text in candidates], None, numbers.pack(references))


def score_texts(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    documents: Iterable[Sequence[str]] | None = None,
    sentence_smoothing: Smoothing | None = None,
) -> Scores:
    """Scores of B texts, tokens separated by spaces.

    Args:
        candidates: B texts.
        references: The references of each.
        documents: Texts whose document frequencies CIDEr uses, one sequence a document; None for the references.
        sentence_smoothing: Asks for ``sentence_bleu`` with this smoothing, with its usual constant.

    Raises:
        ValueError: when there is no candidate.
    """
    numbers = Numbers()
    tokens, packed = [numbers.encode(text) for text in candidates], numbers.pack(references)
    cider = Cider(packed if documents is None else numbers.pack(documents))
    sentences = {f"bleu_{n}": sentence_bleu(tokens, None, packed, n=n, smoothing="coco") for n in range(1, 5)}
    sentences |= {"rouge_l": rouge_l(tokens, None, packed), "cider": cider(tokens, None, packed)}
    if sentence_smoothing is not None:
        sentences["sentence_bleu"] = sentence_bleu(tokens, None, packed, smoothing=sentence_smoothing)
    statistics = bleu_statistics(tokens, None, packed)
    corpus = {name: values.mean() for name, values in sentences.items()}
    corpus |= {f"bleu_{n}": value for n, value in enumerate(bleu_of_statistics(statistics, smoothing="coco"), 1)}
    corpus["bleu"] = bleu_of_statistics(statistics)[-1]
    return Scores(
        corpus={name: 100.0 * float(value) for name, value in corpus.items()},
        sentences={name: 100.0 * values for name, values in sentences.items()},
    )


def caption_scores(candidates: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    """``{"bleu_1": ..., "bleu_4": ..., "rouge_l": ..., "cider": ...}`` as coco-caption has them, times 100.

    Args:
        candidates: Tokenised caption by image id.
        references: Tokenised reference captions of the same images.

    Raises:
        ValueError: when there is no image, the ids differ, or an image has no reference.
    """
    if candidates.keys() != references.keys():
        odd = sorted(candidates.keys() ^ references.keys())
        raise ValueError(f"candidates and references must have the same ids; only one has {', '.join(odd[:3])}")
    empty = [key for key, captions in references.items() if not captions]
    if empty:
        raise ValueError(f"references must have a caption for each id, got none for {empty[0]}")
    scores = score_texts(list(candidates.values()), [references[key] for key in candidates]).corpus
    return {name: score for name, score in scores.items() if name != "bleu"}


def deciding(name: str, loss: float, scores: Mapping[str, float | str]) -> float:
    """Return what chooses the best checkpoint, higher being better: a score by its name, or ``"loss"`` negated.

    Raises:
        RecipeError: when there is no such score, naming those that there are.
    """
    if name == "loss":
        return -loss
    value = scores.get(name)
    if not isinstance(value, float):
        known = ", ".join(["loss", *(key for key, score in scores.items() if isinstance(score, float))])
        raise RecipeError(f"training.metric must be one of {known}, got {name!r}")
    return value
