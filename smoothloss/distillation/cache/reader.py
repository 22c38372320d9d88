"""Reads a cache: any sequence, in any order, by any number of processes."""

from __future__ import annotations

import bisect
import itertools
import operator
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smoothloss.distillation.cache.index import Settings, read_index
from smoothloss.distillation.cache.packing import Integers
from smoothloss.distillation.cache.shard import Floats, Sequence, Shard, check_size
from smoothloss.distillation.cache.writer import SHARD_BYTES, TeacherCacheWriter
from smoothloss.distillation.teacher import Teacher, check_integer, unchecked


class TeacherCache:
    """The teachers of many sequences, on disk.

    A folder of safetensors shards and an index, ``index.json``. Shards are mapped into memory when they are first
    needed, and opened anew by each process that an instance is sent to: workers of a data loader share the pages.

    Ids are exact. A log-probability is one of 65,535 values in [-32, 0], so that the probability errs by at most 2.5e-4
    of itself; a smaller one becomes exp(-32). Counts of draws are exact.

    Args:
        path: The folder.
        fingerprint: What the cache must have been written for, see :func:`fingerprint`; not checked when None.
        vocabulary_size: V that it must have; not checked when None.
        partial: Take a cache whose writer has not come to its end, as far as it is.

    Attributes:
        path: The folder.
        settings: What it was written with: `vocabulary_size`, `fingerprint`, `ids`, `draws`, `log_rest`.
        complete: Whether its writer came to the end.
        records: What the index says of each shard.

    Raises:
        FileNotFoundError: There is no cache, or a shard is missing.
        ValueError: It is damaged, not complete, of a newer version, or of another text or vocabulary.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fingerprint: str | None = None,
        vocabulary_size: int | None = None,
        partial: bool = False,
    ) -> None:
        index = read_index(Path(path))
        self.path = Path(path).absolute()  # shards are opened later, when the working folder may be another one
        self.settings: Settings = index.settings
        self.complete: bool = index.complete
        self._check_origin(fingerprint, vocabulary_size)
        if not index.complete and not partial:
            total = "" if index.num_sequences is None else f" of {index.num_sequences}"
            raise ValueError(
                f"path: the cache at {path} is not complete, with {index.sequences}{total} sequences: write the others,"
                " or read it with partial=True"
            )
        for record in index.shards:
            check_size(self.path, record)
        self.records = index.shards
        self._ends = list(itertools.accumulate(record.sequences for record in index.shards))
        self._open: dict[int, Shard] = {}

    @staticmethod
    def write(
        path: str | Path,
        *,
        vocabulary_size: int,
        fingerprint: str,
        ids: str = "packed",
        draws: int | None = None,
        log_rest: bool | None = None,
        num_sequences: int | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> TeacherCacheWriter:
        """Begin a cache, or go on with one whose writer was stopped.

        Several processes write one cache each, for a range of the sequences, and :func:`join` makes one of them.

        Args:
            path: Its folder, which need not be there.
            vocabulary_size: V, from 1 to 2^31.
            fingerprint: Says of what text and vocabulary it is, see :func:`fingerprint`; readers ask for it.
            ids: "packed" to the bits that V needs (17.3 for 151,936 classes), or "int32".
            draws: Store counts of so many draws, as :meth:`Teacher.sample` returns, instead of log-probabilities.
            log_rest: Store the rest's log-mass. By default True without `draws` and False with them, which leave none.
            num_sequences: How many there will be, where that is known. The cache is not complete before they are there.
            shard_bytes: The size from which on a shard is committed.

        Returns:
            The writer, to be used in a ``with`` statement. Its `position` is the number of sequences that are there.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: An argument is out of range, the folder holds other things or a cache with other settings, or
                another process is writing it.
        """
        settings = Settings(
            check_integer(vocabulary_size, "vocabulary_size"),
            fingerprint,
            ids,
            None if draws is None else check_integer(draws, "draws"),
            draws is None if log_rest is None else log_rest,
        )
        total = None if num_sequences is None else check_integer(num_sequences, "num_sequences")
        return TeacherCacheWriter(path, settings, total, check_integer(shard_bytes, "shard_bytes"))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> Teacher:
        """Return the teacher ``(T, K)`` of a sequence; a negative number counts from the end."""
        teacher = self.batch([number])
        rest = None if teacher.log_rest is None else teacher.log_rest[0]
        return unchecked(teacher.indices[0], teacher.log_probs[0], rest)

    def __iter__(self) -> Iterator[Teacher]:
        return (self[number] for number in range(len(self)))

    def batch(self, numbers: Iterable[int] | Tensor, *, pad: tuple[int | None, int | None] | None = None) -> Teacher:
        """Return the teachers of some sequences, padded to one shape.

        Args:
            numbers: B numbers of sequences, in any order; a negative one counts from the end.
            pad: (T, K), the positions and slots of the result; by default, or where one of them is None, as many as the
                longest sequence and the fullest position have. Give it where shapes must not vary.

        Returns:
            Indices ``(B, T, K)`` int64, -1 in empty slots; `log_probs` float32, ``-inf`` there; `log_rest` ``(B, T)``
            float32, ``-inf`` in padding, or None where the cache has none.

        Raises:
            IndexError: There is no sequence of such a number.
            TypeError: A number is no integer.
            ValueError: `pad` is smaller than what must be in it, or a shard is damaged.
        """
        found = [self._find(number) for number in (numbers.tolist() if isinstance(numbers, Tensor) else numbers)]
        slots, within = _slots(found)
        length, width = _padded(slots, pad)
        ids, log_probs = _entries(found)
        place = _Place(slots, within, length, width)
        rest = self._rest(found, length)
        return unchecked(place(ids, -1), place(log_probs, -np.inf), rest)

    def verify(self) -> None:
        """Read all shards and compare them with what was written.

        Raises:
            FileNotFoundError: A shard is missing.
            ValueError: One has changed.
        """
        for number in range(len(self.records)):
            self._shard(number).check_content()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def _check_origin(self, fingerprint: str | None, vocabulary_size: int | None) -> None:
        settings = self.settings
        if vocabulary_size is not None and vocabulary_size != settings.vocabulary_size:
            raise ValueError(
                f"vocabulary_size: got {vocabulary_size}, expected {settings.vocabulary_size}, that of the cache at"
                f" {self.path}"
            )
        if fingerprint is not None and fingerprint != settings.fingerprint:
            raise ValueError(
                f"fingerprint: got {fingerprint!r}, expected {settings.fingerprint!r}: the cache at {self.path} is of"
                " another text or vocabulary"
            )

    def _find(self, number: int) -> tuple[Shard, Sequence]:
        where, size = check_integer(number, "numbers"), len(self)
        if not -size <= where < size:
            raise IndexError(f"numbers: got {where}, expected the number of one of {size} sequences")
        where %= size
        place = bisect.bisect_right(self._ends, where)
        shard = self._shard(place)
        return shard, shard.sequence(where - (self._ends[place - 1] if place else 0))

    def _shard(self, place: int) -> Shard:
        if place not in self._open:
            self._open[place] = Shard(self.path, self.records[place], self.settings)
        return self._open[place]

    def _rest(self, found: list[tuple[Shard, Sequence]], length: int) -> Tensor | None:
        if not self.settings.log_rest and self.settings.draws is None:
            return None
        rest = torch.full((len(found), length), -torch.inf, dtype=torch.float32, device="cpu")
        if self.settings.log_rest:
            array = rest.numpy()
            for row, (shard, sequence) in zip(array, found, strict=True):
                values = shard.log_rest(sequence)
                row[: len(values)] = values
        return rest


class _Place:
    """Puts entries, one after the other, into their slots of a padded batch."""

    def __init__(self, slots: Integers, within: np.ndarray, length: int, width: int) -> None:
        self._shape = (*slots.shape[:1], length, width)
        inner = np.zeros((slots.shape[0], length), np.int64)
        inner[:, : slots.shape[1]] = slots
        self._full = bool((inner == width).all())
        if self._full:
            return
        if width and (slots[within] == width).all():  # whole positions are copied faster than single entries
            self._mask = inner == width
        else:
            self._mask = np.arange(width) < inner[..., None]

    def __call__(self, entries: np.ndarray, empty: float) -> Tensor:
        if self._full:
            return torch.from_numpy(entries.reshape(self._shape))
        padded = np.full(self._shape, empty, entries.dtype)
        padded[self._mask] = entries if self._mask.ndim == 3 else entries.reshape(-1, self._shape[-1])
        return torch.from_numpy(padded)


def _slots(found: list[tuple[Shard, Sequence]]) -> tuple[Integers, np.ndarray]:
    """(B, T) the entries of each position, and whether it is one."""
    counts = [shard.slots(sequence) for shard, sequence in found]
    lengths = np.array([len(count) for count in counts], np.int64)
    slots = np.zeros((len(found), int(lengths.max(initial=0))), np.int64)
    for row, count in zip(slots, counts, strict=True):
        row[: len(count)] = count
    return slots, np.arange(slots.shape[1]) < lengths[:, None]


def _padded(slots: Integers, pad: tuple[int | None, int | None] | None) -> tuple[int, int]:
    """T and K of a batch."""
    needed = (slots.shape[1], int(slots.max(initial=0)))
    if pad is None:
        return needed
    if not isinstance(pad, tuple) or len(pad) != 2:
        raise TypeError(f"pad: got {pad!r}, expected a tuple (T, K)")
    sizes = [
        least if wanted is None else check_integer(wanted, "pad") for wanted, least in zip(pad, needed, strict=True)
    ]
    for name, size, least in zip(("T", "K"), sizes, needed, strict=True):
        if size < least:
            raise ValueError(f"pad: got {name} = {size}, expected at least {least}, which a sequence has")
    return sizes[0], sizes[1]


def _entries(found: list[tuple[Shard, Sequence]]) -> tuple[Integers, Floats]:
    """The ids and log-probabilities of sequences, one after the other."""
    total = sum(stop - start for _, (_, (start, stop)) in found)
    ids, log_probs = np.empty(total, np.int64), np.empty(total, np.float32)
    begin = 0
    for shard, group in itertools.groupby(found, key=operator.itemgetter(0)):
        sequences = [sequence for _, sequence in group]
        end = begin + sum(stop - start for _, (start, stop) in sequences)
        shard.entries(sequences, ids[begin:end], log_probs[begin:end])
        begin = end
    return ids, log_probs
