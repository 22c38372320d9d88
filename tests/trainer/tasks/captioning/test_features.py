from __future__ import annotations

import pytest
import torch

from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.tasks.captioning.features import BoxFeatures, LabelFeatures


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


def test_boxes_are_regions_with_class_and_geometry() -> None:
    boxes = {"a": ([[0, 50, 100, 100, 2], [20, 0, 40, 25, 0]], 200, 100), "none": ([], 10, 10)}
    features = BoxFeatures(boxes, 3)
    assert features.size == 8
    values, present = features.padded(["a", "none"])
    assert values[0].tolist() == [[0, 0, 1, 0, 0.5, 0.5, 1, 0.25], pytest.approx([1, 0, 0, 0.1, 0, 0.2, 0.25, 0.025])]
    assert not values[1].any() and present.tolist() == [[True, True], [True, False]]
    torch.testing.assert_close(features.pooled(["a"])[0][0], values[0].mean(0))
    features.require(["a", "none"])
    with pytest.raises(RecipeError, match="1 of 2 images miss, such as b: it has no boxes"):
        features.require(["a", "b"])


@pytest.mark.parametrize("box", [[0, 0, 9, 9, 3], [0, 0, 11, 9, 1], [5, 0, 4, 9, 1], [0, 0, 9, 9], [0, 0, 9, 9, 0.5]])
def test_wrong_boxes_are_refused(box: list[float]) -> None:
    with pytest.raises(RecipeError, match=r"image a must have boxes .* inside 10 x 10, of 3 classes, got"):
        BoxFeatures({"a": ([box], 10, 10)}, 3)
