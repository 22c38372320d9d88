"""Files that are written whole or not at all.

A regular file is written beside the place where it belongs, synced to disk, and renamed over what is there. So a crash,
a full disk or a signal leaves the file of before. What else the writer keeps to:

* Symbolic links are written through, also those that lead nowhere yet.
* A file that is there keeps its mode, owner and access list, as far as the user may set them; a new one gets what the
  umask leaves. A file that the user may not write is not written, though its folder would allow a rename.
* Of hard links only the named one changes: the others are copies that somebody made to keep (a backup, say).
* Devices, pipes and the process's own descriptors (``/dev/stdout``, ``/dev/fd/3``) are written into directly.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_TEMPORARY = re.compile(r"\.smoothloss-[0-9a-f]{16}\.tmp")
_MOST_LINKS = 40  # that a path leads through; as in Linux


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: when it cannot be written (a full disk, a folder); what was there before is untouched.
    """
    with _named(path):
        special = _open_special(path)
        if special is None:
            with _beside(path) as temporary:
                temporary.write_bytes(content)
        else:
            with special:
                special.write(content)


def write_out(path: str | Path, content: bytes) -> None:
    """Write what a command's ``--out`` names, as :func:`write_atomically` does; ``-`` is the standard output."""
    if str(path) == "-":
        if sys.stdout is None:
            raise OSError("standard output is closed")
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.flush()
    else:
        write_atomically(path, content)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give the path of an empty file to be filled; at the end it is written to ``path`` as a whole.

    When the body raises, ``path`` stays what it was. A device or pipe gets the content of the finished file.

    Raises:
        OSError: as :func:`write_atomically`.
    """
    with _named(path):
        special = _open_special(path)
    if special is None:
        with _beside(path) as temporary:
            yield temporary
        return
    try:
        with tempfile.TemporaryDirectory(prefix="smoothloss-") as folder:
            whole = Path(folder) / "whole"
            whole.touch()
            yield whole
            with _named(path), special, whole.open("rb") as content:
                shutil.copyfileobj(content, special)
    finally:
        special.close()


def is_temporary(name: str) -> bool:
    """Whether a file's name is that of a half-written file, left by a process that was killed."""
    return _TEMPORARY.fullmatch(name) is not None


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Let errors name ``path``, which the user knows, and not a temporary file; a NUL in it is one of them."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from None
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error), str(path)) from None


def _open_special(path: str | Path) -> BinaryIO | None:
    """Open what is no regular file for writing; None for a regular file, or when there is nothing."""
    number = _own_descriptor(path)
    if number is not None:
        if sys.stdout is not None:  # closed
            sys.stdout.flush()
        return os.fdopen(os.dup(number), "wb")  # a descriptor opened anew would begin at the file's first byte
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    real = Path(os.path.realpath(path))
    if stat.S_ISREG(status.st_mode) and real.exists() and os.path.samestat(real.stat(), status):
        return None
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_TRUNC), "wb")


def _own_descriptor(path: str | Path) -> int | None:
    """N where the path is ``/dev/fd/N`` of this process, or a link there such as ``/dev/stdout``."""
    here = os.fspath(path)
    for _ in range(_MOST_LINKS):
        folder, name = os.path.realpath(os.path.dirname(here) or "."), os.path.basename(here)  # noqa: PTH120, PTH119
        if name.isdecimal() and re.fullmatch(rf"/dev/fd|/proc/{os.getpid()}(/task/\d+)?/fd", folder):
            return int(name)
        here = os.path.join(folder, name)  # noqa: PTH118
        if not os.path.islink(here):  # noqa: PTH114
            return None
        here = os.path.join(folder, os.readlink(here))  # noqa: PTH118, PTH115
    return None


@contextmanager
def _beside(path: str | Path) -> Iterator[Path]:
    """An empty file in the folder where ``path`` leads, renamed over it at the end, or removed after an error."""
    with _named(path):
        real = Path(os.path.realpath(path))
        before = real.stat() if real.exists() else None
        if before is not None and not os.access(real, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    # Short, so that a name of the greatest length has one too; made by open(2), so that the umask and the folder's own
    # access list decide on its mode.
    temporary = real.parent / f".smoothloss-{secrets.token_hex(8)}.tmp"
    try:
        with _named(path):
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if before is None else 0o600))
        yield temporary
        with _named(path):
            _sync(temporary)
            if before is not None:
                _copy_access(real, before, temporary)
            temporary.replace(real)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    with _named(path), suppress(PermissionError):  # a folder that may be written and not be listed
        _sync(real.parent)  # the rename itself


def _copy_access(real: Path, before: os.stat_result, temporary: Path) -> None:
    """Give a file the owner, mode and access list of the one that it replaces."""
    for owner, group in ((before.st_uid, -1), (-1, before.st_gid)):
        with suppress(PermissionError):
            os.chown(temporary, owner, group)
    temporary.chmod(stat.S_IMODE(before.st_mode))  # after the owner, whose change clears setuid and setgid
    with suppress(OSError, AttributeError):  # not every file system or platform has them
        for name in os.listxattr(real):
            os.setxattr(temporary, name, os.getxattr(real, name))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
