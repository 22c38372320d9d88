"""A shard: some sequences of a cache in one safetensors file.

Its tensors, with n sequences, P positions and E entries:

* ``position_starts`` and ``entry_starts`` ``(n + 1)`` int64: where each sequence begins, and the end.
* ``slots`` ``(P)``: the entries of each position. Missing where all have the same number, which the metadata tell.
* ``ids``: ``(E)`` int32, or a stream of bytes, see :mod:`.packing`.
* ``log_probs`` ``(E)`` uint16, see :mod:`.fixed_point`; or ``counts``, less one each, as a stream of bytes.
* ``log_rest`` ``(P)`` uint16, where it is stored.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from smoothloss._files import write_atomically
from smoothloss._tensor_file import open_tensors
from smoothloss.distillation.cache import fixed_point
from smoothloss.distillation.cache.index import Settings, ShardRecord, parse_settings
from smoothloss.distillation.cache.packing import Integers, Packing

_KEY = "smoothloss.teacher_cache"  # of the metadata
_STARTS = ("position_starts", "entry_starts")
_ENTRIES_AT_A_TIME = 1 << 16  # what decoding them needs stays in the processor's cache

Floats = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]


class Content(NamedTuple):
    """Sequences as a shard stores them, before they are packed.

    Attributes:
        lengths: ``(n)`` int64, the positions of each.
        slots: ``(P)`` int64, the entries of each position.
        ids: ``(E)`` int32.
        values: ``(E)``, the codes of log-probabilities, or the counts less one.
        log_rest: ``(P)`` codes, or None.
    """

    lengths: Integers
    slots: Integers
    ids: npt.NDArray[np.int32]
    values: npt.NDArray[np.integer]
    log_rest: npt.NDArray[np.uint16] | None

    @classmethod
    def joined(cls, parts: list[Content]) -> Content:
        """Return the sequences of several, one after the other."""
        rest = [part.log_rest for part in parts if part.log_rest is not None]
        lengths, slots, ids, values = (np.concatenate([part[place] for part in parts]) for place in range(4))
        return cls(lengths, slots, ids, values, np.concatenate(rest) if rest else None)

    @property
    def nbytes(self) -> int:
        """About the bytes of the shard that it makes, from above."""
        return 16 * len(self.lengths) + 4 * len(self.slots) + 6 * len(self.ids)


def write_shard(folder: Path, name: str, settings: Settings, content: Content, batches: int) -> ShardRecord:
    """Write a shard, whole or not at all, and return what the index says of it."""
    from safetensors.numpy import save

    arrays, same = _arrays(settings, content)
    metadata = {_KEY: json.dumps({"settings": asdict(settings), "slots": same})}
    file = save(arrays, metadata=metadata)
    write_atomically(folder / name, file)
    return ShardRecord(
        name, len(content.lengths), len(content.slots), len(content.ids), batches, len(file),
        hashlib.sha256(file).hexdigest(),
    )  # fmt: skip


def _arrays(settings: Settings, content: Content) -> tuple[Arrays, int | None]:
    """The tensors of a shard, and the number of entries of every position where it is the same."""
    before = np.concatenate([[0], np.cumsum(content.slots)])
    position_starts = np.concatenate([[0], np.cumsum(content.lengths)]).astype(np.int64)
    arrays: Arrays = {"position_starts": position_starts, "entry_starts": before[position_starts].astype(np.int64)}
    least, most = (int(content.slots.min()), int(content.slots.max())) if len(content.slots) else (0, 0)
    if least != most:
        arrays["slots"] = content.slots.astype(np.min_scalar_type(most))
    packed = settings.ids == "packed"
    arrays["ids"] = Packing.of(settings.vocabulary_size).pack(content.ids) if packed else content.ids
    if settings.draws is None:
        arrays["log_probs"] = content.values
    else:
        arrays["counts"] = Packing.of(settings.draws).pack(content.values)
    if content.log_rest is not None:
        arrays["log_rest"] = content.log_rest
    return arrays, most if least == most else None


class Sequence(NamedTuple):
    """Where a sequence of a shard lies: its positions and its entries, ``[start, stop)``."""

    positions: tuple[int, int]
    entries: tuple[int, int]


class Shard:
    """A shard that is open for reading, mapped into memory.

    Raises:
        FileNotFoundError: It is missing.
        ValueError: It is damaged, or not the one that the index means.
    """

    def __init__(self, folder: Path, record: ShardRecord, settings: Settings) -> None:
        self.path, self._record, self._settings = folder / record.file, record, settings
        check_size(folder, record)
        with _damage(self.path):
            self._arrays, self._same = self._open()
            self._check()

    def sequence(self, number: int) -> Sequence:
        """Return where a sequence lies."""
        (p0, p1), (e0, e1) = (self._arrays[name][number : number + 2].tolist() for name in _STARTS)
        return Sequence((p0, p1), (e0, e1))

    def slots(self, sequence: Sequence) -> Integers:
        """Return the number of entries of each position of a sequence."""
        (start, stop), (first, last) = sequence
        if self._same is not None:
            return np.full(stop - start, self._same, np.int64)
        slots: Integers = self._arrays["slots"][start:stop].astype(np.int64)
        if slots.sum() != last - first:
            self._raise("slots")
        return slots

    def log_rest(self, sequence: Sequence) -> Floats:
        """Return the rest's log-mass at each position of a sequence."""
        start, stop = sequence.positions
        return fixed_point.decode(self._arrays["log_rest"][start:stop])

    def entries(self, sequences: Iterable[Sequence], ids: Integers, log_probs: Floats) -> None:
        """Write the entries of sequences into two arrays, one after the other."""
        begin = 0
        for spans in _pieces(sequence.entries for sequence in sequences):
            end = begin + sum(stop - start for start, stop in spans)
            ids[begin:end] = self._ids(spans)
            log_probs[begin:end] = self._log_probs(spans)
            begin = end

    def check_content(self) -> None:
        """Read everything and raise ValueError where it is not what was written."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != self._record.sha256:
            raise ValueError(f"path: {self.path} is a damaged shard of a teacher cache (its content has changed)")

    def _ids(self, spans: list[tuple[int, int]]) -> npt.NDArray[np.integer]:
        stored = self._arrays["ids"]
        if self._settings.ids == "packed":
            ids: npt.NDArray[np.integer] = self._packing.unpack(stored, spans)
        else:
            ids = _taken(stored, spans).view(np.uint32)  # where a negative one is too large
        if len(ids) and ids.max() >= self._settings.vocabulary_size:
            self._raise("ids")
        return ids

    def _log_probs(self, spans: list[tuple[int, int]]) -> Floats:
        if self._settings.draws is None:
            return fixed_point.decode(_taken(self._arrays["log_probs"], spans))
        counts = Packing.of(self._settings.draws).unpack(self._arrays["counts"], spans)
        if len(counts) and counts.max() >= self._settings.draws:
            self._raise("counts")
        return _log_shares(self._settings.draws)[counts]

    @functools.cached_property
    def _packing(self) -> Packing:
        return Packing.of(self._settings.vocabulary_size)

    def _open(self) -> tuple[Arrays, int | None]:
        # As torch's tensors: those are mapped into memory, numpy's are read.
        with open_tensors(self.path) as file:
            metadata = json.loads((file.metadata() or {}).get(_KEY, "null"))
            arrays = {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118 (not a dict)
        if not isinstance(metadata, dict) or set(metadata) != {"settings", "slots"}:
            raise ValueError(f"no metadata of {_KEY}")
        difference = self._settings.difference(parse_settings(metadata["settings"]))
        if difference:
            raise ValueError(f"of another cache: {difference}")
        same = metadata["slots"]
        if same is not None and (isinstance(same, bool) or not isinstance(same, int) or same < 0):
            raise ValueError(f"slots: got {same!r}, expected a number or null")
        return arrays, same

    def _check(self) -> None:
        expected = _expected(self._settings, self._record, self._same)
        got = {name: (str(array.dtype), array.shape) for name, array in self._arrays.items()}
        if self._same is None and "slots" in got and got["slots"][0] in ("uint8", "uint16", "uint32"):
            expected["slots"] = (got["slots"][0], (self._record.positions,))
        if got != expected:
            raise ValueError(f"tensors {got}, expected {expected}")
        for name, total in zip(_STARTS, (self._record.positions, self._record.entries), strict=True):
            starts = self._arrays[name]
            if starts[0] != 0 or starts[-1] != total or (np.diff(starts) < 0).any():
                raise ValueError(name)
        positions, entries = (self._arrays[name] for name in _STARTS)
        if self._same is not None and (positions * self._same != entries).any():
            raise ValueError("slots")

    def _raise(self, what: str) -> NoReturn:
        raise ValueError(f"path: {self.path} is a damaged shard of a teacher cache ({what})")


def check_size(folder: Path, record: ShardRecord) -> None:
    """Raise where a shard is missing, or has not the size that the index knows."""
    path = folder / record.file
    if not path.is_file():
        raise FileNotFoundError(f"path: the cache at {folder} lacks its shard {record.file}")
    size = path.stat().st_size
    if size != record.bytes:
        raise ValueError(
            f"path: {path} is a damaged shard of a teacher cache (got {size} bytes, expected {record.bytes})"
        )


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Make one line of what is wrong with a file."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, ValueError, TypeError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"path: {path} is a damaged shard of a teacher cache ({text})") from None


def _expected(settings: Settings, record: ShardRecord, same: int | None) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtype and shape of each tensor, but for the slots."""
    expected: dict[str, tuple[str, tuple[int, ...]]] = dict.fromkeys(_STARTS, ("int64", (record.sequences + 1,)))
    if same is None:
        expected["slots"] = ("uint8", (record.positions,))
    if settings.ids == "packed":
        expected["ids"] = ("uint8", (Packing.of(settings.vocabulary_size).size(record.entries),))
    else:
        expected["ids"] = ("int32", (record.entries,))
    if settings.draws is None:
        expected["log_probs"] = ("uint16", (record.entries,))
    else:
        expected["counts"] = ("uint8", (Packing.of(settings.draws).size(record.entries),))
    if settings.log_rest:
        expected["log_rest"] = ("uint16", (record.positions,))
    return expected


def _pieces(spans: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """The same spans, cut and gathered into pieces of so many entries at most."""
    piece: list[tuple[int, int]] = []
    room = _ENTRIES_AT_A_TIME
    for start, stop in spans:
        while start < stop:
            end = min(stop, start + room)
            piece.append((start, end))
            room -= end - start
            start = end
            if room == 0:
                yield piece
                piece, room = [], _ENTRIES_AT_A_TIME
    if piece:
        yield piece


def _taken(array: npt.NDArray[Any], spans: list[tuple[int, int]]) -> npt.NDArray[Any]:
    parts = [array[start:stop] for start, stop in spans]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@functools.lru_cache(maxsize=8)
def _log_shares(draws: int) -> Floats:
    """The log of 1, 2, ... n of n draws."""
    return np.log(np.arange(1, draws + 1) / draws).astype(np.float32)
