from __future__ import annotations

import numpy as np

from smoothloss_trainer.demo.scenes import COLOURS, Scene, Thing, make_scene
from smoothloss_trainer.demo.vision import FEATURE_SIZE, MASK, MAX_REGIONS, components, region_features


def test_components_join_equal_neighbours_only() -> None:
    groups = np.array([[0, 0, -1, 1], [-1, 0, -1, 1], [2, -1, 0, 0], [2, 2, 0, -1]])
    expected = np.array([[0, 0, -1, 3], [-1, 0, -1, 3], [8, -1, 10, 10], [8, 8, 10, -1]])
    np.testing.assert_array_equal(components(groups), expected)


def test_a_winding_piece_is_one() -> None:
    snake = np.full((9, 9), -1)
    snake[::2] = 0
    snake[1::4, -1] = 0
    snake[3::4, 0] = 0
    assert set(np.unique(components(snake))) == {-1, 0}


def test_a_thing_is_found_with_its_colour_and_place() -> None:
    thing = Thing("square", "red", "large", 20.0, 44.0, 14.0, 0.0)
    features = region_features(Scene((thing,), "white", False, 1).render())
    assert features.shape == (2, FEATURE_SIZE) and features.dtype == np.float32
    outline, colour, box = np.split(features[1], [MASK * MASK, MASK * MASK + 3])
    assert (outline > 0).mean() > 0.95
    np.testing.assert_allclose(colour / 3 * 127.5 + 127.5, COLOURS["red"], atol=34)
    np.testing.assert_allclose(box / 3, [(20 - 32) / 32, (44 - 32) / 32, 0.37, 0.37], atol=0.06)


def test_the_inner_thing_is_a_region_of_its_own() -> None:
    host = Thing("circle", "blue", "large", 32.0, 32.0, 18.0, 0.0)
    guest = Thing("star", "yellow", "small", 32.0, 32.0, 6.0, 0.0)
    features = region_features(Scene((host, guest), "black", True, 1).render())
    assert len(features) == 3
    assert features[1, MASK * MASK + 2] > features[1, MASK * MASK]  # bluer than red: the host, larger, comes first
    assert features[2, MASK * MASK] > features[2, MASK * MASK + 2]


def test_most_scenes_are_seen_as_they_are() -> None:
    right = 0
    for index in range(100):
        scene = make_scene(3, index)
        features = region_features(scene.render())
        assert 2 <= len(features) <= MAX_REGIONS
        assert np.isfinite(features).all() and np.abs(features).max() < 4
        right += len(features) == len(scene.things) + 1
    assert right > 50


def test_an_empty_picture_is_one_region() -> None:
    assert region_features(Scene((), "grey", False, 1).render()).shape == (1, FEATURE_SIZE)
