"""The index of a cache: what it holds, in which shards. One JSON file, replaced as a whole with every shard."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from smoothloss._files import write_atomically

NAME = "index.json"
FORMAT = "smoothloss.teacher_cache"
VERSION = 1
MOST_CLASSES = 1 << 31
MOST_DRAWS = 1 << 16
IDS = ("packed", "int32")


@dataclass(frozen=True)
class Settings:
    """What all shards of a cache have in common.

    Attributes:
        vocabulary_size: V.
        fingerprint: Of what text and vocabulary it is.
        ids: "packed" to the bits that V needs, or "int32".
        draws: How many draws stand behind the counts of a position; None where log-probabilities are stored.
        log_rest: Whether the rest's log-mass is stored.
    """

    vocabulary_size: int
    fingerprint: str
    ids: str
    draws: int | None
    log_rest: bool

    def __post_init__(self) -> None:
        _check(self.vocabulary_size, "vocabulary_size", 1, MOST_CLASSES)
        if not isinstance(self.fingerprint, str):
            raise TypeError(f"fingerprint: got {type(self.fingerprint).__name__}, expected a str")
        if self.ids not in IDS:
            raise ValueError(f"ids: got {self.ids!r}, expected one of {', '.join(map(repr, IDS))}")
        if self.draws is not None:
            _check(self.draws, "draws", 1, MOST_DRAWS)
        if not isinstance(self.log_rest, bool):
            raise TypeError(f"log_rest: got {type(self.log_rest).__name__}, expected a bool")
        if self.draws is not None and self.log_rest:
            raise ValueError("log_rest: got True beside draws, which leave no rest, expected False")

    def difference(self, other: Settings) -> str | None:
        """Return the first setting in which `other` differs, as ``name: got ..., expected ...``, or None."""
        for field in fields(self):
            got, expected = getattr(other, field.name), getattr(self, field.name)
            if got != expected:
                return f"{field.name}: got {got!r}, expected {expected!r}"
        return None


@dataclass(frozen=True)
class ShardRecord:
    """A shard: its file below the folder, what it holds, and how to know that it is whole.

    `batches` is by how many calls of the writer its sequences came.
    """

    file: str
    sequences: int
    positions: int
    entries: int
    batches: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not isinstance(self.file, str) or not _inside(self.file):
            raise ValueError(f"file: got {self.file!r}, expected a path below the cache")
        if not isinstance(self.sha256, str) or not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"sha256: got {self.sha256!r}, expected 64 hexadecimal digits")
        for name in ("sequences", "positions", "entries", "batches", "bytes"):
            _check(getattr(self, name), name, 0, 1 << 62)


@dataclass(frozen=True)
class Index:
    """The content of an index file.

    Attributes:
        settings: See there.
        complete: Whether the writer came to its end.
        num_sequences: How many sequences there will be, where that was known.
        shards: In the order of their sequences.
    """

    settings: Settings
    complete: bool = False
    num_sequences: int | None = None
    shards: tuple[ShardRecord, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.complete, bool):
            raise TypeError(f"complete: got {type(self.complete).__name__}, expected a bool")
        if self.num_sequences is not None:
            _check(self.num_sequences, "num_sequences", 0, 1 << 62)
        if len({shard.file for shard in self.shards}) != len(self.shards):
            raise ValueError("shards: got one of them twice, expected each once")

    @property
    def sequences(self) -> int:
        """How many there are."""
        return sum(shard.sequences for shard in self.shards)

    @property
    def batches(self) -> int:
        """By how many calls of the writer they came."""
        return sum(shard.batches for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Write the file; what was there stays as it was until this one is whole."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_atomically(folder / NAME, (json.dumps(content, indent=1) + "\n").encode())


def read_index(folder: Path) -> Index:
    """Read the index of a cache.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, of something else, or of a newer version.
    """
    path = folder / NAME
    if not path.is_file():
        raise FileNotFoundError(f"path: no teacher cache at {folder}, which has no {NAME}")
    try:
        return _parse(path.read_bytes())
    except RecursionError:
        raise ValueError(f"path: {path} is a damaged index of a teacher cache (nested too deeply)") from None
    except _NewerError as error:
        raise ValueError(f"path: {path} {error}") from None
    except (ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"path: {path} is a damaged index of a teacher cache ({text})") from None


class _NewerError(Exception):
    """The index is of a later format."""


def _parse(content: bytes) -> Index:
    record = json.loads(content.decode(), object_pairs_hook=_without_repeats)
    if not isinstance(record, dict) or record.pop("format", None) != FORMAT:
        raise ValueError(f"expected an object with the format {FORMAT!r}")
    version = record.pop("version", None)
    _check(version, "version", 1, 1 << 31)
    if version > VERSION:
        raise _NewerError(f"is of version {version}, expected at most {VERSION}: a newer smoothloss wrote it")
    settings = _build(Settings, record.get("settings"), "settings")
    shards = record.get("shards")
    if not isinstance(shards, list):
        raise TypeError(f"shards: got {type(shards).__name__}, expected a list")
    records = tuple(_build(ShardRecord, shard, "shard") for shard in shards)
    index: Index = _build(Index, {**record, "settings": settings, "shards": records}, "index")
    if index.complete and index.num_sequences not in (None, index.sequences):
        raise ValueError(f"num_sequences: got {index.num_sequences}, expected {index.sequences}, those of the shards")
    return index


def parse_settings(record: object) -> Settings:
    """Return the settings that a shard has in its metadata, or raise ValueError or TypeError."""
    settings: Settings = _build(Settings, record, "settings")
    return settings


def _build(kind: type[Any], record: object, what: str) -> Any:
    names = {field.name for field in fields(kind)}
    if not isinstance(record, dict) or set(record) != names:
        got = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"{what}: got {got}, expected {sorted(names)}")
    return kind(**record)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("a key occurs twice")
    return record


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _check(value: object, name: str, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {type(value).__name__}, expected an integer")
    if not least <= value <= most:
        raise ValueError(f"{name}: got {value}, expected between {least} and {most}")
