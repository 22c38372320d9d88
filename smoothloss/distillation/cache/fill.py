"""Makes caches: of a teacher that is called batch by batch, and of other caches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from smoothloss.distillation.cache.index import NAME, Index, Settings, read_index
from smoothloss.distillation.cache.reader import TeacherCache
from smoothloss.distillation.cache.writer import SHARD_BYTES, TeacherCacheWriter
from smoothloss.distillation.teacher import Teacher, check_integer

Batch = TypeVar("Batch")


def write_from(
    teacher: Callable[[Batch], Tensor | Teacher],
    batches: Iterable[Batch],
    path: str | Path,
    *,
    vocabulary_size: int,
    fingerprint: str,
    k: int | None = None,
    draws: int | None = None,
    lengths: Callable[[Batch], Tensor] | None = None,
    seed: int = 0,
    **options: Any,
) -> TeacherCache:
    """Write the cache of a teacher, or as much as is missing of it.

    Called again after an interruption, with the same batches in the same order, it passes over those that are there
    without calling the teacher; the cache is the same as if nothing had happened, draws included.

    Args:
        teacher: Returns the logits ``(B, T, V)`` of a batch, or its :class:`Teacher` ``(B, T, K)``. Called without
            gradients.
        batches: Whatever the teacher takes.
        path: The cache's folder.
        vocabulary_size: V.
        fingerprint: Of text and vocabulary, see :func:`fingerprint`.
        k: Of logits, keep the K likeliest classes.
        draws: Of logits, keep the counts of so many draws. With a callable that returns a :class:`Teacher`, it says
            that those are of :meth:`Teacher.sample`.
        lengths: Returns how many positions each sequence of a batch has, ``(B,)``; T by default.
        seed: Of the draws, at least 0.
        options: Others of :meth:`TeacherCache.write`: `ids`, `log_rest`, `num_sequences`, `shard_bytes`.

    Returns:
        The cache, complete.

    Raises:
        TypeError: The teacher returns something else, or as :meth:`TeacherCache.write`.
        ValueError: Both `k` and `draws` are given, or neither with logits; or as :meth:`TeacherCache.write`.
    """
    if k is not None and draws is not None:
        raise ValueError(f"k: got {k} beside draws={draws}, expected one of them")
    if check_integer(seed, "seed") < 0:
        raise ValueError(f"seed: got {seed}, expected at least 0")
    writer = TeacherCache.write(path, vocabulary_size=vocabulary_size, fingerprint=fingerprint, draws=draws, **options)
    with writer, torch.no_grad():
        for batch in itertools.islice(batches, writer.batches, None):
            said = teacher(batch)
            if isinstance(said, Tensor):
                said = _reduced(said, writer.settings, k, (seed, writer.batches))
            writer.add_batch(said, None if lengths is None else lengths(batch))
    return TeacherCache(path)


def join(path: str | Path, parts: Iterable[str | Path]) -> TeacherCache:
    """Make one cache of several below one folder, by an index that names their shards. Nothing is copied.

    So several processes write one cache, each a range of its sequences into a folder of its own.

    Args:
        path: The folder, which gets the index.
        parts: Complete caches below it, in the order of their sequences, as paths from there: ``["0", "1"]``.

    Returns:
        The cache of all their sequences.

    Raises:
        FileNotFoundError: A part is no cache.
        ValueError: A part lies elsewhere, is not complete, or differs from the first one in its settings.
    """
    folder, shards, settings = Path(path), [], None
    for part in map(Path, parts):
        if part.is_absolute() or ".." in part.parts or not part.parts:
            raise ValueError(f"parts: got {part}, expected a folder below {folder}")
        index = read_index(folder / part)
        if not index.complete:
            raise ValueError(f"parts: got {part}, which is not complete, expected complete caches")
        settings = settings or index.settings
        difference = settings.difference(index.settings)
        if difference:
            raise ValueError(f"parts: got {part} with other settings ({difference})")
        shards += [replace(shard, file=(part / shard.file).as_posix()) for shard in index.shards]
    if settings is None:
        raise ValueError("parts: got none, expected at least one cache")
    if (folder / NAME).exists() and any("/" not in shard.file for shard in read_index(folder).shards):
        raise ValueError(f"path: got {folder}, a cache with shards of its own, expected a folder of caches alone")
    Index(settings, complete=True, shards=tuple(shards)).write(folder)
    return TeacherCache(folder)


def reshard(
    sources: Iterable[TeacherCache],
    path: str | Path,
    *,
    sequences: Iterable[int] | None = None,
    shard_bytes: int = SHARD_BYTES,
    fingerprint: str | None = None,
) -> TeacherCache:
    """Copy sequences of one or more caches into a new one: to merge, split, reorder, or change the size of shards.

    Called again after an interruption it goes on. Nothing is lost by copying: codes and counts stay what they are.

    Args:
        sources: Caches with the same settings.
        path: The new cache's folder.
        sequences: Which to copy, numbered through all sources; all by default.
        shard_bytes: As in :meth:`TeacherCache.write`.
        fingerprint: Of what the new one holds; that of the sources by default, which is right as long as all
            `sequences` are copied in their order.

    Returns:
        The new cache.

    Raises:
        IndexError: There is no sequence of such a number.
        ValueError: The settings of the sources differ, or there are none; or as :meth:`TeacherCache.write`.
    """
    caches = list(sources)
    if not caches:
        raise ValueError("sources: got none, expected at least one cache")
    settings = caches[0].settings
    for cache in caches:
        difference = replace(settings, fingerprint="").difference(replace(cache.settings, fingerprint=""))
        if fingerprint is None:
            difference = settings.difference(cache.settings)
        if difference:
            raise ValueError(f"sources: got {cache.path} with other settings ({difference})")
    if fingerprint is not None:
        settings = replace(settings, fingerprint=fingerprint)
    starts = [0, *itertools.accumulate(map(len, caches))]
    numbers = range(starts[-1]) if sequences is None else sequences
    with TeacherCacheWriter(path, settings, None, shard_bytes) as writer:
        for number in itertools.islice(numbers, writer.position, None):
            writer.add(_sequence(caches, starts, number))
    return TeacherCache(path)


def _sequence(caches: list[TeacherCache], starts: list[int], number: int) -> Teacher:
    if not 0 <= number < starts[-1]:
        raise IndexError(f"sequences: got {number}, expected the number of one of {starts[-1]} sequences")
    place = next(place for place, start in enumerate(starts[1:]) if number < start)
    return caches[place][number - starts[place]]


def _reduced(logits: Tensor, settings: Settings, k: int | None, seed: tuple[int, int]) -> Teacher:
    """What is kept of the logits of a batch, whose draws follow from a seed and its number."""
    if logits.dim() != 3 or logits.shape[-1] != settings.vocabulary_size:
        shape = tuple(logits.shape)
        raise ValueError(f"teacher: got logits of shape {shape}, expected (B, T, V), V = {settings.vocabulary_size}")
    if settings.draws is not None:
        # Mixed, because a generator on the CPU looks at the lower 32 bits of a seed alone.
        mixed = np.random.SeedSequence(seed).generate_state(1, np.uint64)
        generator = torch.Generator(logits.device).manual_seed(int(mixed[0]))
        return Teacher.sample(logits, settings.draws, generator=generator)
    if k is None:
        raise ValueError("k: got None for a teacher that returns logits, expected k or draws")
    return Teacher.from_logits(logits, k)
