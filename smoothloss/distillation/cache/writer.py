"""Writes a cache, sequence after sequence, in shards that are committed one by one."""

from __future__ import annotations

import errno
import os
import re
import weakref
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from smoothloss._files import is_temporary
from smoothloss._validation import check_shape, check_tensor
from smoothloss.distillation.cache import fixed_point
from smoothloss.distillation.cache.index import NAME, Index, Settings, read_index
from smoothloss.distillation.cache.shard import Content, check_size, write_shard
from smoothloss.distillation.teacher import Teacher, unchecked

SHARD_BYTES = 1 << 27
_SHARD = re.compile(r"shard-\d{5,}\.safetensors")
_MOST_OFF = 1e-2  # how far from a whole number a count may be that float32 log-probabilities stand for


class TeacherCacheWriter:
    """Appends the teachers of sequences to a cache. Made by :meth:`TeacherCache.write`.

    A shard is committed when it is full, and at the end of the ``with`` block: its file is written first, then the
    index that names it, each whole or not at all. What is not committed when the process dies, or when the block
    raises, is not in the cache; opened again, the writer goes on at `position`::

        with TeacherCache.write(path, vocabulary_size=V, fingerprint=text) as writer:
            for sequence in sequences[writer.position :]:
                writer.add(Teacher.from_logits(model(sequence), k=64))

    Attributes:
        path: The cache's folder.
        settings: What all shards have in common.
        position: The number of sequences so far, and so that of the next.
        batches: By how many calls of `add` and `add_batch` they came. Those of one call are committed together.
    """

    def __init__(self, path: str | Path, settings: Settings, num_sequences: int | None, shard_bytes: int) -> None:
        if shard_bytes < 1:
            raise ValueError(f"shard_bytes: got {shard_bytes}, expected at least 1")
        _check_folder(Path(path))
        # Shards are written later, when the working folder may be another one.
        self.path, self.settings, self._shard_bytes = Path(path).absolute(), settings, shard_bytes
        wanted = Index(settings, num_sequences=num_sequences)
        self._pending: list[Content] = []
        self._pending_bytes = 0
        self.path.mkdir(parents=True, exist_ok=True)
        # Given back by close(), by the garbage collector, or by the end of the process, whatever that is.
        self._lock = weakref.finalize(self, os.close, _locked(self.path))
        try:
            self._index = self._opened(wanted)
            _remove_leftovers(self.path, self._index)
        except BaseException:
            self.close()
            raise
        self.position, self.batches = self._index.sequences, self._index.batches

    def __enter__(self) -> TeacherCacheWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()

    def add(self, teacher: Teacher) -> None:
        """Append one sequence.

        Args:
            teacher: Of shape ``(T, K)``. Empty slots are left out.

        Raises:
            TypeError: It is no :class:`Teacher`.
            ValueError: Its shape, a class or the rest do not fit the cache, or all sequences are there.
        """
        _check_teacher(teacher, 2, "(T, K)")
        rest = None if teacher.log_rest is None else teacher.log_rest[None]
        self.add_batch(unchecked(teacher.indices[None], teacher.log_probs[None], rest))

    def add_batch(self, teacher: Teacher, lengths: Tensor | None = None) -> None:
        """Append the sequences of a batch, all or none of them.

        Args:
            teacher: Of shape ``(B, T, K)``.
            lengths: ``(B,)`` int64 or int32, how many positions of each sequence to keep; all by default.

        Raises:
            TypeError: As in :meth:`add`.
            ValueError: As in :meth:`add`.
        """
        if not self._lock.alive:
            raise ValueError("writer: got a writer that is closed, expected an open one")
        _check_teacher(teacher, 3, "(B, T, K)")
        content = _content(self.settings, teacher, _within(teacher, lengths))
        total = self._index.num_sequences
        if total is not None and self.position + len(content.lengths) > total:
            raise ValueError(f"num_sequences: got sequence {total + 1}, expected {total} in all")
        self._pending.append(content)
        self.position += len(content.lengths)
        self.batches += 1
        self._pending_bytes += content.nbytes
        if self._pending_bytes >= self._shard_bytes:
            self.commit()

    def commit(self) -> None:
        """Write what was added since the last commit as a shard, and enter it in the index."""
        if not self._pending:
            return
        name = f"shard-{len(self._index.shards):05d}.safetensors"
        content = Content.joined(self._pending)
        record = write_shard(self.path, name, self.settings, content, self.batches - self._index.batches)
        self._update(replace(self._index, complete=False, shards=(*self._index.shards, record)))
        self._pending, self._pending_bytes = [], 0

    def finish(self) -> None:
        """Commit the rest and mark the cache as complete, which the end of a ``with`` block does.

        Raises:
            ValueError: Other than `num_sequences` sequences were added; those that were are committed.
        """
        self.commit()
        total = self._index.num_sequences
        if total is not None and self.position != total:
            raise ValueError(f"num_sequences: got {self.position} sequences, expected {total}")
        if not self._index.complete:
            self._update(replace(self._index, complete=True))

    def close(self) -> None:
        """Let others write the cache. What is not committed is lost."""
        self._pending = []
        self._lock()

    def _opened(self, wanted: Index) -> Index:
        """The index that is there, or a new one."""
        if not (self.path / NAME).exists():
            wanted.write(self.path)
            return wanted
        index = read_index(self.path)
        difference = index.settings.difference(self.settings)
        if difference:
            raise ValueError(f"{difference}, as in the cache at {self.path}")
        if wanted.num_sequences is not None and wanted.num_sequences < index.sequences:
            raise ValueError(f"num_sequences: got {wanted.num_sequences}, expected the {index.sequences} there or more")
        for shard in index.shards:
            check_size(self.path, shard)
        total = wanted.num_sequences
        return replace(index, num_sequences=index.num_sequences if total is None and not index.complete else total)

    def _update(self, index: Index) -> None:
        index.write(self.path)
        self._index = index


def _check_folder(path: Path) -> None:
    """Raise unless this is a cache, an empty folder, or nothing yet."""
    if not path.exists():
        return
    if not path.is_dir():
        raise ValueError(f"path: got {path}, a file, expected a folder")
    if not (path / NAME).exists() and not all(is_temporary(file.name) for file in path.iterdir()):
        raise ValueError(f"path: got {path}, a folder of other things, expected a cache or an empty folder")


def _locked(path: Path) -> int:
    """Lock a folder for this process, until the descriptor that is returned is closed, if only by a kill."""
    import fcntl

    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(descriptor)
            raise ValueError(f"path: another process is writing the cache at {path}") from None
        # A file system without locks: the caller sees to it that nobody else writes here.
    return descriptor


def _remove_leftovers(path: Path, index: Index) -> None:
    """Remove what a writer that was killed left behind: half a file, or a shard that no index names."""
    known = {shard.file for shard in index.shards}
    for file in path.iterdir():
        if is_temporary(file.name) or (_SHARD.fullmatch(file.name) and file.name not in known):
            file.unlink()


def _check_teacher(teacher: Teacher, dimensions: int, shape: str) -> None:
    if not isinstance(teacher, Teacher):
        raise TypeError(f"teacher: got {type(teacher).__name__}, expected a Teacher")
    if teacher.indices.dim() != dimensions:
        raise ValueError(f"teacher: got indices of shape {tuple(teacher.indices.shape)}, expected {shape}")


def _within(teacher: Teacher, lengths: Tensor | None) -> Tensor:
    """(B, T) bool, on the CPU: the positions to keep."""
    batch, width = teacher.indices.shape[:2]
    if lengths is None:
        return torch.ones((batch, width), dtype=torch.bool, device="cpu")
    lengths = check_tensor(lengths, "lengths", floating=False).cpu()
    check_shape(lengths, "lengths", (batch,), "one number a sequence")
    if batch and not (lengths.min() >= 0 and lengths.max() <= width):
        wrong = lengths[(lengths < 0) | (lengths > width)][0]
        raise ValueError(f"lengths: got {int(wrong)}, expected between 0 and {width}")
    return torch.arange(width, device="cpu") < lengths[:, None]


def _content(settings: Settings, teacher: Teacher, within: Tensor) -> Content:
    indices, log_probs = teacher.indices.detach().cpu()[within], teacher.log_probs.detach().cpu()[within]
    occupied = indices >= 0  # (P, K)
    ids, known = indices[occupied], log_probs[occupied].double().numpy()
    if len(ids) and ids.max() >= settings.vocabulary_size:
        raise ValueError(f"indices: got {int(ids.max())}, expected classes below {settings.vocabulary_size}")
    if np.isnan(known).any() or (len(known) and known.max() > 0.1):  # a teacher on a GPU checks no values
        raise ValueError(f"log_probs: got {known.max()}, expected log-probabilities, at most 0")
    slots = occupied.sum(-1).numpy()
    values = fixed_point.encode(known) if settings.draws is None else _counts(known, slots, settings.draws) - 1
    rest = _rest(settings, teacher, within)
    return Content(within.sum(-1).numpy(), slots, ids.to(torch.int32).numpy(), values, rest)


def _counts(log_probs: np.ndarray, slots: np.ndarray, draws: int) -> np.ndarray:
    """How often each class was drawn: log_probs = log(count / draws)."""
    shares = np.exp(log_probs) * draws
    counts = np.rint(shares).astype(np.int64)
    totals = np.diff(np.concatenate([[0], np.cumsum(counts)])[np.concatenate([[0], np.cumsum(slots)])])
    if (np.abs(shares - counts) > _MOST_OFF).any() or (counts < 1).any() or (totals[slots > 0] != draws).any():
        raise ValueError(f"log_probs: expected the log of shares of {draws} draws, as Teacher.sample returns them")
    return counts


def _rest(settings: Settings, teacher: Teacher, within: Tensor) -> np.ndarray | None:
    rest = None if teacher.log_rest is None else teacher.log_rest.detach().cpu()[within].double().numpy()
    if settings.draws is not None:
        if rest is not None and not np.isneginf(rest).all():
            raise ValueError("log_rest: got a rest beside draws, expected None or -inf")
        return None
    if not settings.log_rest:
        return None
    if rest is None:
        raise ValueError("log_rest: got None, expected a tensor: the cache has log_rest=True")
    if np.isnan(rest).any() or (len(rest) and rest.max() > 0.1):
        raise ValueError(f"log_rest: got {rest.max()}, expected log-probabilities, at most 0")
    return fixed_point.encode(rest)
