from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from smoothloss.trainer.pictures import png


def test_png_holds_the_pixels() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    data = png(picture)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", data[16:24]) == (9, 6)
    (size,) = struct.unpack(">I", data[33:37])
    rows = np.frombuffer(zlib.decompress(data[41 : 41 + size]), np.uint8).reshape(6, 28)
    np.testing.assert_array_equal(rows[:, 1:].reshape(6, 9, 3), picture)
    assert not rows[:, 0].any()
    with pytest.raises(ValueError, match=r"picture must be \(H, W, 3\) uint8"):
        png(picture[..., 0])
