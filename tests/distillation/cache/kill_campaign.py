"""Kills a writer over and over, and looks at what is left each time.

    POSITIONS=50000 python kill_campaign.py FOLDER --kills 100 --seed 0

Two kinds of death, both by SIGKILL: at a random moment, which falls anywhere in a file that is being written; and at
each opening, renaming and removing of a file in turn. After each one the cache must hold all that the writer had
reported as committed, each sequence once and as it was given, and the next writer goes on from there.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from smoothloss.distillation import Teacher, TeacherCache

CLASSES = 151_936
SEQUENCES = 6
POSITIONS = int(os.environ.get("POSITIONS", "5"))  # of a sequence at least; more of them make longer files


def teacher(number: int) -> Teacher:
    """Return the teacher of a sequence, which is no other's."""
    generator = torch.Generator().manual_seed(number)
    logits = torch.randn((POSITIONS + number % 3, 8), generator=generator)
    log_probs = logits.log_softmax(-1)
    indices = torch.randint(0, CLASSES, (len(logits), 7), generator=generator)
    return Teacher(indices, log_probs[:, :7], log_probs[:, 7])


def write(path: Path, report: int) -> None:
    """Write what is missing, and report after each commit how many sequences are in the cache."""
    with TeacherCache.write(path, vocabulary_size=CLASSES, fingerprint="text", shard_bytes=1 << 40) as writer:
        while writer.position < SEQUENCES:
            for _ in range(2):
                writer.add(teacher(writer.position))
            writer.commit()
            os.write(report, bytes([writer.position]))


def write_and_die(path: Path, report: int, event: int | None) -> None:
    """Write in this process; die at the nth of the events that touch files, or be killed from outside."""
    if event is not None:
        events = itertools.count()

        def die(name: str, arguments: tuple[object, ...]) -> None:
            if name in ("open", "os.mkdir", "os.rename", "os.remove", "os.chmod") and next(events) == event:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(die)
    write(path, report)


def killed_once(path: Path, after: float | None, event: int | None) -> tuple[bool, int]:
    """Run a writer in a process of its own; return whether it was killed, and the last number that it reported."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write_and_die(path, writing, event)
        except BaseException as error:  # whatever goes wrong, this process must not go on as the campaign
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    os.close(writing)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    with os.fdopen(reading, "rb") as reports:
        reported = reports.read()
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the writer failed"
    return os.WIFSIGNALED(status), reported[-1] if reported else 0


def check(path: Path, least: int) -> int:
    """Assert that a cache is a whole beginning of what it will be, and return how many sequences it has."""
    if not (path / "index.json").exists():
        assert least == 0
        return 0
    cache = TeacherCache(path, partial=True)
    cache.verify()
    assert least <= len(cache) <= SEQUENCES, f"{len(cache)} sequences are there, {least} had been committed"
    assert not cache.complete or len(cache) == SEQUENCES
    for number, got in enumerate(cache):
        expected = teacher(number)
        assert torch.equal(got.indices, expected.indices), f"sequence {number} is not what was written"
        assert (got.log_probs - expected.log_probs).abs().max() < 2.5e-4
    return len(cache)


def campaign(folder: Path, kills: int, seed: int, every: int) -> dict[str, int]:
    """Kill writers so many times at random moments, and at every nth event; return what was seen."""
    seen = {"killed at random": 0, "killed at an event": 0, "finished": 0, "with something left to remove": 0}
    moment, path = random.Random(seed), folder / "random"
    begin = time.perf_counter()
    killed_once(path, None, None)
    whole, have = time.perf_counter() - begin, check(path, SEQUENCES)
    while seen["killed at random"] < kills:
        if have == SEQUENCES and TeacherCache(path, partial=True).complete:
            shutil.rmtree(path)
            have = 0
            seen["finished"] += 1
        killed, reported = killed_once(path, moment.uniform(0, whole), None)
        have = check(path, max(have, reported))
        seen["killed at random"] += killed
        seen["with something left to remove"] += _leftovers(path)
    for event in itertools.count(0, every):
        path = folder / f"event-{event}"
        killed, reported = killed_once(path, None, event)
        have = check(path, reported)
        seen["with something left to remove"] += _leftovers(path)
        assert killed_once(path, None, None)[0] is False
        assert check(path, have) == SEQUENCES and TeacherCache(path).complete
        assert _leftovers(path) == 0
        if not killed:
            return seen
        seen["killed at an event"] += 1
    raise AssertionError


def _leftovers(path: Path) -> bool:
    """Whether files lie there that no index names."""
    if not path.exists():
        return False
    known = {"index.json"}
    if (path / "index.json").exists():
        known |= {record.file for record in TeacherCache(path, partial=True).records}
    return any(file.name not in known for file in path.iterdir())


def main() -> None:
    """Run a campaign and tell what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="an empty folder")
    parser.add_argument("--kills", type=int, default=100, help="at random moments")
    parser.add_argument("--every", type=int, default=1, help="which of the events, 1 for each of them")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for what, count in campaign(arguments.folder, arguments.kills, arguments.seed, arguments.every).items():
        sys.stdout.write(f"{what}: {count}\n")


if __name__ == "__main__":
    main()
