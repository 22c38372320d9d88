"""Little scenes of coloured shapes and how they are drawn. Everything is computed from a seed; no file is involved.

A scene has two or three things of a shape, a colour and a size on a plain background. What can truthfully be said about
one is written by :mod:`smoothloss_trainer.demo.grammar`.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np

Image = np.ndarray[Any, np.dtype[np.uint8]]
Field = np.ndarray[Any, np.dtype[Any]]

CANVAS = 64  # scenes are laid out, and drawn by default, on 64 x 64 pixels
NOISE = 7.0  # standard deviation of the pixel noise, of 255
COLOURS = {
    "red": (214, 48, 49),
    "orange": (240, 140, 30),
    "yellow": (245, 214, 60),
    "green": (52, 160, 84),
    "blue": (46, 104, 206),
    "purple": (134, 72, 178),
    "pink": (242, 140, 182),
    "brown": (134, 88, 52),
}
BACKGROUNDS = {"white": (238, 238, 236), "grey": (150, 152, 156), "black": (28, 29, 33)}
SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "moon")
SIZES = {"small": (5.0, 6.5), "medium": (8.5, 9.5), "large": (12.0, 14.5)}  # radii in pixels of the canvas
HOSTS = ("circle", "square", "diamond")  # shapes that another thing can lie inside
HOST_RADII, GUEST_RADII = (17.0, 19.0), (5.0, 6.0)


@dataclass(frozen=True)
class Thing:
    """One coloured shape; centre and radius in pixels of the canvas, ``turn`` in radians."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    turn: float


@dataclass(frozen=True)
class Scene:
    """Things in drawing order on a background. ``nested``: the second thing lies inside the first."""

    things: tuple[Thing, ...]
    background: str
    nested: bool
    noise_seed: int

    def render(self, size: int = CANVAS) -> Image:
        """The scene as (size, size, 3) RGB, with softened edges, uneven colours and pixel noise."""
        noise = np.random.default_rng(self.noise_seed)
        scale = size / CANVAS
        axis = (np.arange(size) + 0.5) / scale
        x, y = axis[None, :], axis[:, None]
        picture = np.empty((size, size, 3))
        picture[:] = _uneven(BACKGROUNDS[self.background], noise)
        for thing in self.things:
            cover = np.clip(0.5 - signed_distance(thing, x, y) * scale, 0.0, 1.0)[..., None]
            picture = picture * (1 - cover) + cover * _uneven(COLOURS[thing.colour], noise)
        picture += noise.normal(0.0, NOISE, picture.shape)
        return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _uneven(colour: tuple[int, int, int], noise: np.random.Generator) -> Field:
    return np.asarray(colour, dtype=np.float64) + noise.uniform(-14.0, 14.0, 3)


def signed_distance(thing: Thing, x: Field, y: Field) -> Field:
    """About how far points lie outside (> 0) or inside (< 0) a thing, in pixels of the canvas."""
    cos, sin = math.cos(thing.turn), math.sin(thing.turn)
    u = (x - thing.x) * cos + (y - thing.y) * sin
    v = (y - thing.y) * cos - (x - thing.x) * sin
    r = thing.radius
    match thing.shape:
        case "circle":
            return np.hypot(u, v) - r
        case "ring":
            return np.abs(np.hypot(u, v) - 0.76 * r) - 0.24 * r
        case "moon":
            return np.maximum(np.hypot(u, v) - r, 0.86 * r - np.hypot(u - 0.5 * r, v))
        case "square":
            return np.maximum(np.abs(u), np.abs(v)) - 0.84 * r
        case "diamond":
            return (np.abs(u) / 0.72 + np.abs(v)) * 0.58 - 0.58 * r
        case "cross":
            return np.minimum(_box(u, v, 0.95 * r, 0.3 * r), _box(u, v, 0.3 * r, 0.95 * r))
        case "triangle":
            return _sides(u, v, 3).max(0) - 0.55 * r
        case "star":  # a pentagram: within four of the five lines
            return np.sort(_sides(u, v, 5), axis=0)[-2] - 0.34 * r
    raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {thing.shape!r}")


def _box(u: Field, v: Field, width: float, height: float) -> Field:
    return np.maximum(np.abs(u) - width, np.abs(v) - height)


def _sides(u: Field, v: Field, count: int) -> Field:
    """Distances along the normals of a regular polygon's sides, one corner pointing up: (count, ...)."""
    angles = [math.pi / 2 + 2 * math.pi * side / count for side in range(count)]
    return np.stack([u * math.cos(angle) + v * math.sin(angle) for angle in angles])


def make_scene(seed: int, index: int) -> Scene:
    """Scene number ``index`` of a seed. No two things of a scene share shape and colour, nor do they touch."""
    draw = random.Random(f"scene {seed} {index}")
    nested = draw.random() < 0.2
    background = draw.choice(list(BACKGROUNDS))
    looks = _looks(draw, 2 if draw.random() < 0.6 else 3, nested)
    things: list[Thing] = []
    while len(things) < len(looks):
        shape, colour, size, radius = looks[len(things)]
        inside = nested and len(things) == 1
        spot = _near(draw, things[0]) if inside else _free_spot(draw, radius, things)
        if spot is None:  # no room left: start over
            things = []
            continue
        things.append(Thing(shape, colour, size, *spot, radius, draw.uniform(-0.2, 0.2)))
    return Scene(tuple(things), background, nested, draw.getrandbits(32))


def _looks(draw: random.Random, count: int, nested: bool) -> list[tuple[str, str, str, float]]:
    looks: list[tuple[str, str, str, float]] = []
    seen: set[tuple[str, str]] = set()
    while len(looks) < count:
        place = len(looks) if nested else 2
        shape = draw.choice(HOSTS if place == 0 else SHAPES)
        colour = draw.choice([colour for colour in COLOURS if not looks or colour != looks[0][1]])
        if (shape, colour) in seen:
            continue
        size = "large" if place == 0 else "small" if nested else draw.choice(list(SIZES))
        limits = HOST_RADII if place == 0 else GUEST_RADII if nested else SIZES[size]
        looks.append((shape, colour, size, draw.uniform(*limits)))
        seen.add((shape, colour))
    return looks


def _near(draw: random.Random, host: Thing) -> tuple[float, float]:
    return host.x + draw.uniform(-2.0, 2.0), host.y + draw.uniform(-2.0, 2.0)


def _free_spot(draw: random.Random, radius: float, others: list[Thing]) -> tuple[float, float] | None:
    for _ in range(40):
        x, y = draw.uniform(radius, CANVAS - radius), draw.uniform(radius, CANVAS - radius)
        if all(math.hypot(x - other.x, y - other.y) > radius + other.radius + 1 for other in others):
            return x, y
    return None
