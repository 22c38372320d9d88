"""Image features from a ResNet: ``smoothloss features FOLDER --out FILE``. Needs the extra ``[features]``."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from smoothloss._files import replacing
from smoothloss_trainer.checkpoint import write_json
from smoothloss_trainer.devices import choose_device
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.files import read_json
from smoothloss_trainer.tasks.captioning.arrays import import_h5py
from smoothloss_trainer.tasks.captioning.features import Features
from smoothloss_trainer.tasks.captioning.images import INSTALL, read_rgb

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
# ImageNet's, by channel, of pixels in [0, 1].
_MEAN = np.array((0.485, 0.456, 0.406), dtype=np.float32)
_DEVIATION = np.array((0.229, 0.224, 0.225), dtype=np.float32)


@dataclass(frozen=True)
class Extraction:
    """What to extract, and how.

    Args:
        weights: A ResNet of the transformers library: a name on its hub, or a folder with ``config.json`` and
            ``model.safetensors``.
        grid: Keep grid x grid regions; 0 keeps one vector, the mean over all positions.
        size: Side in pixels that the whole image is resized to.
        half: Write float16.
        batch_size: Images at a time.
        device: ``auto``, ``cpu``, ``cuda``.
    """

    weights: str = "microsoft/resnet-152"
    grid: int = 0
    size: int = 224
    half: bool = False
    batch_size: int = 32
    device: str = "auto"


def extract_features(folder: str | Path, out: str | Path, how: Extraction) -> tuple[int, ...]:
    """Write the features of all images below a folder: a file for a recipe's data.features, by file name less suffix.

    Memory holds one batch. An ``.npy`` gets the names beside it, in ``<out without suffix>.ids.json``; an ``.h5`` has
    them inside. The file appears under its name when it is complete.

    Returns:
        The shape written: (N, F), or (N, grid * grid, F).

    Raises:
        RecipeError: when the folder has no image or two of one name, an image cannot be read, or the weights are none
            of a ResNet.
        ImportError: without transformers, pillow, or h5py for an ``.h5``.
        OSError: when the file cannot be written.
    """
    images, out = find_images(Path(folder)), Path(out)
    if out.suffix not in _WRITERS:
        raise RecipeError(f"--out must end in {' or '.join(_WRITERS)}, got {out}")
    if how.grid < 0 or how.size < 32 or how.batch_size < 1:
        raise RecipeError("--grid must not be negative, --size at least 32, --batch_size at least 1")
    device = choose_device(how.device)
    model = load_resnet(how.weights).to(device)
    names = [image.stem for image in images]
    shape = (len(names), *((how.grid**2,) if how.grid else ()), int(model.config.hidden_sizes[-1]))
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        with _WRITERS[out.suffix](temporary, names, shape, how) as writer:
            for start in tqdm(range(0, len(images), how.batch_size), desc="features", dynamic_ncols=True):
                files = images[start : start + how.batch_size]
                pixels = torch.stack([read_image(file, how.size) for file in files])
                writer.write(image_features(model, pixels.to(device), how.grid).cpu().numpy())
        if out.suffix == ".npy":
            write_json(out.with_suffix(".ids.json"), names)
            write_json(_description(out), _describe(how))
    return shape


def _description(out: Path) -> Path:
    return out.with_suffix(".extraction.json")


def _describe(how: Extraction) -> dict[str, Any]:
    """What images must be read with to give the same features."""
    folder = Path(how.weights)
    weights = str(folder.resolve()) if folder.is_dir() else how.weights
    return {"weights": weights, "grid": how.grid, "size": how.size, "half": how.half}


def read_extraction(path: Path) -> dict[str, Any] | None:
    """How the features of a file were extracted, where :func:`extract_features` wrote it; None: not known."""
    if path.suffix == ".npy" and _description(path).is_file():
        found = read_json(str(_description(path)), "data.features")
    elif path.suffix == ".h5" and path.is_file():
        with import_h5py().File(path, "r") as content:
            found = json.loads(content.attrs.get("extraction", "null"))
    else:
        return None
    return found if isinstance(found, dict) else None


class ImageFeatures(Features):
    """What a ResNet sees of image files, extracted when it is asked for.

    Args:
        files: By name.
        how: As of the features that the model was trained on.
    """

    def __init__(self, files: Mapping[str, Path], how: Extraction) -> None:
        self.files, self.how = files, how
        self.device = choose_device(how.device)
        self.model = load_resnet(how.weights).to(self.device)
        self.size = int(self.model.config.hidden_sizes[-1])

    def regions(self, image: str) -> Tensor:
        """The image's grid, or its one vector."""
        return self.rows([image])[0]

    def rows(self, images: Sequence[str]) -> list[Tensor]:
        """:meth:`regions` of each image, ``how.batch_size`` at a time."""
        found: list[Tensor] = []
        for start in range(0, len(images), self.how.batch_size):
            chosen = images[start : start + self.how.batch_size]
            pixels = torch.stack([read_image(self.files[image], self.how.size) for image in chosen])
            values = image_features(self.model, pixels.to(self.device), self.how.grid).cpu()
            values = values.half().float() if self.how.half else values
            found += [row.reshape(-1, self.size) for row in values]
        return found

    def require(self, images: Sequence[str]) -> None:
        """Every image has its file."""


def find_images(folder: Path) -> list[Path]:
    """The images below a folder, in order of their paths.

    Raises:
        RecipeError: when there is none, two have the same name but for the suffix, or a name is no UTF-8.
    """
    if not folder.is_dir():
        raise RecipeError(f"no such folder: {folder}")
    files = images_below(folder)
    first: dict[str, Path] = {}
    for file in files:
        if first.setdefault(file.stem, file) is not file:
            raise RecipeError(f"two images have the same name: {first[file.stem]} and {file}")
        if not _is_unicode(file.stem):
            raise RecipeError(f"the name of the image {str(file)!a} is no UTF-8")
    return files


def images_below(folder: Path) -> list[Path]:
    """The images below a folder, in order of their paths.

    Raises:
        RecipeError: when there is none.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and not file.is_dir())
    if not files:
        raise RecipeError(f"no image in {folder}: looked for {', '.join(IMAGE_SUFFIXES)}")
    return files


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that the file system has and no list of names can hold
        return False
    return True


def load_resnet(weights: str) -> Any:
    """The ResNet of this name or folder, without its classifier, in evaluation mode.

    Raises:
        RecipeError: when it cannot be loaded, or its weights are not those of a ResNet.
    """
    try:
        from transformers import ResNetModel
        from transformers.utils.logging import disable_progress_bar, set_verbosity_error
    except ImportError:
        raise ImportError(INSTALL) from None
    disable_progress_bar()
    set_verbosity_error()  # what is missing is said below, in one line
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        model, report = ResNetModel.from_pretrained(weights, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise RecipeError(f"--weights: cannot load {weights}: {' '.join(str(error).split())}") from None
    if report["missing_keys"] or report["mismatched_keys"]:  # they would be random
        missing = sorted([*report["missing_keys"], *map(str, report["mismatched_keys"])])
        raise RecipeError(f"--weights: {weights} is no ResNet of this shape: {len(missing)} tensors miss, {missing[0]}")
    return model.eval()


def read_image(file: Path, size: int) -> Tensor:
    """(3, size, size) float32: the whole image, resized (its aspect ratio changes) and normalised as for ImageNet.

    Raises:
        RecipeError: as :func:`.read_rgb`, which says how samples of other kinds than eight bits are scaled.
    """
    values = (read_pixels(file, size).astype(np.float32) / 255 - _MEAN) / _DEVIATION
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


def read_pixels(file: Path, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(size, size, 3) RGB: the whole image, resized (its aspect ratio changes).

    Raises:
        RecipeError: as :func:`.read_rgb`.
        ImportError: without pillow.
    """
    pixels = read_rgb(file)
    from PIL import Image

    return np.asarray(pixels.resize((size, size), Image.Resampling.BICUBIC), dtype=np.uint8)


@torch.inference_mode()
def image_features(model: nn.Module, pixels: Tensor, grid: int) -> Tensor:
    """(B, F), the mean of the last layer's map over its positions; or (B, grid * grid, F), the means of a grid's cells.

    Args:
        model: What :func:`load_resnet` gives.
        pixels: (B, 3, H, W).
        grid: Side of the grid; 0: none.
    """
    maps: Tensor = model(pixels).last_hidden_state
    if not grid:
        return maps.mean((2, 3))
    return nn.functional.adaptive_avg_pool2d(maps, grid).flatten(2).transpose(1, 2)


class _Writer(ABC):
    """Writes an array of a known shape, some rows at a time."""

    def __init__(self, path: Path, names: Sequence[str], shape: tuple[int, ...], how: Extraction) -> None:
        self.names, self.shape, self.how = names, shape, how
        self.dtype = np.dtype(np.float16 if how.half else np.float32)
        self.file = self.open(path)

    @abstractmethod
    def open(self, path: Path) -> Any:
        """Create the file with all that is known."""

    @abstractmethod
    def write(self, rows: np.ndarray[Any, np.dtype[Any]]) -> None:
        """Append rows."""

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


class _NpyWriter(_Writer):
    """Not a memory map: a full disk would end the process there, and is an OSError here."""

    def open(self, path: Path) -> BinaryIO:
        file = path.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(file, header)
        return file

    def write(self, rows: np.ndarray[Any, np.dtype[Any]]) -> None:
        self.file.write(rows.astype(self.dtype).tobytes())


class _H5Writer(_Writer):
    """Datasets ``features``, a chunk an image, and ``ids``."""

    def open(self, path: Path) -> Any:
        file = import_h5py().File(path, "w")
        file.create_dataset("features", self.shape, self.dtype, chunks=(1, *self.shape[1:]))
        file.attrs["extraction"] = json.dumps(_describe(self.how))
        file["ids"] = [name.encode() for name in self.names]
        self.done = 0
        return file

    def write(self, rows: np.ndarray[Any, np.dtype[Any]]) -> None:
        self.file["features"][self.done : self.done + len(rows)] = rows
        self.done += len(rows)


_WRITERS: dict[str, type[_Writer]] = {".npy": _NpyWriter, ".h5": _H5Writer}
