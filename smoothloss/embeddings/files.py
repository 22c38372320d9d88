"""Which of the formats a file of word vectors is in, as its content tells."""

from __future__ import annotations

import io
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from smoothloss._content import damage, peek, unpacked, without_mark
from smoothloss.embeddings.npz import read_npz
from smoothloss.embeddings.text import parse_header, read_text
from smoothloss.embeddings.vectors import Collector, WordVectors, check_vocabulary
from smoothloss.embeddings.word2vec import is_binary, read_binary

_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_OTHERS = (
    (b"\xba\x16\x4f\x2f", "a model of fastText (.bin): give the .vec file that came with it"),
    (b"\x93NUMPY", "a single array of numpy's, expected an .npz of 'words' and 'vectors'"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, expected text, word2vec's .bin or .npz"),
    (b"\x80", "a pickle, which is not read: save it in word2vec's format"),
)
# A password is a RuntimeError, a way of packing that Python lacks a NotImplementedError; the others are damage.
_ZIP_DAMAGE = (
    zipfile.BadZipFile,
    OSError,
    EOFError,
    RuntimeError,
    LookupError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
)


def load_vectors(
    path: str | os.PathLike[str], vocabulary: Sequence[str], *, lowercase_fallback: bool = False
) -> WordVectors:
    """Reads the vectors of a vocabulary's tokens: ``vectors[i]`` is the file's entry for ``vocabulary[i]``.

    The format is told by the content, also within ``.gz`` and ``.zip``:

    * Text: lines ``token x_1 ... x_d`` as GloVe writes them, or the same after a header line ``number d`` (word2vec's
      text, fastText's ``.vec``). Spaces or tabs separate the numbers. A token may contain spaces and end in a number:
      it is what stands before the last d fields. Without a header d is what most of the first lines have.
    * word2vec's binary format (``.bin``).
    * ``.npz``: an archive of ``words (n,)``, ``vectors (n, d)`` and, if it likes, ``counts (n,)``.

    Where a word comes twice in the file, the first entry counts; where a token comes twice in the vocabulary, both
    get the vector.

    Args:
        path: The file; ``glove.6B.zip:glove.6B.50d.txt`` names one of the files in an archive that holds several.
        vocabulary: The tokens; the index is the token id.
        lowercase_fallback: Give a token that is not in the file the vector of its lower-case form.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: ``vocabulary`` is not a sequence of strings.
        ValueError: The file is empty, damaged, or not of these formats, or a header does not fit; the message names
            the line.
    """
    collector = Collector(check_vocabulary(vocabulary), lowercase_fallback)
    file, member = split_member(path)
    if not file.exists() or file.is_dir():
        raise FileNotFoundError(f"path: no file of word vectors at {file}")
    try:
        with file.open("rb") as stream:
            _read(stream, file.name, member, collector)
    except ValueError as error:
        raise ValueError(f"path: {path}: {error}") from None
    return collector.result()


def split_member(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """The file, and the name behind ``.zip:`` where the whole is no file."""
    archive, found, member = os.fspath(path).partition(".zip:")
    if not found or Path(path).exists():
        return Path(path), None
    return Path(f"{archive}.zip"), member


def _read(stream: BinaryIO, name: str, member: str | None, collector: Collector) -> None:
    head, file = peek(stream)
    if head.startswith(_ZIP) or name.endswith(".npz"):
        if stream.seekable():
            stream.seek(0)
            file = stream
        else:
            file = io.BytesIO(file.read())
        _read_archive(file, name, member, collector)
    elif member is not None:
        raise ValueError("no zip archive")
    else:
        with damage():
            _read_content(unpacked(file, name), collector)


def _read_archive(file: BinaryIO, name: str, member: str | None, collector: Collector) -> None:
    if name.endswith(".npz"):
        read_npz(file, collector)
        return
    try:
        with zipfile.ZipFile(file) as archive:
            names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
            if names and all(entry.endswith(".npy") for entry in names):
                file.seek(0)
                read_npz(file, collector)
                return
            with archive.open(_chosen(names, member)) as content:
                _read_content(unpacked(content, ""), collector)  # type: ignore[arg-type]
    except ValueError:
        raise
    except _ZIP_DAMAGE as error:
        raise ValueError(f"no readable zip archive ({' '.join(str(error).split())})") from None


def _chosen(names: list[str], member: str | None) -> str:
    own = [name for name in names if not name.startswith("__MACOSX/")]
    if member is not None:
        if member not in names:
            raise ValueError(f"there is no {member!r} in it, but {', '.join(own[:10]) or 'nothing'}")
        return member
    if len(own) != 1:
        listed = f"{', '.join(own[:10])}{', ...' if len(own) > 10 else ''}" if own else "none"
        raise ValueError(f"the archive holds {len(own)} files, expected one, or its name behind '.zip:' ({listed})")
    return own[0]


def _read_content(file: BinaryIO, collector: Collector) -> None:
    head, file = peek(file)
    for magic, what in _OTHERS:
        if head.startswith(magic):
            raise ValueError(f"it is {what}")
    first, _, body = without_mark(head).partition(b"\n")
    header = parse_header(first.decode("ascii", errors="replace"))
    if header is not None and is_binary(body, header.dim):
        file.readline()
        read_binary(file, header, collector)
    else:
        read_text(file, collector)
