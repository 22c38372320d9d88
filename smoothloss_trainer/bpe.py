"""Byte-pair encoding: words cut into the pieces that training text is made of, by the `tokenizers` library.

Source: Sennrich, Haddow and Birch 2016, "Neural machine translation of rare words with subword units".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from smoothloss_trainer.errors import RunError
from smoothloss_trainer.packages import optional_package

WORD_START = "▁"  # as in SentencePiece: a piece with it begins a word
UNKNOWN = "<unk>"


def _tokenizers() -> Any:
    return optional_package("tokenizers", "data.bpe", "translate")


class Bpe:
    """Cuts words into pieces and joins pieces to words; the first piece of a word begins with ``▁``.

    A character that is no piece becomes ``<unk>``; a ``▁`` in a word becomes ``_``.

    Args:
        serialized: What :meth:`serialize` gave: a JSON string of the tokenizers library.

    Raises:
        RunError: when tokenizers is not installed.
        ValueError: when the string is something else.
    """

    def __init__(self, serialized: str) -> None:
        try:
            self._tokenizer = _tokenizers().Tokenizer.from_str(serialized)
            self._model = self._tokenizer.model
            numbers: dict[str, int] = self._tokenizer.get_vocab()
        except RunError:
            raise
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"the BPE model is damaged: {error}") from None
        self.pieces = sorted(numbers, key=lambda piece: numbers[piece])
        self._known: dict[str, list[str]] = {}

    @classmethod
    def learn(cls, sentences: Iterable[Sequence[str]], size: int, min_count: int = 1) -> Bpe:
        """Merge the most frequent pair of pieces until there are ``size`` pieces, or none is left.

        Args:
            sentences: Training text, as words.
            size: Pieces at most, ``<unk>`` included; the characters are pieces whatever the size.
            min_count: Pairs and characters seen less often are no pieces.
        """
        text = [[_marked(word) for word in sentence] for sentence in sentences]
        characters = Counter(character for sentence in text for word in sentence for character in word)
        library = _tokenizers()
        tokenizer = library.Tokenizer(library.models.BPE(unk_token=UNKNOWN))
        trainer = library.trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=min_count,
            limit_alphabet=sum(count >= min_count for count in characters.values()),
            special_tokens=[UNKNOWN],
            show_progress=False,
        )
        tokenizer.train_from_iterator(text, trainer)
        return cls(tokenizer.to_str())

    def serialize(self) -> str:
        """The model as JSON."""
        serialized: str = self._tokenizer.to_str()
        return serialized

    def segment(self, words: Sequence[str]) -> list[str]:
        """The pieces of words."""
        return [piece for word in words for piece in self._pieces_of(word)]

    def _pieces_of(self, word: str) -> list[str]:
        # Of the model, not the tokenizer, which would read <unk> in a text as its own.
        if word not in self._known:
            self._known[word] = [token.value for token in self._model.tokenize(_marked(word))]
        return self._known[word]

    @staticmethod
    def join(pieces: Iterable[str]) -> list[str]:
        """The words of pieces: the inverse of :meth:`segment`."""
        return "".join(pieces).replace(WORD_START, " ").split()


def _marked(word: str) -> str:
    return WORD_START + word.replace(WORD_START, "_")
