"""Folders that commands write: what in them is ours is known by name, and all else is the user's.

A folder of ours holds a marker, a small JSON file that lists the files written there. A name is listed before its file
is written, so that a process that is killed leaves nothing that is not listed. Only listed files are ever replaced or
removed.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from filelock import FileLock, Timeout

from smoothloss._files import is_temporary, write_atomically
from smoothloss_trainer.errors import RecipeError

VERSION = 1
# The marker of each kind of folder: a training run, the runs of a table or of the demo, what `evaluate --out` wrote.
Kind = Literal["run", "runs", "evaluation"]
LOCK = ".smoothloss.lock"


class Folder:
    """A folder that smoothloss writes.

    Args:
        path: The folder; it need not exist yet.
        kind: What is written there.
    """

    def __init__(self, path: str | Path, kind: Kind) -> None:
        self.path = Path(path)
        self.kind = kind
        self.marker = self.path / f"{kind}.json"

    @property
    def is_marked(self) -> bool:
        """Whether the folder has the marker, be it damaged."""
        return os.path.lexists(self.marker)

    def is_empty(self) -> bool:
        """Whether there is no folder, or nothing in it but a lock and what a killed process had half written."""
        if not os.path.lexists(self.path):
            return True
        try:
            return all(name == LOCK or is_temporary(name) for name in os.listdir(self.path))  # noqa: PTH208
        except NotADirectoryError:
            raise RecipeError(f"{self.path} is a file: choose another --out") from None

    def facts(self) -> dict[str, Any]:
        """What the marker says; nothing when there is none.

        Raises:
            RecipeError: when it is damaged, or of a later version.
        """
        try:
            content = json.loads(self.marker.read_bytes())
            version, names = content["version"], content["files"]
            if content["format"] != f"smoothloss {self.kind}" or not isinstance(version, int):
                raise ValueError("its format is another one")
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
            reason = f"{self.marker} is damaged or not of smoothloss ({' '.join(str(error).split())})"
            raise RecipeError(f"{reason}, so that nobody knows which files are its own: choose another --out") from None
        if version > VERSION:
            later = f"{self.marker} has version {version} and this smoothloss knows {VERSION}"
            raise RecipeError(f"{later}: a later one wrote it, which you need, or choose another --out")
        if not isinstance(names, list) or not all(map(_is_inside, names)):
            raise RecipeError(f"{self.marker} is damaged, it names files outside its folder: choose another --out")
        return dict(content)

    def names(self) -> list[str]:
        """The files that were written, or were about to be, relative to the folder.

        Raises:
            RecipeError: as :meth:`facts`.
        """
        return list(self.facts().get("files", []))

    def check_claim(self, names: Iterable[str], known: Container[str] = ()) -> None:
        """Refuse names that the user's own files have, before anything is written.

        Args:
            names: Of the files to be written.
            known: Names that are ours without being listed.

        Raises:
            RecipeError: naming the first file that is in the way.
        """
        own, names = set(self.names()), list(names)
        for name in names:
            if names.count(name) > 1:
                raise RecipeError(f"two parts of the data would both be written to {name}: give one another name")
            there = self.path / name
            if os.path.lexists(there) and (there.is_dir() or not (name in own or name in known)):
                whose = "is not of smoothloss and in the way of a file that it writes"
                raise RecipeError(f"{there} {whose}: move it away, or choose another --out")

    def claim(self, names: Iterable[str], known: Container[str] = (), **facts: Any) -> None:
        """List names in the marker, and note facts there; what it says already stays.

        Raises:
            RecipeError: as :meth:`check_claim`.
        """
        names = list(names)
        self.check_claim(names, known)
        before = self.facts()
        files = list(dict.fromkeys([*before.get("files", []), *names]))
        self._write(before, {**(before or self._new()), **facts, "files": files})

    def renew(self, names: Iterable[str], **facts: Any) -> None:
        """Remove what was written before, and begin a marker that lists these names.

        Raises:
            RecipeError: as :meth:`check_claim`, before anything is removed.
        """
        names = list(names)
        self.check_claim(names)
        self.clear()
        self._write({}, {**self._new(), **facts, "files": names})

    def remove(self, names: Iterable[str]) -> None:
        """Remove files that the marker lists, and then their names."""
        names, before = set(names), self.facts()
        for name in names.intersection(before.get("files", [])):
            (self.path / name).unlink(missing_ok=True)
        self._write(before, {**before, "files": [name for name in before.get("files", []) if name not in names]})

    def _new(self) -> dict[str, Any]:
        return {"format": f"smoothloss {self.kind}", "version": VERSION, "id": secrets.token_hex(8)}

    def _write(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        if now == before:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(now, indent=1, ensure_ascii=False)
        write_atomically(self.marker, f"{text}\n".encode("utf-8", "backslashreplace"))

    def clear(self) -> None:
        """Remove what was written, and folders that this leaves empty; the marker still lists it.

        Raises:
            RecipeError: as :meth:`facts`.
        """
        facts = self.facts()
        own = [self.path / name for name in facts.get("files", [])]
        events = self.path / "tensorboard"  # whose files TensorBoard names, with the run's id at the end
        if facts and events.is_dir():
            own += [file for file in events.iterdir() if file.name.endswith(f".{facts.get('id')}")]
        folders = {file.parent for file in own} - {self.path}
        self.tidy()
        for file in own:
            if file.is_symlink() or not file.is_dir():
                with suppress(FileNotFoundError, NotADirectoryError):
                    file.unlink()
        for folder in sorted(folders, reverse=True):
            with suppress(OSError):  # the user's files are in it, or it is a link
                folder.rmdir()

    def tidy(self) -> None:
        """Remove what a killed process had half written; only for who holds the lock."""
        for folder in {self.path, *((self.path / name).parent for name in self.names())}:
            if folder.is_dir():
                for file in folder.iterdir():
                    if is_temporary(file.name):
                        file.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from writing here; a folder that is still empty at the end goes.

        Raises:
            RecipeError: when another process holds the lock, or the path is no folder.
        """
        try:
            made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, ValueError):  # the last for a NUL
            raise RecipeError(f"{str(self.path)!r} can be no folder: choose another --out") from None
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=0.3, poll_interval=0.05)  # a report looks whether it is held, and holds it meanwhile
        except Timeout:
            busy = "another process is writing there: wait for its end, or choose another --out"
            raise RecipeError(f"{self.path} is in use, {busy}") from None
        try:
            yield
        finally:
            # While it is held: who has opened it meanwhile finds no link to it and opens a new one.
            (self.path / LOCK).unlink(missing_ok=True)
            lock.release()
            with suppress(OSError):
                for folder in made:
                    folder.rmdir()


@contextmanager
def folder_of_runs(path: Path, command: str, names: Iterable[str], known: Container[str] = ()) -> Iterator[None]:
    """Hold the folder of a command that trains several runs in folders of their own, and list its other files.

    Args:
        path: The folder.
        command: ``reproduce``, ``tune`` or ``demo``.
        names: Of the files that it writes besides the runs.
        known: Those of them that an earlier version wrote without listing them.

    Raises:
        RecipeError: when there is something else, or another process writes there.
    """
    folder = Folder(path, "runs")
    with folder.lock():
        of_command = folder.facts().get("command", command) == command
        if not of_command or not (folder.is_marked or folder.is_empty() or known):
            raise RecipeError(f"{path} is not empty and not of `smoothloss {command}`: choose another --out")
        folder.claim(names, known, command=command)
        folder.tidy()
        yield


def _is_inside(name: Any) -> bool:
    """Whether a name of a marker is that of a file in its folder."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and bool(path.parts)


def check_part_name(name: str, key: str) -> None:
    """Refuse a name that cannot be part of a file's name.

    Raises:
        RecipeError: naming the recipe's ``key``.
    """
    odd = not name or name in (".", "..") or not name.isprintable() or any(char in name for char in "/\\")
    if odd or len(name.encode("utf-8", "surrogateescape")) > 200:
        raise RecipeError(f"{key} must be part of a file's name: 1 to 200 bytes and no slash, got {name[:50]!r}")
