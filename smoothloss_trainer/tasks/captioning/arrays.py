"""Feature arrays on disk: a folder with a file an image, or one file for all; each array is read when it is needed."""

from __future__ import annotations

import struct
import tokenize
import weakref
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.files import read_json
from smoothloss_trainer.tasks.captioning.features import Features

Array = np.ndarray[Any, np.dtype[Any]]

SUFFIXES = (".npy", ".npz", ".h5", ".hdf5")
# What numpy and h5py raise for damaged files.
_UNREADABLE = (
    ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError, SyntaxError, TypeError,
    ValueError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
# The array of a file that has others beside it (boxes, sizes), as common extractors name it.
_FEATURE_KEYS = ("features", "feat", "x")


class ArrayFeatures(Features):
    """Feature arrays, (F,) or (R, F) per image, read when they are needed.

    An array is found by its image's file name, with or without suffix, or by its id: whichever of the two finds more
    images. Memory holds the names and the arrays of one batch, whatever the size of the files.

    Args:
        path: A folder of ``<name>.npy``, ``.npz`` or ``.h5`` files; one ``.npz`` or ``.h5`` with an array per name (in
            an ``.h5``, ``<name>_features`` will do); one ``.npy`` (N, F) or (N, R, F), memory-mapped, or one ``.h5``
            with such a dataset ``features`` and, if ``rows`` is None, perhaps the rows' names as ``ids``.
        images: All image ids, in the caption file's order.
        files: File names by image id.
        rows: Image ids or file names in the order of the rows of one ``.npy`` or ``features``. None: ``images``.

    Raises:
        RecipeError: when the path is none of these, a file cannot be read, or numbers of rows and names differ.
        ImportError: for an ``.h5`` without h5py.
    """

    def __init__(
        self,
        path: Path,
        images: Sequence[str],
        *,
        files: Mapping[str, str] | None = None,
        rows: Sequence[str] | None = None,
    ) -> None:
        self.path = path
        try:
            self._store = _open(path, images, rows)
        except RecipeError:
            raise
        except _UNREADABLE as error:
            raise _unreadable(path, error) from None
        names = self._store.names
        if not names:
            raise RecipeError(f"data.features: no features in {path}")
        self._names = _match(images, {} if self._store.named_by_image else files or {}, names)
        self.size = self._width([*self._names.values(), next(iter(names))])

    def _width(self, names: Sequence[str]) -> int:
        """That of the first array that can be read; the error of the first when none can."""
        broken: RecipeError | None = None
        for name in names:
            try:
                return int(self._read(name).shape[-1])
            except RecipeError as error:
                broken = broken or error
        assert broken is not None
        raise broken

    def _read(self, name: str) -> Array:
        try:
            with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as such
                values = _numbers(self._store.read(name))
        except _UNREADABLE as error:
            raise _unreadable(self._store.where(name), error) from None
        if values.ndim not in (1, 2) or not values.size:
            where = self._store.where(name)
            raise RecipeError(f"data.features: {where} has shape {values.shape}, expected (F,) or (R, F)")
        return values

    def regions(self, image: str) -> Tensor:
        """The image's array with a region dimension."""
        name = self._names[image]
        values = self._read(name)
        if values.shape[-1] != self.size:
            where = self._store.where(name)
            raise RecipeError(f"data.features: {where} has width {values.shape[-1]}, others have {self.size}")
        if not np.isfinite(values).all():
            raise RecipeError(f"data.features: {self._store.where(name)} has values that are not finite")
        return torch.from_numpy(values.reshape(-1, self.size))

    def problem(self, image: str, *, read: bool = False) -> str | None:
        """An image must have an array, of numbers that are finite, as wide as the others."""
        if image not in self._names:
            return f"{self.path} has no feature of it"
        try:
            if read:
                self.regions(image)
        except RecipeError as error:
            return str(error).removeprefix("data.features: ")
        return None


def _numbers(array: Array) -> Array:
    if array.dtype.kind not in "fiub":
        raise ValueError(f"it holds {array.dtype}, expected numbers")
    return np.array(array, dtype=np.float32)


def open_arrays(path: Path) -> tuple[list[str], ArrayFeatures]:
    """All arrays of a folder or file, and their names in its order; the rows of a ``.npy`` without names are numbers.

    Raises:
        RecipeError: as :class:`ArrayFeatures`.
        ImportError: for an ``.h5`` without h5py.
    """
    listed = path.with_suffix(".ids.json")
    rows = None
    if path.suffix == ".npy":
        if listed.is_file():
            rows = [str(name) for name in read_json(str(listed), "names of rows")]
        else:
            rows = [str(number) for number in range(_count_rows(path))]
    try:
        names = list(_open(path, rows or [], rows).names)
    except RecipeError:
        raise
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None
    return names, ArrayFeatures(path, names, rows=rows)


def _count_rows(path: Path) -> int:
    try:
        return len(np.load(path, mmap_mode="r", allow_pickle=False))
    except (*_UNREADABLE, TypeError) as error:
        raise _unreadable(path, error) from None


def _match(images: Sequence[str], files: Mapping[str, str], names: Mapping[str, Any]) -> dict[str, str]:
    """The name of each image's array."""
    by_id = {image: image for image in images if image in names}
    by_file = {image: key for image, file in files.items() for key in (Path(file).stem, file) if key in names}
    return max(by_file, by_id, key=len)


class _Store(ABC):
    """Arrays by name.

    Attributes:
        names: All names.
        named_by_image: Whether the names are image ids because the file has none.
    """

    names: Mapping[str, Any]
    named_by_image = False

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def read(self, name: str) -> Array:
        """The array of this name."""

    def where(self, name: str) -> Path | str:
        """What an error names."""
        return f"{name if name.isprintable() else ascii(name)} of {self.path}"


class _Folder(_Store):
    """A file for each name."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.names: dict[str, Path] = {}
        for file in sorted(file for file in path.iterdir() if file.suffix in SUFFIXES):
            if self.names.setdefault(file.stem, file) is not file:
                raise RecipeError(f"data.features: two files of one name: {self.names[file.stem]} and {file}")

    def read(self, name: str) -> Array:
        file = self.names[name]
        if file.suffix in (".h5", ".hdf5"):
            with import_h5py().File(file, "r") as content:
                return np.asarray(content[_feature_key(list(content))])
        with file.open("rb") as stream:  # which np.load(file) would leave open when the file is broken
            array = np.load(stream, allow_pickle=False)
            return np.asarray(array[_feature_key(array.files)] if file.suffix == ".npz" else array)

    def where(self, name: str) -> Path:
        return self.names[name]


class _Npz(_Store):
    """An array for each name."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        file = path.open("rb")
        weakref.finalize(self, file.close)  # numpy leaves that of a damaged archive open
        self._content: Any = np.load(file, allow_pickle=False)
        self.names: dict[str, None] = dict.fromkeys(self._content.files)

    def read(self, name: str) -> Array:
        return np.asarray(self._content[name])


class _H5(_Store):
    """A dataset for each name, ``<name>_features`` when some are called so (others are boxes and the like then)."""

    def __init__(self, path: Path, content: Any) -> None:
        super().__init__(path)
        self._content = content
        keys = list(content)
        features = [key for key in keys if key.endswith("_features")]
        self.names: dict[str, str] = {key.removesuffix("_features"): key for key in features or keys}

    def read(self, name: str) -> Array:
        return np.asarray(self._content[self.names[name]])


class _Rows(_Store):
    """A row of one array for each name."""

    def __init__(self, path: Path, array: Any, rows: Sequence[str] | None, images: Sequence[str]) -> None:
        super().__init__(path)
        self._array = array
        self.named_by_image = rows is None
        names = images if rows is None else rows
        if len(array.shape) not in (2, 3):
            raise RecipeError(f"data.features: {path} has shape {array.shape}, expected (N, F) or (N, R, F)")
        if len(array) != len(names):
            raise RecipeError(f"data.features: {path} has {len(array)} rows for {len(names)} images")
        self.names: dict[str, int] = {name: row for row, name in enumerate(names)}
        if len(self.names) != len(names):
            twice = next(name for row, name in enumerate(names) if self.names[name] != row)
            raise RecipeError(f"data.features: the rows of {path} are named {twice} twice")

    def read(self, name: str) -> Array:
        return np.asarray(self._array[self.names[name]])


def _open(path: Path, images: Sequence[str], rows: Sequence[str] | None) -> _Store:
    if path.is_dir():
        return _Folder(path)
    if path.suffix not in SUFFIXES:
        raise RecipeError(f"data.features: expected a folder, .npy, .npz or .h5, got {path}")
    if path.suffix == ".npy":
        return _Rows(path, np.load(path, mmap_mode="r", allow_pickle=False), rows, images)
    if path.suffix == ".npz":
        return _Npz(path)
    h5py = import_h5py()
    content = h5py.File(path, "r")
    features = content.get("features")
    if not isinstance(features, h5py.Dataset):
        return _H5(path, content)
    if rows is None and "ids" in content:
        rows = [name.decode() if isinstance(name, bytes) else str(name) for name in content["ids"][()]]
    return _Rows(path, features, rows, images)


def _feature_key(keys: Sequence[str]) -> str:
    """The features among the arrays of a file: the only one, or by its name."""
    if not keys:
        raise ValueError("it holds no array")
    return next((key for key in _FEATURE_KEYS if key in keys), keys[0])


def import_h5py() -> Any:
    """The package h5py.

    Raises:
        ImportError: saying what to install.
    """
    try:
        import h5py
    except ImportError:
        raise ImportError("features in .h5 files need h5py: pip install 'smoothloss[caption]'") from None
    return h5py


def _unreadable(path: Path | str, error: Exception) -> RecipeError:
    return RecipeError(f"data.features: cannot read {path}: {' '.join(str(error).split())}")
