from __future__ import annotations

import json
import re
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.tasks.captioning.arrays import ArrayFeatures
from smoothloss_trainer.tasks.captioning.data import CaptioningData, load_captions

Array = npt.NDArray[np.float32]
KINDS = ["rows.npy", "rows.h5", "one.npz", "one.h5", "detections.h5", "npy", "npz", "h5"]


def write_features(folder: Path, kind: str, arrays: dict[str, Array]) -> Path:
    """Write arrays in one of the layouts that are read, and return the path to give."""
    path = folder / kind
    if kind == "rows.npy":
        np.save(path, np.stack(list(arrays.values())))
    elif kind == "one.npz":
        np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stubs take them for allow_pickle
    elif path.suffix == ".h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            if kind == "rows.h5":
                file["features"] = np.stack(list(arrays.values()))
                file["ids"] = [name.encode() for name in arrays]
            for name, array in arrays.items() if kind != "rows.h5" else ():
                file[name if kind == "one.h5" else f"{name}_features"] = array
                if kind == "detections.h5":
                    file[f"{name}_boxes"] = np.zeros((len(array), 4))
    else:
        path.mkdir()
        for name, array in arrays.items():
            write_one(path / f"{name}.{kind}", array)
    return path


def write_one(path: Path, array: Array) -> None:
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, boxes=np.zeros((3, 4)), feat=array)
    else:
        with pytest.importorskip("h5py").File(path, "w") as file:
            file["anything"] = array


def make_arrays(count: int, *shape: int) -> dict[str, Array]:
    generator = np.random.default_rng(0)
    return {str(100 + n): generator.normal(size=shape).astype(np.float32) for n in range(count)}


@pytest.mark.parametrize("shape", [(7,), (3, 7)])
@pytest.mark.parametrize("kind", KINDS)
def test_arrays_come_from_every_kind_of_file(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    arrays = make_arrays(6, *shape)
    features = ArrayFeatures(write_features(tmp_path, kind, arrays), list(arrays))
    assert features.size == 7
    features.require(list(arrays))
    for name, array in arrays.items():
        np.testing.assert_array_equal(features.regions(name).numpy(), array.reshape(-1, 7))
    means = np.stack([arrays[name].reshape(-1, 7).mean(0) for name in ("102", "100")])
    torch.testing.assert_close(features.pooled(["102", "100"])[0].numpy(), means)
    values, present = features.padded(["104", "101"])
    assert values.shape == (2, *(shape[:-1] or (1,)), 7) and bool(present.all())


def test_regions_of_different_number_are_padded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 4)))
    np.save(tmp_path / "b.npy", np.ones(4, dtype=np.float16))
    values, present = ArrayFeatures(tmp_path, ["a", "b"]).padded(["a", "b"])
    assert values.dtype == torch.float32 and values.sum((1, 2)).tolist() == [8, 4]
    assert present.tolist() == [[True, True], [True, False]]


FILES = {"1": "val/3.jpg", "2": "val/1.jpg", "3": "val/2.jpg"}


def test_file_names_find_features_before_ids_do(tmp_path: Path) -> None:
    by_file = {Path(file).stem: np.full(2, int(image), np.float32) for image, file in FILES.items()}
    features = ArrayFeatures(write_features(tmp_path, "npy", by_file), list(FILES), files=FILES)
    assert [float(features.regions(image)[0, 0]) for image in FILES] == [1, 2, 3]
    whole = {f"{image}.jpg": array for image, array in by_file.items()}
    some = {"1": "1.jpg", "3": "2.jpg"}
    features = ArrayFeatures(write_features(tmp_path, "one.npz", whole), list(FILES), files=some)
    assert float(features.regions("3")[0, 0]) == 3
    with pytest.raises(RecipeError, match=r"1 of 3 images miss, such as 2: .* has no feature of it"):
        features.require(list(FILES))


def test_ids_find_features_when_file_names_do_not(tmp_path: Path) -> None:
    arrays = {image: np.full(2, int(image), np.float32) for image in FILES}
    names = {image: f"COCO_{image}.jpg" for image in FILES} | {"1": "2.jpg"}
    features = ArrayFeatures(write_features(tmp_path, "npy", arrays), list(FILES), files=names)
    assert [float(features.regions(image)[0, 0]) for image in FILES] == [1, 2, 3]
    # Rows without names follow the captions, whatever the files are called.
    features = ArrayFeatures(write_features(tmp_path, "rows.npy", arrays), list(FILES), files=FILES)
    assert [float(features.regions(image)[0, 0]) for image in FILES] == [1, 2, 3]


def test_rows_have_their_own_order(tmp_path: Path, karpathy: Path) -> None:
    rows = np.load(karpathy / "features.npy")
    names = [str(100 + number) for number in reversed(range(len(rows)))]
    np.save(tmp_path / "x.npy", rows[::-1])
    (tmp_path / "order.txt").write_text("".join(f"{name}\n" for name in names))
    data = CaptioningData(f"{karpathy}/dataset.json", format="karpathy", features=f"{tmp_path}/x.npy")
    data.feature_ids = f"{tmp_path}/order.txt"
    np.testing.assert_array_equal(load_captions(data).features.regions("103").numpy(), rows[3])
    (tmp_path / "x.ids.json").write_text(json.dumps(names))
    data.feature_ids = None
    np.testing.assert_array_equal(load_captions(data).features.regions("104").numpy(), rows[4])
    (tmp_path / "x.ids.json").write_text(json.dumps(names[1:]))
    with pytest.raises(RecipeError, match=r"x\.npy has 44 rows for 43 images"):
        load_captions(data)
    (tmp_path / "x.ids.json").write_text('{"a": 1}')
    with pytest.raises(RecipeError, match=r"data\.feature_ids: .*must be a list"):
        load_captions(data)


def test_missing_features_are_named(tmp_path: Path) -> None:
    features = ArrayFeatures(write_features(tmp_path, "npy", make_arrays(2, 4)), ["100", "101", "999"])
    message = rf"data\.features: 1 of 2 images miss, such as 999: {re.escape(str(tmp_path))}/npy has no feature of it"
    with pytest.raises(RecipeError, match=message):
        features.require(["100", "999"])


def test_wrong_arrays_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 4)))
    np.save(tmp_path / "b.npy", np.ones((2, 5)))
    np.save(tmp_path / "c.npy", np.array([1.0, np.nan, 2.0, 3.0]))
    np.save(tmp_path / "d.npy", np.ones((1, 2, 4)))
    np.save(tmp_path / "e.npy", np.array(["a", "b"]))
    np.save(tmp_path / "f.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    features = ArrayFeatures(tmp_path, list("abcdef"))
    wrong = {
        "b": r"b\.npy has width 5, others have 4",
        "c": r"c\.npy has values that are not finite",
        "d": r"d\.npy has shape \(1, 2, 4\), expected \(F,\) or \(R, F\)",
        "e": r"cannot read .*e\.npy",
        "f": r"cannot read .*f\.npy: Object arrays cannot be loaded when allow_pickle=False",
    }
    for name, message in wrong.items():
        with pytest.raises(RecipeError, match=message):
            features.padded(["a", name])


def test_files_and_rows_of_one_name_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(4))
    np.savez(tmp_path / "a.npz", x=np.ones(4))
    with pytest.raises(RecipeError, match=r"two files of one name: .*a\.npy and .*a\.npz"):
        ArrayFeatures(tmp_path, ["a"])
    np.save(tmp_path / "rows.npy", np.ones((3, 4)))
    with pytest.raises(RecipeError, match=r"the rows of .*rows\.npy are named b twice"):
        ArrayFeatures(tmp_path / "rows.npy", ["a", "b"], rows=["b", "a", "b"])


@pytest.mark.parametrize("array", [np.float32(1), np.ones(3), np.ones((2, 1, 1, 1))])
def test_rows_have_two_dimensions_or_three(tmp_path: Path, array: Array) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(RecipeError, match=r"x\.npy has shape .*, expected \(N, F\) or \(N, R, F\)"):
        ArrayFeatures(tmp_path / "x.npy", ["a", "b"])


@pytest.mark.parametrize("array", [np.array(["a"]), np.ones((2, 3), complex), np.zeros((2, 3), "datetime64[s]")])
def test_what_is_no_number_is_no_feature(tmp_path: Path, array: npt.NDArray[Any]) -> None:
    np.save(tmp_path / "a.npy", array)
    np.save(tmp_path / "b.npy", np.full((2, 3), 1e300))
    features = ArrayFeatures(tmp_path, ["b", "a"])
    assert "it holds" in str(features.problem("a", read=True)) and features.problem("a") is None
    assert "not finite" in str(features.problem("b", read=True))
    assert "no feature of it" in str(features.problem("c"))


def test_an_archive_without_an_array_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz")
    with pytest.raises(RecipeError, match=r"cannot read .*a\.npz: it holds no array"):
        ArrayFeatures(tmp_path, ["a"])


@pytest.mark.parametrize("kind", ["npy", "npz", "h5"])
@pytest.mark.parametrize("keep", [0, 8, 100, -40])
def test_a_cut_off_file_is_named(tmp_path: Path, kind: str, keep: int) -> None:
    arrays = make_arrays(2, 3, 40)
    folder = write_features(tmp_path, kind, arrays)
    features = ArrayFeatures(folder, list(arrays))
    victim = folder / f"101.{kind}"
    victim.write_bytes(victim.read_bytes()[:keep])
    features.regions("100")
    with pytest.raises(RecipeError, match=rf"data\.features: cannot read .*101\.{kind}: .") as caught:
        features.regions("101")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["rows.npy", "one.npz", "one.h5"])
def test_damage_inside_one_file_is_named(tmp_path: Path, kind: str) -> None:
    arrays = make_arrays(3, 50)
    path = write_features(tmp_path, kind, arrays)
    content = bytearray(path.read_bytes())
    at = content.find(arrays["101"].tobytes())
    assert at > 0
    content[at : at + 4] = b"\0\0\xc0\x7f"  # a NaN; an archive's checksum sees it first
    path.write_bytes(content)
    features = ArrayFeatures(path, list(arrays))
    features.regions("100")
    with pytest.raises(RecipeError, match=rf"data\.features: .*101 of .*{re.escape(kind)}"):
        features.regions("101")


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.h5"])
def test_what_is_no_feature_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    if name == "x.h5":
        pytest.importorskip("h5py")
    (tmp_path / name).write_bytes(b"nothing like an array")
    with pytest.raises(RecipeError, match=rf"data\.features: cannot read .*{re.escape(name)}"):
        ArrayFeatures(tmp_path / name, ["a"])


def test_wrong_paths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no features in"):
        ArrayFeatures(tmp_path, [])
    with pytest.raises(RecipeError, match=r"expected a folder, \.npy, \.npz or \.h5, got .*features\.h6"):
        ArrayFeatures(tmp_path / "features.h6", [])
    np.save(tmp_path / "x.npy", np.ones((3, 4)))
    with pytest.raises(RecipeError, match="3 rows for 2 images"):
        ArrayFeatures(tmp_path / "x.npy", ["a", "b"])


def test_h5_without_h5py_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    (tmp_path / "x.h5").write_bytes(b"")
    with pytest.raises(ImportError, match=r"need h5py: pip install 'smoothloss\[caption\]'"):
        ArrayFeatures(tmp_path / "x.h5", ["a"])


def anonymous_memory() -> int:
    """Resident bytes of this process that are no mapped files: those may be dropped at any time."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found
    return 1024 * int(found[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_memory_stays_flat_over_an_epoch(tmp_path: Path, kind: str) -> None:
    arrays = make_arrays(400, 36, 512)  # 29 MB, a batch of ten is 0.7 MB
    path, names = write_features(tmp_path, kind, arrays), list(arrays)
    del arrays
    features = ArrayFeatures(path, names)

    def epoch() -> None:
        for start in range(0, len(names), 10):
            features.padded(names[start : start + 10])

    epoch()
    before = anonymous_memory()
    epoch()
    grown = anonymous_memory() - before
    tracemalloc.start()
    epoch()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6
    assert grown < 4e6
