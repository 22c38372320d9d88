from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from smoothloss.trainer.config import RecipeError
from smoothloss.trainer.tasks.captioning.features import ArrayFeatures, LabelFeatures


def test_labels_are_multi_hot_or_one_region_each() -> None:
    features = LabelFeatures({"a": [2, 0], "b": [1]}, 3)
    (pooled,) = features.pooled(["a", "b", "none"])
    assert pooled.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    values, present = features.padded(["a", "b", "none"])
    assert values.tolist() == [[[0, 0, 1], [1, 0, 0]], [[0, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]
    assert present.tolist() == [[True, True], [True, False], [True, False]]


def test_wrong_labels_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"image a has classes \[3\], there are 3"):
        LabelFeatures({"a": [3]}, 3)
    with pytest.raises(RecipeError, match="no labels for any of the 2 images"):
        LabelFeatures({"a": [1]}, 3).require(["x", "y"])


@pytest.mark.parametrize("name", ["features.npy", "features.npz", "files"])
def test_arrays_come_from_every_kind_of_file(karpathy: Path, name: str) -> None:
    rows = np.load(karpathy / "features.npy")
    names = [str(100 + number) for number in range(len(rows))]
    features = ArrayFeatures(karpathy / name, names)
    assert features.size == 7
    features.require(names)
    np.testing.assert_array_equal(features.regions("103").numpy(), rows[3])
    torch.testing.assert_close(features.pooled(["101", "100"])[0].numpy(), rows[[1, 0]].mean(1))
    values, present = features.padded(["104"])
    assert values.shape == (1, 3, 7) and bool(present.all())
    with pytest.raises(RecipeError, match="nothing about 1 of 2 images, image 999 among them"):
        features.require(["100", "999"])


def test_regions_of_different_number_are_padded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 4)))
    np.save(tmp_path / "b.npy", np.ones(4))
    values, present = ArrayFeatures(tmp_path, []).padded(["a", "b"])
    assert values.dtype == torch.float32 and values.sum((1, 2)).tolist() == [8, 4]
    assert present.tolist() == [[True, True], [True, False]]


def test_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no features in"):
        ArrayFeatures(tmp_path, [])
    (tmp_path / "x.npy").write_bytes(b"nothing like an array")
    with pytest.raises(RecipeError, match=r"cannot read .*x\.npy"):
        ArrayFeatures(tmp_path / "x.npy", [])
    (tmp_path / "x.npz").write_bytes(b"nothing like an archive")
    with pytest.raises(RecipeError, match=r"cannot read .*x\.npz"):
        ArrayFeatures(tmp_path / "x.npz", [])
    with pytest.raises(RecipeError, match="expected a folder"):
        ArrayFeatures(tmp_path / "features.h6", [])
    np.save(tmp_path / "x.npy", np.ones((3, 4)))
    with pytest.raises(RecipeError, match="3 rows for 2 images"):
        ArrayFeatures(tmp_path / "x.npy", ["a", "b"])
    np.save(tmp_path / "x.npy", np.ones((1, 2, 3, 4)))
    with pytest.raises(RecipeError, match=r"shape \(2, 3, 4\), expected \(F,\) or \(R, F\)"):
        ArrayFeatures(tmp_path / "x.npy", ["a"])


def test_pickled_objects_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(RecipeError, match="cannot read"):
        ArrayFeatures(tmp_path / "x.npy", ["a"])
