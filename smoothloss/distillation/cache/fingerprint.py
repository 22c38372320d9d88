"""What a cache belongs to, as a short text."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

Item = str | bytes | Sequence[int] | Tensor | np.ndarray


def fingerprint(vocabulary: Iterable[Item], data: Iterable[Item]) -> str:
    """Return a text that differs for other tokens, other sequences, or another order of either.

    Args:
        vocabulary: The tokens in the order of their ids, or any items that tell a vocabulary from others.
        data: The sequences in the order of the cache: text, bytes, or token ids.

    Returns:
        The start of the SHA-256 of the one, and of the other: ``"vocabulary-data"``.

    Raises:
        TypeError: An item is none of these.
    """
    return f"{_digest(vocabulary, 'vocabulary')}-{_digest(data, 'data')}"


def _digest(items: Iterable[Item], name: str) -> str:
    digest = hashlib.sha256()
    for item in items:
        kind, content = _content(item, name)
        # With its length in front: otherwise items could run together in two ways.
        digest.update(kind + len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:32]


def _content(item: Item, name: str) -> tuple[bytes, bytes]:
    if isinstance(item, str):
        return b"t", item.encode("utf-8", "surrogatepass")
    if isinstance(item, (bytes, bytearray)):
        return b"b", bytes(item)
    numbers = item.detach().cpu().numpy() if isinstance(item, Tensor) else np.asarray(item)
    if numbers.size and numbers.dtype.kind not in "iu":
        raise TypeError(f"{name}: got {type(item).__name__} of {numbers.dtype}, expected text, bytes or integers")
    return b"i", numbers.astype("<i8").tobytes()
