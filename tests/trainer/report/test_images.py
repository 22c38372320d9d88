from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smoothloss_trainer.report.images import SIDE, Thumbnail, thumbnail


def opened(found: Thumbnail | None) -> Image.Image:
    assert found is not None
    kind, _, data = found.address.partition(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_small_pictures_keep_their_pixels() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    found = thumbnail(picture)
    assert found is not None and found.coarse
    np.testing.assert_array_equal(np.asarray(opened(found)), picture)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "CMYK", "1", "LA"])
def test_files_of_all_kinds_are_shrunk(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    path = tmp_path / f"a picture ü.{suffix}"
    Image.new("RGB", (1200, 300), "red").convert(mode).save(path)
    image = opened(thumbnail(path))
    assert image.size == (SIDE, SIDE // 4) and image.mode == "RGB"


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path) -> None:
    values = np.linspace(1000, 60000, 40 * 40, dtype=np.uint16).reshape(40, 40)
    Image.fromarray(values).save(tmp_path / "x.png")
    shown = np.asarray(opened(thumbnail(tmp_path / "x.png")))[..., 0]
    assert shown[0, 0] == 0 and shown[-1, -1] == 255 and 110 < shown[20, 0] < 145


def test_a_turned_photograph_is_put_upright(tmp_path: Path) -> None:
    image, exif = Image.new("RGB", (200, 100)), Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "x.jpg", exif=exif)
    assert opened(thumbnail(tmp_path / "x.jpg")).size == (100, 200)


def test_what_is_no_picture_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture")
    whole = io.BytesIO()
    Image.new("RGB", (300, 300)).save(whole, "PNG")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:60])
    assert thumbnail(tmp_path / "x.png") is None and thumbnail(tmp_path / "cut.png") is None
    assert thumbnail(tmp_path / "missing.png") is None
