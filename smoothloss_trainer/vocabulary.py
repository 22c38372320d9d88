"""Words, or pieces of words, and their numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from smoothloss._files import write_atomically
from smoothloss_trainer.bpe import Bpe
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.files import parse_text, read_text

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIAL_WORDS = ("<pad>", "<bos>", "<eos>", "<unk>")
SPECIAL_TOKENS = (PAD, BOS, EOS, UNK)


class Vocabulary:
    """Words by number. The four special tokens come first: PAD 0, BOS 1, EOS 2, UNK 3.

    Args:
        words: All words, special ones included, in order; with ``bpe`` its pieces.
        counts: How often each was seen in training, in the same order; the special tokens' counts are 0 but for UNK,
            which counts the occurrences of all words left out.
        bpe: Cuts words into pieces, which are then what is numbered; None: words are numbered whole.

    Raises:
        ValueError: when the special tokens do not come first, a word is no string or repeats, or the lengths differ.
    """

    def __init__(self, words: Sequence[str], counts: Sequence[int], bpe: Bpe | None = None) -> None:
        odd = [word for word in words if not isinstance(word, str)]
        if odd:
            raise ValueError(f"words must be strings, got {odd[0]!r}")
        if tuple(words[:4]) != SPECIAL_WORDS:
            raise ValueError(f"words must begin with {' '.join(SPECIAL_WORDS)}, got {' '.join(words[:4])!r}")
        if len(counts) != len(words):
            raise ValueError(f"counts must have one entry per word ({len(words)}), got {len(counts)}")
        wrong = [count for count in counts if isinstance(count, bool) or not isinstance(count, int) or count < 0]
        if wrong:
            raise ValueError(f"counts must be whole numbers from 0 on, got {wrong[0]!r}")
        self.words = list(words)
        self.counts = list(counts)
        self.bpe = bpe
        self.tokens = {word: token for token, word in enumerate(self.words)}
        if len(self.tokens) != len(self.words):
            raise ValueError("words must not repeat")
        # A text may hold these words too: there they mean nothing.
        self._encoded = {word: token for word, token in self.tokens.items() if token not in (PAD, BOS, EOS)}

    @classmethod
    def build(cls, sentences: Iterable[Sequence[str]], min_count: int = 1, max_words: int = 0) -> Vocabulary:
        """The words seen at least ``min_count`` times, most frequent first (ties in alphabetical order).

        Args:
            sentences: Training text.
            min_count: Words seen less often become UNK.
            max_words: The so many most frequent words alone, special ones not counted; 0: all.
        """
        seen: Counter[str] = Counter()
        for sentence in sentences:
            seen.update(sentence)
        for special in SPECIAL_WORDS:
            seen.pop(special, None)
        kept = sorted((word for word, n in seen.items() if n >= min_count), key=lambda word: (-seen[word], word))
        kept = kept[:max_words] if max_words else kept
        unknown = sum(seen.values()) - sum(seen[word] for word in kept)
        return cls([*SPECIAL_WORDS, *kept], [0, 0, 0, unknown, *(seen[word] for word in kept)])

    @classmethod
    def learn_bpe(cls, sentences: Iterable[Sequence[str]], size: int, min_count: int = 1) -> Vocabulary:
        """The pieces of byte-pair encoding, characters and merges in the order they were learnt.

        Args:
            sentences: Training text, as words.
            size: Size of the vocabulary, special tokens included. It may come out smaller, when no pair of pieces is
                left, or larger, when there are more characters.
            min_count: Pairs of pieces and characters seen less often are not learnt.

        Raises:
            ValueError: when the size has no place for a piece.
            RunError: when tokenizers is not installed.
        """
        if size <= len(SPECIAL_WORDS):
            raise ValueError(f"size must be more than the {len(SPECIAL_WORDS)} special tokens, got {size}")
        sentences = list(sentences)
        bpe = Bpe.learn(sentences, size - len(SPECIAL_WORDS) + 1, min_count)
        words = [*SPECIAL_WORDS, *(piece for piece in bpe.pieces if piece not in SPECIAL_WORDS)]
        return cls(words, [0] * len(words), bpe).recount(sentences)

    def recount(self, sentences: Iterable[Sequence[str]]) -> Vocabulary:
        """The same words with their counts in other text."""
        seen: Counter[int] = Counter()
        for sentence in sentences:
            seen.update(self.encode(sentence))
        counts = [0 if token in (PAD, BOS, EOS) else seen[token] for token in range(len(self))]
        return Vocabulary(self.words, counts, self.bpe)

    def __len__(self) -> int:
        return len(self.words)

    def segment(self, sentence: Sequence[str]) -> list[str]:
        """The words of a sentence, or their pieces."""
        return list(sentence) if self.bpe is None else self.bpe.segment(sentence)

    def encode(self, sentence: Sequence[str]) -> list[int]:
        """The tokens of a sentence's words; what is unknown becomes UNK, and so do words called like special tokens.

        Neither BOS nor EOS is added.
        """
        return [self._encoded.get(word, UNK) for word in self.segment(sentence)]

    def decode(self, tokens: Iterable[int]) -> list[str]:
        """The words of ``tokens`` up to the first EOS; PAD and BOS are left out."""
        words = []
        for token in tokens:
            if token == EOS:
                break
            if token not in (PAD, BOS):
                words.append(self.words[token])
        return words if self.bpe is None else self.bpe.join(words)

    def save(self, path: str | Path) -> None:
        """Write JSON: ``{"words": [...], "counts": [...]}``, with BPE also ``"bpe"``: its model as a JSON string."""
        content: dict[str, object] = {"words": self.words, "counts": self.counts}
        if self.bpe is not None:
            content["bpe"] = self.bpe.serialize()
        write_atomically(path, json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace"))

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read what :meth:`save` wrote.

        Raises:
            RecipeError: when the file is missing, broken or something else.
            RunError: when it has BPE and tokenizers is not installed.
        """
        path = Path(path)
        content = parse_text(read_text(path, "vocabulary"), path, "vocabulary")
        try:
            if not isinstance(content["words"], list) or not isinstance(content["counts"], list):
                raise ValueError("words and counts must be lists")
            bpe = Bpe(content["bpe"]) if "bpe" in content else None
            return cls(content["words"], content["counts"], bpe)
        except RecipeError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise RecipeError(f"{path} is not a vocabulary: {error}") from None
