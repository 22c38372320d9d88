"""Thumbnails that stand inside the page. Pillow makes them."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smoothloss_trainer.tasks import Picture

SIDE = 288  # pixels at most: twice what is shown, for dense screens
COARSE = 96  # pictures up to this side are shown pixel by pixel


@dataclass(frozen=True)
class Thumbnail:
    """A picture for ``<img src>``.

    Args:
        address: A ``data:`` address that holds it.
        coarse: Whether it is so small that its pixels are shown.
    """

    address: str
    coarse: bool


def thumbnail(picture: Path | Picture) -> Thumbnail | None:
    """A thumbnail of a file or of (H, W, 3) uint8 RGB; None when the file is no picture that can be read."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures and odd metadata
            if isinstance(picture, Path):
                with Image.open(picture) as opened:
                    opened.draft("RGB", (2 * SIDE, 2 * SIDE))
                    image = _as_rgb(ImageOps.exif_transpose(opened))
            else:
                image = Image.fromarray(picture)
            coarse = max(image.size) <= COARSE
            image.thumbnail((SIDE, SIDE))
            kind = "PNG" if coarse else "JPEG"
            file = io.BytesIO()
            image.save(file, kind, quality=85, optimize=True)
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError):
        return None  # what Pillow raises of broken files
    data = base64.b64encode(file.getvalue()).decode()
    return Thumbnail(f"data:image/{kind.lower()};base64,{data}", coarse)


def _as_rgb(image: Any) -> Any:
    """RGB on white; the range of pictures with more than 8 bits is scaled to what they hold."""
    from PIL import Image

    if image.mode[0] in "IF":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
        low, high = float(values.min()), float(values.max())
        image = Image.fromarray(((values - low) * (255 / ((high - low) or 1.0))).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")
