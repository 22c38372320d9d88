from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from smoothloss_trainer.demo.scenes import BACKGROUNDS, CANVAS, COLOURS, SHAPES, Scene, Thing, make_scene

SCENES = [make_scene(5, index) for index in range(150)]


def test_a_scene_depends_on_seed_and_number_alone() -> None:
    assert [make_scene(5, index) for index in range(20)] == SCENES[:20]
    assert make_scene(6, 0) != SCENES[0]
    first, second = SCENES[0].render(), make_scene(5, 0).render()
    np.testing.assert_array_equal(first, second)


def test_scenes_do_not_change_between_versions() -> None:
    # The demo's numbers in a README are those of these very scenes.
    scene = make_scene(2018, 0)
    assert [(thing.shape, thing.colour, thing.size) for thing in scene.things] == [
        ("moon", "pink", "small"),
        ("ring", "yellow", "small"),
    ]
    assert scene.things[0].x == pytest.approx(51.4583325864887, abs=1e-12)


def test_things_lie_in_the_picture_apart_from_each_other() -> None:
    for scene in SCENES:
        assert len(scene.things) in (2, 3)
        assert len({(thing.shape, thing.colour) for thing in scene.things}) == len(scene.things)
        for number, thing in enumerate(scene.things):
            assert thing.radius <= thing.x <= CANVAS - thing.radius
            assert thing.radius <= thing.y <= CANVAS - thing.radius
            for earlier, other in enumerate(scene.things[:number]):
                gap = math.hypot(thing.x - other.x, thing.y - other.y) - thing.radius - other.radius
                assert (gap < 0) == (scene.nested and (earlier, number) == (0, 1))


def test_every_look_appears() -> None:
    things = [thing for scene in SCENES for thing in scene.things]
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {scene.background for scene in SCENES} == set(BACKGROUNDS)
    assert 10 < sum(scene.nested for scene in SCENES) < 60


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_drawn_in_its_colour_where_it_is(shape: str) -> None:
    thing = Thing(shape, "blue", "large", 20.0, 42.0, 14.0, 0.0)
    picture = Scene((thing,), "white", False, 3).render().astype(int)
    assert picture.shape == (CANVAS, CANVAS, 3)
    y, x = np.nonzero(np.abs(picture - COLOURS["blue"]).max(-1) < 50)
    assert len(x) > 60
    assert np.hypot(x + 0.5 - 20, y + 0.5 - 42).max() < 14 * 1.2
    empty = replace(thing, x=44.0)
    assert Scene((empty,), "white", False, 3).render()[30:54, :20].mean() > 200


def test_shapes_differ() -> None:
    pictures = {
        shape: Scene((Thing(shape, "red", "large", 32.0, 32.0, 14.0, 0.0),), "black", False, 1).render()
        for shape in SHAPES
    }
    for one in SHAPES:
        for other in SHAPES:
            if one < other:
                assert (np.abs(pictures[one].astype(int) - pictures[other]).max(-1) > 80).sum() > 40, (one, other)


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape must be one of circle.*got 'blob'"):
        Scene((Thing("blob", "red", "small", 9.0, 9.0, 5.0, 0.0),), "white", False, 1).render()
