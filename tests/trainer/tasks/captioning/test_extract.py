from __future__ import annotations

import json
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smoothloss_trainer.cli import main
from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.tasks.captioning import extract
from smoothloss_trainer.tasks.captioning.arrays import ArrayFeatures
from smoothloss_trainer.tasks.captioning.extract import Extraction, extract_features, image_features, read_image

transformers = pytest.importorskip("transformers", reason="the extra [features] is not installed")
Image = pytest.importorskip("PIL.Image")

FEATURES = 16


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a folder with a small ResNet of random weights and a classifier, as the hub has them."""
    folder = tmp_path_factory.mktemp("resnet")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, FEATURES], depths=[1, 2], layer_type="basic", num_labels=3
    )
    transformers.ResNetForImageClassification(config).eval().save_pretrained(folder)
    return str(folder)


def paint(file: Path, seed: int, size: tuple[int, int] = (40, 30), **options: Any) -> None:
    """Write a picture of two random rectangles."""
    draw = np.random.default_rng(seed)
    pixels = np.full((size[1], size[0], 3), draw.integers(256, size=3), np.uint8)
    pixels[5:15, 10:25] = draw.integers(256, size=3)
    pixels[20:, :8] = draw.integers(256, size=3)
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(file, **options)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a folder with five pictures of several kinds."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate(("b.png", "a.jpg", "c.BMP", "sub/d.jpeg", "sub/e.png")):
        paint(folder / name, number, (40 + number, 30 + 2 * number))
    (folder / "notes.txt").write_text("no picture")
    return folder


NAMES = ["a", "b", "c", "d", "e"]


def expected(folder: Path, weights: str) -> torch.Tensor:
    """Return the (5, F, h, w) maps of the pictures, by the library itself."""
    model = transformers.ResNetModel.from_pretrained(weights).eval()
    files = [next(folder.rglob(f"{name}.*")) for name in NAMES]
    with torch.no_grad():
        return torch.cat([model(read_image(file, 64)[None]).last_hidden_state for file in files])


@pytest.mark.parametrize("suffix", [".npy", ".h5"])
@pytest.mark.parametrize("grid", [0, 2])
def test_features_are_those_of_the_network(pictures: Path, weights: str, suffix: str, grid: int) -> None:
    if suffix == ".h5":
        pytest.importorskip("h5py")
    out = pictures.parent / "new" / f"features{suffix}"
    shape = extract_features(pictures, out, Extraction(weights, grid=grid, size=64, batch_size=2))
    maps = expected(pictures, weights)
    assert maps.shape[2:] == (8, 8) and maps.std() > 0.01
    want = maps.unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5)).flatten(2).mT if grid else maps.mean((2, 3))[:, None]
    assert shape == ((5, 4, FEATURES) if grid else (5, FEATURES))
    rows = json.loads(out.with_suffix(".ids.json").read_text()) if suffix == ".npy" else None
    ids = {str(n): f"x/{name}.jpg" for n, name in enumerate(NAMES)}
    features = ArrayFeatures(out, list(ids), files=ids, rows=rows)
    for number, row in zip(ids, want, strict=True):
        torch.testing.assert_close(features.regions(number), row, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.pooled(list(ids))[0], maps.mean((2, 3)), rtol=1e-4, atol=1e-5)
    kept = {"features.npy", "features.ids.json", "features.extraction.json"} if suffix == ".npy" else {"features.h5"}
    assert {file.name for file in out.parent.iterdir()} == kept


def test_half_precision_takes_half_the_disk(pictures: Path, weights: str) -> None:
    out = pictures.parent / "features.npy"
    extract_features(pictures, out, Extraction(weights, size=64, half=True))
    values = np.load(out)
    assert values.dtype == np.float16
    want = expected(pictures, weights).mean((2, 3)).numpy()
    np.testing.assert_allclose(values, want, rtol=2**-10, atol=1e-4)


def test_pixels_are_normalised_and_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # turned upside down
    paint(tmp_path / "x.png", 3)
    paint(tmp_path / "turned.png", 3, exif=exif)
    values = read_image(tmp_path / "x.png", 32)
    assert values.shape == (3, 32, 32) and values.dtype == torch.float32
    torch.testing.assert_close(read_image(tmp_path / "turned.png", 32), values.flip(1, 2), rtol=0, atol=0.05)
    Image.new("RGB", (9, 5), (255, 0, 127)).save(tmp_path / "plain.png")
    want = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (127 / 255 - 0.406) / 0.225]
    torch.testing.assert_close(read_image(tmp_path / "plain.png", 32).amax((1, 2)), torch.tensor(want))
    Image.new("LA", (9, 5), (77, 10)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png", 32).shape == (3, 32, 32)


def test_a_grid_of_the_whole_map_keeps_every_position(weights: str) -> None:
    model = transformers.ResNetModel.from_pretrained(weights).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        maps = model(pixels).last_hidden_state
    assert torch.equal(image_features(model, pixels, 4), maps.flatten(2).mT)


def test_the_command(pictures: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = pictures.parent / "f.npy"
    command = ["features", str(pictures), "--out", str(out), "--weights", weights]
    assert main([*command, "--grid", "2", "--size", "32", "--half", "--batch_size", "3", "--device", "cpu"]) == 0
    assert f"{out}: 5 x 4 x {FEATURES}" in capsys.readouterr().out
    assert np.load(out, mmap_mode="r").shape == (5, 4, FEATURES)


def test_a_broken_image_is_named_and_nothing_half_written(pictures: Path, weights: str) -> None:
    out = pictures.parent / "features.npy"
    out.write_bytes(b"what was there before")
    victim = pictures / "sub" / "d.jpeg"
    victim.write_bytes(victim.read_bytes()[:300])
    with pytest.raises(RecipeError, match=rf"cannot read the image {re.escape(str(victim))}: "):
        extract_features(pictures, out, Extraction(weights, size=32, batch_size=2))
    assert out.read_bytes() == b"what was there before"
    assert {file.name for file in pictures.parent.iterdir()} == {"pictures", "features.npy"}
    victim.write_bytes(b"")
    with pytest.raises(RecipeError, match="cannot read the image"):
        extract_features(pictures, out, Extraction(weights, size=32))


def test_a_full_disk_is_an_error(pictures: Path, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    out = pictures.parent / "features.npy"
    monkeypatch.setattr(extract, "replacing", lambda out: nullcontext(Path("/dev/full")))
    with pytest.raises(OSError, match="No space left on device"):
        extract_features(pictures, out, Extraction(weights, size=32))
    assert not out.exists()


def test_wrong_requests_are_refused(pictures: Path, weights: str, tmp_path: Path) -> None:
    out = tmp_path / "f.npy"
    with pytest.raises(RecipeError, match=r"--out must end in \.npy or \.h5, got .*f\.csv"):
        extract_features(pictures, tmp_path / "f.csv", Extraction(weights))
    with pytest.raises(RecipeError, match="no such folder"):
        extract_features(tmp_path / "nowhere", out, Extraction(weights))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match="no image in"):
        extract_features(tmp_path / "empty", out, Extraction(weights))
    with pytest.raises(RecipeError, match="--size at least 32"):
        extract_features(pictures, out, Extraction(weights, size=8))
    paint(pictures / "sub" / "a.png", 9)
    with pytest.raises(RecipeError, match=r"two images have the same name: .*a\.jpg and .*a\.png"):
        extract_features(pictures, out, Extraction(weights))


def test_weights_that_do_not_fit_are_refused(pictures: Path, weights: str, tmp_path: Path) -> None:
    out = tmp_path / "f.npy"
    with pytest.raises(RecipeError, match=r"--weights: cannot load .*nowhere: ") as caught:
        extract_features(pictures, out, Extraction(str(tmp_path / "nowhere")))
    assert "\n" not in str(caught.value)
    other = transformers.ResNetModel.from_pretrained(weights)
    state = {name: value for name, value in other.state_dict().items() if "stages.1" not in name}
    other.save_pretrained(tmp_path / "half", state_dict=state)
    with pytest.raises(RecipeError, match=r"--weights: .*half is no ResNet of this shape: \d+ tensors miss"):
        extract_features(pictures, out, Extraction(str(tmp_path / "half")))
    assert not out.exists()


def test_without_transformers_it_says_what_to_install(
    pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert main(["features", str(pictures), "--out", str(pictures.parent / "f.npy")]) == 1
    assert "pip install 'smoothloss[features]'" in capsys.readouterr().err
