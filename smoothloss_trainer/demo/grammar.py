"""What people might say about a scene: truthful captions from a grammar rich in synonyms.

Every caption is drawn for itself: which things it speaks of, what it says of them, in which order, and with which
words. Words are drawn with falling frequencies, so some synonyms are common and others rare.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from smoothloss_trainer.demo.scenes import CANVAS, Scene, Thing

MAX_WORDS, MIN_WORDS = 14, 5
CAPTIONS_PER_SCENE = 5

COLOUR_WORDS = {
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange",),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rosy"),
    "brown": ("brown", "tan"),
}
SHAPE_WORDS = {
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "pyramid"),
    "star": ("star",),
    "diamond": ("diamond", "rhombus"),
    "cross": ("cross", "plus"),
    "ring": ("ring", "hoop", "donut"),
    "moon": ("moon", "crescent"),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "medium": (), "large": ("big", "large", "huge")}
BACKGROUND_WORDS = {"white": ("white", "bright"), "grey": ("grey", "gray"), "black": ("black", "dark")}
RELATION_WORDS = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "beneath", "underneath"),
    "inside": ("inside", "in the middle of", "within"),
    "beside": ("next to", "beside", "near", "close to"),
}
CONVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
ADVERBS = {
    "left": ("to its left", "on its left"),
    "right": ("to its right", "on its right"),
    "above": ("above it", "over it"),
    "below": ("below it", "under it", "beneath it"),
    "inside": ("inside", "in its middle"),
}
PLACE_WORDS = {
    "top left": ("in the top left corner", "in the upper left corner", "at the top left"),
    "top right": ("in the top right corner", "in the upper right corner", "at the top right"),
    "bottom left": ("in the bottom left corner", "in the lower left corner", "at the bottom left"),
    "bottom right": ("in the bottom right corner", "in the lower right corner", "at the bottom right"),
    "top": ("at the top", "near the upper edge"),
    "bottom": ("at the bottom", "near the lower edge"),
    "left": ("on the left side", "near the left edge"),
    "right": ("on the right side", "near the right edge"),
    "centre": ("in the centre", "in the middle"),
}
NUMBERS = {2: ("two",), 3: ("three",)}
STANDS = ("is", "sits", "lies", "rests", "appears", "floats")
THERE = ("there is", "here is", "we see", "you can see", "this shows")
PICTURES = ("a picture of", "an image of", "a drawing of", "a scene with")
BACKDROPS = ("background", "backdrop", "canvas")
PLURALS = ("shapes", "objects", "figures", "things")


def relation(subject: Thing, other: Thing) -> str | None:
    """``left``, ``right``, ``above`` or ``below``: where the subject clearly is, seen from the other; else None."""
    dx, dy = subject.x - other.x, subject.y - other.y
    if abs(dx) >= 1.25 * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) >= 1.25 * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def is_beside(subject: Thing, other: Thing) -> bool:
    """Whether two things are near each other, edge to edge."""
    distance = ((subject.x - other.x) ** 2 + (subject.y - other.y) ** 2) ** 0.5
    return distance - subject.radius - other.radius < 0.16 * CANVAS


def place(thing: Thing) -> str | None:
    """In which part of the picture a thing clearly is, or None: ``top left``, ``bottom``, ``centre`` ..."""

    def third(position: float, low: str, high: str) -> str | None:
        if position < 0.36 * CANVAS:
            return low
        if position > 0.64 * CANVAS:
            return high
        return "" if 0.42 * CANVAS < position < 0.58 * CANVAS else None

    across, down = third(thing.x, "left", "right"), third(thing.y, "top", "bottom")
    if across is None or down is None:
        return None
    return f"{down} {across}".strip() or "centre"


class Speaker:
    """Writes captions of scenes with one stream of random choices."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw

    def word(self, synonyms: Sequence[str]) -> str:
        """One of the synonyms; the n-th is about 1/n as frequent as the first."""
        return self.draw.choices(synonyms, [1.0 / rank for rank in range(1, len(synonyms) + 1)])[0]

    def noun(self, thing: Thing, *, brief: bool = False) -> str:
        """Article, perhaps size, mostly colour, shape: ``a tiny red disc``."""
        words = []
        if SIZE_WORDS[thing.size] and not brief and self.draw.random() < 0.5:
            words.append(self.word(SIZE_WORDS[thing.size]))
        if not words or self.draw.random() < 0.85:
            words.append(self.word(COLOUR_WORDS[thing.colour]))
        words.append(self.word(SHAPE_WORDS[thing.shape]))
        article = "the" if self.draw.random() < 0.15 else "an" if words[0][0] in "aeiou" else "a"
        return " ".join([article, *words])

    def backdrop(self, scene: Scene) -> str:
        """``on a dark background``."""
        colour = self.word(BACKGROUND_WORDS[scene.background])
        return f"{self.word(('on', 'against'))} a {colour} {self.word(BACKDROPS)}"

    def _pair(self, scene: Scene) -> tuple[Thing, Thing, str | None]:
        """Two things to speak of, mostly the first two, and how the first relates to the second."""
        if scene.nested and self.draw.random() < 0.7:
            host, guest = scene.things[:2]
            return guest, host, "inside"
        things = list(scene.things[:2]) if self.draw.random() < 0.6 else self.draw.sample(scene.things, 2)
        if self.draw.random() < 0.35:
            things.reverse()
        subject, other = things
        if scene.nested and {subject, other} == set(scene.things[:2]):
            return scene.things[1], scene.things[0], "inside"
        found = relation(subject, other)
        if is_beside(subject, other) and (found is None or self.draw.random() < 0.2):
            found = "beside"
        return subject, other, found

    def related(self, scene: Scene) -> str | None:
        """``[there is] a red ball [lies] to the left of a box [on a grey canvas]``, and the inverted order."""
        subject, other, found = self._pair(scene)
        if found is None:
            return None
        where = self.word(RELATION_WORDS[found])
        first, second = self.noun(subject), self.noun(other)
        kind = self.draw.random()
        if kind < 0.4:
            return f"{first} {self.word(STANDS)} {where} {second}"
        if kind < 0.65:
            return f"{self.word((*THERE, *PICTURES))} {first} {where} {second}"
        if kind < 0.8:
            return f"{where} {second} {self.word(('there is', 'is', 'sits', 'lies'))} {first}"
        return f"{first} {where} {second} {self.backdrop(scene)}"

    def accompanied(self, scene: Scene) -> str | None:
        """``a big box with a red ball on its left``."""
        subject, other, found = self._pair(scene)
        if found not in ADVERBS:
            return None
        opening = f"{self.word((*THERE, *PICTURES))} " if self.draw.random() < 0.3 else ""
        return f"{opening}{self.noun(other)} with {self.noun(subject)} {self.word(ADVERBS[str(found)])}"

    def listed(self, scene: Scene) -> str:
        """``a red ball and a box on a grey canvas``."""
        first, second, _ = self._pair(scene)
        joined = f"{self.noun(first)} {self.word(('and', 'with'))} {self.noun(second)}"
        if self.draw.random() < 0.5:
            return f"{joined} {self.backdrop(scene)}"
        return f"{self.word((*THERE, *PICTURES))} {joined}"

    def placed(self, scene: Scene) -> str | None:
        """``a red ball floats in the top left corner``."""
        thing = self.draw.choice(scene.things[:2])
        where = place(thing)
        if where is None:
            return None
        spot = self.word(PLACE_WORDS[where]) + (" of the picture" if self.draw.random() < 0.25 else "")
        opening = "" if self.draw.random() < 0.7 else f"{self.word(THERE)} "
        verb = "" if opening else f"{self.word(STANDS)} "
        return f"{opening}{self.noun(thing)} {verb}{spot}"

    def counted(self, scene: Scene) -> str:
        """``three shapes on a dark background, one is a red ball``."""
        number = self.word(NUMBERS[len(scene.things)])
        thing = self.noun(scene.things[0], brief=True)
        tail = f"{self.word(('including', 'one is'))} {thing}" if self.draw.random() < 0.6 else ""
        return f"{number} {self.word(PLURALS)} {tail or self.backdrop(scene)}"

    def caption(self, scene: Scene) -> str:
        """One caption of 5 to 14 words, lower case without punctuation."""
        while True:
            kinds: tuple[Callable[[Scene], str | None], ...] = (
                self.related,
                self.accompanied,
                self.listed,
                self.placed,
                self.counted,
            )
            text = self.draw.choices(kinds, (55, 12, 15, 12, 6))[0](scene)
            if text is not None and MIN_WORDS <= len(text.split()) <= MAX_WORDS:
                return text


def make_captions(scene: Scene, seed: int, index: int) -> list[str]:
    """The five different captions of scene number ``index`` of a seed."""
    speaker = Speaker(random.Random(f"captions {seed} {index}"))
    captions: list[str] = []
    while len(captions) < CAPTIONS_PER_SCENE:
        caption = speaker.caption(scene)
        if caption not in captions:
            captions.append(caption)
    return captions
