"""Captions are read back by a reader of its own, word by word, and checked against the scene."""

from __future__ import annotations

import math
import re
from collections import Counter

import pytest

from smoothloss_trainer.demo.grammar import make_captions
from smoothloss_trainer.demo.scenes import CANVAS, Scene, Thing, make_scene

SCENES = [(make_scene(11, index), make_captions(make_scene(11, index), 11, index)) for index in range(400)]
CAPTIONS = [caption for _, captions in SCENES for caption in captions]

COLOURS = {"crimson": "red", "scarlet": "red", "golden": "yellow", "emerald": "green", "azure": "blue"}
COLOURS |= {"violet": "purple", "rosy": "pink", "tan": "brown"}
COLOURS |= {colour: colour for colour in ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")}
SHAPES = {"disc": "circle", "ball": "circle", "box": "square", "block": "square", "pyramid": "triangle"}
SHAPES |= {"rhombus": "diamond", "plus": "cross", "hoop": "ring", "donut": "ring", "crescent": "moon"}
SHAPES |= {shape: shape for shape in ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "moon")}
SIZES = {"small": "small", "little": "small", "tiny": "small", "big": "large", "large": "large", "huge": "large"}
BACKGROUNDS = {"white": "white", "bright": "white", "grey": "grey", "gray": "grey", "black": "black", "dark": "black"}

NOUN = rf"\b(?:a|an|the) ((?:(?:{'|'.join([*SIZES, *COLOURS])}) )*(?:{'|'.join(SHAPES)}))\b"
RELATIONS = {
    "left": r"(?:to the |on the )?left of",
    "right": r"(?:to the |on the )?right of",
    "above": r"above|over|higher than",
    "below": r"below|under|beneath|underneath",
    "inside": r"inside|in the middle of|within",
    "beside": r"next to|beside|near|close to",
}
ADVERBS = {"left": r"(?:to|on) its left", "right": r"(?:to|on) its right", "above": r"(?:above|over) it"}
ADVERBS |= {"below": r"(?:below|under|beneath) it", "inside": r"inside|in its middle"}
PLACES = "top|upper|bottom|lower|left|right|centre|middle|corner|side|edge"


def matching(scene: Scene, noun: str) -> list[Thing]:
    """The things that a noun phrase is true of."""
    *adjectives, shape = noun.split()
    found = [thing for thing in scene.things if thing.shape == SHAPES[shape]]
    for word in adjectives:
        found = [thing for thing in found if COLOURS.get(word) == thing.colour or SIZES.get(word) == thing.size]
    return found


def holds(scene: Scene, relation: str, subject: Thing, other: Thing) -> bool:
    dx, dy = subject.x - other.x, subject.y - other.y
    distance = math.hypot(dx, dy)
    if relation == "inside":
        return scene.nested and (subject, other) == (scene.things[1], scene.things[0]) and distance < other.radius
    if relation == "beside":
        return distance - subject.radius - other.radius < 0.2 * CANVAS
    along, across = (-dx, dy) if relation == "left" else (dx, dy) if relation == "right" else (-dy, dx)
    along = dy if relation == "below" else along
    return along > abs(across)


def related(scene: Scene, caption: str) -> list[tuple[str, str, str]]:
    """(relation, subject, other) claims of a caption."""
    claims = []
    for relation, words in RELATIONS.items():
        if found := re.search(rf"{NOUN}(?: \w+)? (?:{words}) {NOUN}", caption):
            claims.append((relation, found[1], found[2]))
        elif found := re.match(rf"(?:{words}) {NOUN} (?:there is|is|sits|lies) {NOUN}$", caption):
            claims.append((relation, found[2], found[1]))
    for relation, words in ADVERBS.items():
        if found := re.search(rf"{NOUN} with {NOUN} (?:{words})$", caption):
            claims.append((relation, found[2], found[1]))
    return claims


def test_captions_depend_on_seed_and_number_alone() -> None:
    assert make_captions(make_scene(11, 3), 11, 3) == SCENES[3][1]
    assert make_captions(make_scene(11, 3), 12, 3) != SCENES[3][1]


def test_every_thing_spoken_of_is_there() -> None:
    nouns = 0
    for scene, captions in SCENES:
        for caption in captions:
            for noun in re.findall(NOUN, caption):
                assert matching(scene, noun), (caption, scene)
                nouns += 1
    assert nouns > 1.5 * len(CAPTIONS)


def test_every_relation_holds() -> None:
    seen: Counter[str] = Counter()
    for scene, captions in SCENES:
        for caption in captions:
            for relation, subject, other in related(scene, caption):
                pairs = [(a, b) for a in matching(scene, subject) for b in matching(scene, other) if a != b]
                assert any(holds(scene, relation, a, b) for a, b in pairs), (caption, scene)
                seen[relation] += 1
    assert sum(seen.values()) > 0.5 * len(CAPTIONS)
    assert all(seen[relation] > 20 for relation in RELATIONS), seen


def test_backgrounds_numbers_and_places_hold() -> None:
    places = 0
    for scene, captions in SCENES:
        for caption in captions:
            if found := re.search(r"(\w+) (?:background|backdrop|canvas)", caption):
                assert BACKGROUNDS[found[1]] == scene.background, caption
            if found := re.match(r"(two|three) (?:shapes|objects|figures|things)", caption):
                assert {"two": 2, "three": 3}[found[1]] == len(scene.things), caption
            if found := re.search(
                rf"{NOUN}(?: \w+)? (?:in|at|on|near) the ((?: ?(?:{PLACES}))+)(?: of the picture)?$", caption
            ):
                assert any(in_place(thing, found[2]) for thing in matching(scene, found[1])), caption
                places += 1
    assert places > 40


def in_place(thing: Thing, where: str) -> bool:
    middle = CANVAS / 2
    truths = {"top": thing.y < middle, "upper": thing.y < middle, "bottom": thing.y > middle, "lower": thing.y > middle}
    truths |= {"left": thing.x < middle, "right": thing.x > middle}
    centre = max(abs(thing.x - middle), abs(thing.y - middle)) < 0.1 * CANVAS
    truths |= {"centre": centre, "middle": centre, "corner": True, "side": True, "edge": True}
    return all(truths[word] for word in where.split())


def test_captions_are_five_different_ones_of_moderate_length() -> None:
    for _, captions in SCENES:
        assert len(set(captions)) == 5
        assert all(5 <= len(caption.split()) <= 14 for caption in captions)


def test_the_language_is_rich_but_small() -> None:
    words = Counter(word for caption in CAPTIONS for word in caption.split())
    assert 80 <= len(words) <= 150
    assert {*COLOURS, *SHAPES, *SIZES, *BACKGROUNDS} <= set(words)
    assert words["red"] > words["crimson"] > words["scarlet"]
    assert len(set(CAPTIONS)) > 0.95 * len(CAPTIONS)


@pytest.mark.parametrize(("word", "article"), [("orange", "an"), ("emerald", "an"), ("azure", "an"), ("red", "a")])
def test_articles_fit(word: str, article: str) -> None:
    text = " ".join(CAPTIONS)
    wrong = "a" if article == "an" else "an"
    assert f" {article} {word} " in text and f" {wrong} {word} " not in text
