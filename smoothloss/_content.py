"""The bytes and lines of a user's file: unpacked where they are packed, in one encoding, with errors of one line."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

HEAD = 1 << 16  # bytes that tell what a file is
MAX_LINE = 1 << 26  # a longer "line" is no text

_BOM = b"\xef\xbb\xbf"
# UTF-32's before UTF-16's, with which they begin.
_OTHER_BOMS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_PACKED = (
    *((b"BZh%d1AY&SY" % level, "bzip2") for level in range(1, 10)),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"7z\xbc\xaf\x27\x1c", "7-zip"),
    (b"Rar!\x1a\x07", "rar"),
)
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_GZIP = b"\x1f\x8b"


class _Again(io.RawIOBase):
    """A stream whose first bytes were read already."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head, self._rest = io.BytesIO(head), rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        found = self._head.read(len(buffer)) or self._rest.read(len(buffer))
        buffer[: len(found)] = found
        return len(found)


def peek(file: BinaryIO, size: int = HEAD) -> tuple[bytes, BinaryIO]:
    """The first bytes of a stream, and the stream from its start: also of a pipe, which cannot go back."""
    head = b""
    while len(head) < size and (more := file.read(size - len(head))):
        head += more
    return head, cast(BinaryIO, io.BufferedReader(_Again(head, file), HEAD))


@contextmanager
def damage() -> Iterator[None]:
    """Make a ValueError of what gzip finds wrong."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"no readable gzip file ({' '.join(str(error).split())})") from None


def unpacked(file: BinaryIO, name: str) -> BinaryIO:
    """The content of a stream: what is in it where it is gzip, which its first bytes tell.

    Errors of the reading itself are those of gzip; see :func:`damage`.

    Raises:
        ValueError: when it is called ``.gz`` and is no gzip file.
    """
    head, file = peek(file)
    if head.startswith(_GZIP):
        return cast(BinaryIO, io.BufferedReader(gzip.GzipFile(fileobj=file)))
    if name.endswith(".gz"):
        raise ValueError("no readable gzip file, in spite of its name")
    return file


@contextmanager
def open_content(path: Path) -> Iterator[BinaryIO]:
    """The content of a file, unpacked where it is gzip.

    Raises:
        OSError: when it cannot be opened or read.
        ValueError: as :func:`unpacked`, and when the gzip file is damaged.
    """
    with path.open("rb") as file, damage():
        yield unpacked(file, path.name)


def without_mark(head: bytes) -> bytes:
    """The start of a text without its byte-order mark.

    Raises:
        ValueError: when the mark is of another encoding than UTF-8, or what is there is packed and no text.
    """
    for magic, kind in _PACKED:
        if head.startswith(magic):
            raise ValueError(f"it is packed with {kind}: unpack it first")
    for mark, encoding in _OTHER_BOMS:
        if head.startswith(mark):
            raise ValueError(f"it is {encoding} text, expected UTF-8: iconv -f {encoding} -t UTF-8 makes it so")
    if head.startswith(_ZIP):
        raise ValueError("it is a zip archive, expected text: unpack it first")
    return head.removeprefix(_BOM)


def byte_lines(file: BinaryIO) -> Iterator[bytes]:
    r"""The lines of a stream without their ends and without the mark of UTF-8 at its start.

    A line ends with ``\n`` or ``\r\n``, and in a file without any ``\n`` with ``\r`` (old Macs). Nothing else ends one:
    neither a ``\r`` in the middle of a line nor U+2028, U+0085 or a form feed.

    Raises:
        ValueError: as :func:`without_mark`, and for a line that is no line of text: 64 MiB long.
    """
    line = file.readline(MAX_LINE)
    if not line:
        return
    line = without_mark(line)
    if not line.endswith(b"\n") and b"\r" in line and len(line) < MAX_LINE:
        yield from line.removesuffix(b"\r").split(b"\r")
        return
    number = 1
    while line:
        if len(line) >= MAX_LINE and not line.endswith(b"\n"):
            raise ValueError(f"line {number} is longer than {MAX_LINE >> 20} MiB, expected text")
        yield line.removesuffix(b"\n").removesuffix(b"\r")
        line, number = file.readline(MAX_LINE), number + 1
