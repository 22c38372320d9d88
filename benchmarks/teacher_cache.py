"""What a cache of a teacher costs: bytes an entry and a token, the error of a probability, entries a second.

Times are those of the processor and not of the clock, so that what else the machine does does not count: entries a
second a core. Sequences are read in random order, from files that the system has in memory, and come as padded batches.

    python -m benchmarks.teacher_cache --out benchmarks/results/teacher_cache_cpu.json
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.measure import Function, Row, markdown, write_json
from smoothloss.distillation import Teacher, TeacherCache

COLUMNS = {
    "what": "cache",
    "vocabulary_size": "V",
    "batch": "batch",
    "bytes_an_entry": "bytes an entry",
    "bytes_a_token": "a token",
    "relative_error": "error of a probability",
    "write_millions": "written, millions/s",
    "read_millions": "read, millions/s",
}
BATCHES = (1, 8, 32)
NOTHING = -torch.inf


class Kind(NamedTuple):
    """A cache to measure: K entries a position at most, of V classes."""

    name: str
    classes: int
    slots: int
    ragged: bool = False
    options: dict[str, Any] = {}  # noqa: RUF012 (never changed)


KINDS = (
    Kind("top 64", 151_936, 64),
    Kind("top 64, ids int32", 151_936, 64, options={"ids": "int32"}),
    Kind("top 64", 65_536, 64),
    Kind("top 64", 9_800, 64),
    Kind("1 to 64, by position", 151_936, 64, ragged=True),
    Kind("12 draws, all different", 151_936, 12, options={"draws": 12}),
)


def teachers(kind: Kind, sequences: int, length: int) -> list[Teacher]:
    """Return teachers with random ids and probabilities of all sizes."""
    generator = torch.Generator().manual_seed(0)
    shape = (sequences, length, kind.slots)
    indices = torch.randint(0, kind.classes, shape, generator=generator)
    if kind.ragged:
        count = torch.randint(1, kind.slots + 1, (*shape[:2], 1), generator=generator)
        indices = torch.where(torch.arange(kind.slots) < count, indices, -1)
    if "draws" in kind.options:
        log_probs = torch.full((*shape[:2], kind.slots + 1), 1 / kind.slots).log()
        log_probs[..., -1] = NOTHING
    else:
        logits = 4 * torch.randn((*shape[:2], kind.slots + 1), generator=generator)
        log_probs = logits.log_softmax(-1).sort(-1, descending=True).values
    return [Teacher(i, p[:, :-1], p[:, -1]) for i, p in zip(indices, log_probs, strict=True)]


def measure(kind: Kind, folder: Path, sequences: int, length: int, repeats: int) -> list[Row]:
    """Write a cache and read it in batches of several sizes."""
    written = teachers(kind, sequences, length)
    path = folder / "cache"
    seconds = _seconds(lambda: write(kind, path, written))
    cache = TeacherCache(path)
    entries, size = sum(record.entries for record in cache.records), _size(path)
    head = {
        "what": kind.name,
        "vocabulary_size": kind.classes,
        "sequences": sequences,
        "positions": length,
        "entries": entries,
        "bytes_an_entry": size / entries,
        "bytes_a_token": size / (sequences * length),
        "relative_error": max(_error(got, expected) for got, expected in zip(cache, written, strict=True)),
        "write_millions": entries / seconds / 1e6,
    }
    rows = []
    for batch in BATCHES:
        times = read_times(cache, batch, repeats)
        rows.append(head | {"batch": batch, "runs": repeats, **_summary([entries / value / 1e6 for value in times])})
    return rows


def write(kind: Kind, path: Path, sequences: list[Teacher]) -> None:
    """Write a cache."""
    with TeacherCache.write(path, vocabulary_size=kind.classes, fingerprint="benchmark", **kind.options) as writer:
        for teacher in sequences:
            writer.add(teacher)


def read_times(cache: TeacherCache, batch: int, repeats: int) -> list[float]:
    """Return the seconds of several passes over all sequences, each in another order."""
    shuffler, times = random.Random(0), []
    for number in range(repeats + 1):
        order = list(range(len(cache)))
        shuffler.shuffle(order)
        seconds = _seconds(lambda order=order: _read(cache, order, batch))  # type: ignore[misc]
        if number:  # the first one maps the files
            times.append(seconds)
    return times


def _read(cache: TeacherCache, order: list[int], batch: int) -> None:
    for begin in range(0, len(order), batch):
        cache.batch(order[begin : begin + batch])


def _seconds(function: Function | Callable[[], None]) -> float:
    begin = time.process_time()
    function()
    return time.process_time() - begin


def _summary(values: list[float]) -> Row:
    deciles = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
    return {
        "read_millions": statistics.median(values),
        "read_millions_p20": deciles[1],
        "read_millions_p80": deciles[7],
    }


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


def _error(got: Teacher, expected: Teacher) -> float:
    """The largest relative error of a probability."""
    known = [part.log_probs[part.indices >= 0].double() for part in (got, expected)]
    return float((known[0] - known[1]).expm1().abs().max())


def main() -> None:
    """Print the table, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--positions", type=int, default=512, help="of each sequence")
    parser.add_argument("--repeats", type=int, default=15, help="passes over a cache")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(kind, Path(folder), arguments.sequences, arguments.positions, arguments.repeats)
    print(markdown(rows, COLUMNS))
    write_json(arguments.out, torch.device("cpu"), rows)


if __name__ == "__main__":
    main()
