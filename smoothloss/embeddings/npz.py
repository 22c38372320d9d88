"""Word vectors in an archive of numpy's."""

from __future__ import annotations

import warnings
from typing import Any, BinaryIO

import numpy as np

from smoothloss.embeddings.vectors import Collector

Array = np.ndarray[Any, np.dtype[Any]]


def read_npz(file: BinaryIO, collector: Collector) -> None:
    """Gather the vectors of ``words (n,)``, ``vectors (n, d)`` and, if there are any, ``counts (n,)``.

    Raises:
        ValueError: when it is no such archive, or something is wrong with what is in it.
    """
    try:
        words, vectors, counts = _arrays(file)
    except Exception as error:  # numpy's parsers raise whatever the damage makes them raise
        raise ValueError(f"no readable .npz of word vectors ({' '.join(str(error).split())})") from None
    if 0 in vectors.shape:
        raise ValueError(f"it holds no vectors: shape {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise ValueError("it holds infinite or NaN values")
    collector.dim = vectors.shape[1]
    for place, word in enumerate(words):
        if collector.wants(word):
            collector.add(word, vectors[place], None if counts is None else float(counts[place]))


def _arrays(file: BinaryIO) -> tuple[list[str], Array, Array | None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files from old versions
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("a single array, expected an archive")
        if "words" not in archive or "vectors" not in archive:
            raise ValueError(f"arrays {sorted(archive)}, expected 'words' and 'vectors', and maybe 'counts'")
        words, vectors, counts = archive["words"], archive["vectors"], archive.get("counts")
    if words.ndim != 1 or words.dtype.kind != "U" or vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise ValueError(
            f"words {words.dtype}{words.shape} and vectors {vectors.dtype}{vectors.shape}, "
            "expected words of strings (n,) and vectors of floats (n, d)"
        )
    lengths = {len(words), len(vectors), len(words) if counts is None or counts.ndim != 1 else len(counts)}
    if len(lengths) > 1 or (counts is not None and (counts.ndim != 1 or counts.dtype.kind not in "iuf")):
        raise ValueError(
            f"{len(words)} words, {len(vectors)} vectors and counts {None if counts is None else counts.shape}, "
            "expected the same number n of each"
        )
    return words.tolist(), vectors, counts
