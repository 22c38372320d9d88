"""Images as RGB of eight bits, whatever their file holds: one rule for extracting features and for captioning."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from smoothloss_trainer.errors import RecipeError

INSTALL = "features from images need transformers and pillow: pip install 'smoothloss[features]'"
_MAX_SAMPLE_VALUE = 281  # the TIFF tag
_WHITE = (255, 255, 255, 255)


def read_rgb(file: Path) -> Any:
    """A Pillow image of mode RGB, upright as its EXIF says; of an animation the first frame.

    * 16 bits a sample, and integers within 0 .. 65535: 0 .. 65535 becomes 0 .. 255, or 0 .. the TIFF's tag
      ``MaxSampleValue`` where it has one.
    * Floats within 0 .. 1 are taken so. Other floats, and integers outside 0 .. 65535, are stretched from their own
      smallest and largest value; an image of one value becomes black.
    * What is transparent lies on white. Palettes, one bit, CMYK and other colours become RGB as Pillow does it.

    Raises:
        RecipeError: naming the file, when it is no image, a broken one, one of more than 179 million pixels (Pillow's
            limit), or has values that are not finite.
        ImportError: without pillow.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(INSTALL) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of sizes that are still allowed
            with Image.open(file) as image:
                return _as_rgb(_upright(image), _stated_white(image))
    except Exception as error:  # a decoder raises whatever the damage makes it raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RecipeError(f"cannot read the image {file}: {reason}") from None


def _upright(image: Any) -> Any:
    from PIL import ImageOps

    image.load()  # what is cut off shows here
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data; the pixels are there
        return image


def _as_rgb(image: Any, white: float) -> Any:
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(image, white)).convert("RGB")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colours.size, _WHITE), colours).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Any, white: float) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The samples of a grey image of more than eight bits, scaled."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    least, most = float(values.min()), float(values.max())
    if image.mode == "F":
        bounds = (0.0, 1.0) if least >= 0 and most <= 1 else (least, most)
    else:
        bounds = (0.0, white if most <= white else 65535.0) if least >= 0 and most <= 65535 else (least, most)
    span = bounds[1] - bounds[0]
    return np.rint((values - bounds[0]) * (255 / span if span > 0 else 0)).astype(np.uint8)


def _stated_white(image: Any) -> float:
    """What a TIFF says its largest sample may be."""
    tag = getattr(image, "tag_v2", {}).get(_MAX_SAMPLE_VALUE, 65535)
    return max(1.0, float(tag[0] if isinstance(tag, tuple) else tag))
