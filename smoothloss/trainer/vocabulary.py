"""Words and their numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPECIAL_WORDS = ("<pad>", "<bos>", "<eos>", "<unk>")
SPECIAL_TOKENS = (PAD, BOS, EOS, UNK)


class Vocabulary:
    """Words by number. The four special tokens come first: PAD 0, BOS 1, EOS 2, UNK 3.

    Args:
        words: All words, special ones included, in order.
        counts: How often each was seen in training, in the same order; the special tokens' counts are 0 but for UNK,
            which counts the occurrences of all words left out.

    Raises:
        ValueError: when the special tokens do not come first, a word repeats, or the lengths differ.
    """

    def __init__(self, words: Sequence[str], counts: Sequence[int]) -> None:
        if tuple(words[:4]) != SPECIAL_WORDS:
            raise ValueError(f"words must begin with {' '.join(SPECIAL_WORDS)}, got {' '.join(words[:4])!r}")
        if len(counts) != len(words):
            raise ValueError(f"counts must have one entry per word ({len(words)}), got {len(counts)}")
        self.words = list(words)
        self.counts = list(counts)
        self.tokens = {word: token for token, word in enumerate(self.words)}
        if len(self.tokens) != len(self.words):
            raise ValueError("words must not repeat")

    @classmethod
    def build(cls, sentences: Iterable[Sequence[str]], min_count: int = 1) -> Vocabulary:
        """The words seen at least ``min_count`` times, most frequent first (ties in alphabetical order)."""
        seen: Counter[str] = Counter()
        for sentence in sentences:
            seen.update(sentence)
        for special in SPECIAL_WORDS:
            seen.pop(special, None)
        kept = sorted((word for word, n in seen.items() if n >= min_count), key=lambda word: (-seen[word], word))
        unknown = sum(seen.values()) - sum(seen[word] for word in kept)
        return cls([*SPECIAL_WORDS, *kept], [0, 0, 0, unknown, *(seen[word] for word in kept)])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, sentence: Sequence[str]) -> list[int]:
        """The tokens of a sentence's words; unknown words become UNK. Neither BOS nor EOS is added."""
        return [self.tokens.get(word, UNK) for word in sentence]

    def decode(self, tokens: Iterable[int]) -> list[str]:
        """The words of ``tokens`` up to the first EOS; PAD and BOS are left out."""
        words = []
        for token in tokens:
            if token == EOS:
                break
            if token not in (PAD, BOS):
                words.append(self.words[token])
        return words

    def save(self, path: str | Path) -> None:
        """Write JSON: ``{"words": [...], "counts": [...]}``."""
        content = json.dumps({"words": self.words, "counts": self.counts}, ensure_ascii=False)
        Path(path).write_text(content, encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: when the file is something else.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(content["words"], content["counts"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a vocabulary: {error!r}") from None
