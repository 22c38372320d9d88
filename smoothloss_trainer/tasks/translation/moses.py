"""Moses' rules for words, by sacremoses.

Source: Koehn et al. 2007, "Moses: open source toolkit for statistical machine translation".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from smoothloss_trainer.packages import optional_package


def moses_tokenizer(language: str, key: str) -> Callable[[str], list[str]]:
    """A function from raw text to words, special characters not escaped.

    Raises:
        RunError: naming the recipe key, when sacremoses is not installed.
    """
    tokenizer = optional_package("sacremoses", key, "translate").MosesTokenizer(lang=language)
    return lambda text: list(tokenizer.tokenize(text, escape=False))


def moses_detokenizer(language: str, key: str) -> Callable[[Sequence[str]], str]:
    """A function from words to text as people write it; Moses' escapes (``&quot;``) are undone.

    Raises:
        RunError: naming the recipe key, when sacremoses is not installed.
    """
    detokenizer = optional_package("sacremoses", key, "translate").MosesDetokenizer(lang=language)
    return lambda words: str(detokenizer.detokenize(list(words)))
