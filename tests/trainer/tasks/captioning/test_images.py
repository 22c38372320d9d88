from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.tasks.captioning.images import read_rgb

Image = pytest.importorskip("PIL.Image")

RAMP = np.linspace(0, 65535, 32 * 24).reshape(24, 32)


def grey(file: Path) -> np.ndarray[Any, Any]:
    """Return what was read of a file in which the three channels are the same."""
    image = read_rgb(file)
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].astype(np.int64)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"x{suffix}"
    samples = np.rint(RAMP).astype(np.uint16)
    if suffix == ".pgm":
        file.write_bytes(b"P5 32 24 65535\n" + samples.astype(">u2").tobytes())
    else:
        Image.fromarray(samples).save(file)
    assert np.abs(grey(file) - RAMP / 257).max() <= 0.51
    darker = tmp_path / f"darker{suffix}"  # a whole file's range, not that of its pixels
    if suffix != ".pgm":
        Image.fromarray(samples // 4).save(darker)
        assert grey(darker).max() == 64


def test_a_tiff_may_say_what_is_white(tmp_path: Path) -> None:
    samples = np.rint(RAMP * 4095 / 65535).astype(np.uint16)  # 12 bits, as of a detector
    Image.fromarray(samples).save(tmp_path / "x.tif", tiffinfo={281: 4095})
    assert np.abs(grey(tmp_path / "x.tif") - RAMP / 257).max() <= 1


@pytest.mark.parametrize("scale", [1.0, 0.5, 1000.0, -3.0])
def test_floats_keep_0_to_1_and_are_stretched_otherwise(tmp_path: Path, scale: float) -> None:
    values = (RAMP / 65535 * scale).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "x.tif")
    expected = RAMP / 257 * (scale if 0 <= scale <= 1 else 1)
    assert np.abs(grey(tmp_path / "x.tif") - (expected if scale > 0 else 255 - expected)).max() <= 0.51


def test_integers_beyond_16_bits_are_stretched(tmp_path: Path) -> None:
    Image.fromarray(np.rint(RAMP * 1000 - 7000).astype(np.int32)).save(tmp_path / "x.tif")
    assert np.abs(grey(tmp_path / "x.tif") - RAMP / 257).max() <= 0.51
    Image.fromarray(np.full((4, 4), 99999, np.int32)).save(tmp_path / "flat.tif")
    assert not grey(tmp_path / "flat.tif").any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    values = np.zeros((4, 4), np.float32)
    values[1, 1] = value
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(RecipeError, match=r"cannot read the image .*x\.tif: it has values that are not finite"):
        read_rgb(tmp_path / "x.tif")


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = (200, 0, 0, 255)
    pixels[0, 1] = (0, 0, 0, 128)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    Image.fromarray(pixels[..., [0, 3]]).save(tmp_path / "la.png")
    assert np.asarray(read_rgb(tmp_path / "x.png")).tolist() == [
        [[200, 0, 0], [127, 127, 127]],
        [[255, 255, 255], [255, 255, 255]],
    ]
    assert grey(tmp_path / "la.png").tolist() == [[200, 127], [255, 255]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    assert np.asarray(read_rgb(tmp_path / "p.png")).tolist() == [[[255, 255, 255], [10, 20, 30]]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "RGBA", "LA"])
def test_other_colours_become_rgb(tmp_path: Path, mode: str) -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    converted = red.convert("L").convert("LA") if mode == "LA" else red.convert(mode)
    suffix = {"CMYK": "tif", "YCbCr": "jpg"}.get(mode, "png")
    converted.save(tmp_path / f"x.{suffix}", **({"quality": 100} if suffix == "jpg" else {}))
    found = np.asarray(read_rgb(tmp_path / f"x.{suffix}")).astype(int)
    want = np.asarray(converted.convert("RGB")).astype(int)
    assert found.shape == (8, 8, 3) and np.abs(found - want).max() <= 4


def test_the_first_frame_upright(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(read_rgb(tmp_path / "x.gif"))[0, 0].tolist() == [255, 0, 0]
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    frames[0].save(tmp_path / "x.jpg", exif=exif)
    assert read_rgb(tmp_path / "x.jpg").size == (4, 6)
    frames[0].save(tmp_path / "damaged.jpg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert read_rgb(tmp_path / "damaged.jpg").size == (6, 4)


def bomb(side: int) -> bytes:
    """A PNG of so many pixels on a side, in a few bytes."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 100)))
    parts = [struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.jpg", b""),
        ("text.png", b"no picture"),
        ("bomb.png", bomb(20_000)),
        ("sides.png", bomb(2**31 - 1)),
        ("cut.png", bomb(8)[:-20]),
        ("a name with spaces, größer.png", b"\x89PNG\r\n\x1a\n"),
    ],
)
def test_what_is_no_image_is_named_in_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match=rf"^cannot read the image .*{re.escape(name)}: .") as caught:
        read_rgb(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_long_sides_are_no_reason(tmp_path: Path) -> None:
    Image.new("L", (1, 60_000), 7).save(tmp_path / "x.png")
    assert read_rgb(tmp_path / "x.png").size == (1, 60_000)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "bmp", "webp"])
def test_a_cut_image_is_refused(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / f"x.{suffix}")
    content = (tmp_path / f"x.{suffix}").read_bytes()
    (tmp_path / f"x.{suffix}").write_bytes(content[: len(content) // 2])
    with pytest.raises(RecipeError, match=rf"cannot read the image .*x\.{suffix}: "):
        read_rgb(tmp_path / f"x.{suffix}")
