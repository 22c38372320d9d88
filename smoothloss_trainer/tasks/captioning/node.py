"""Values of a JSON file that know where they stand, so that an error can name the file and the place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from smoothloss_trainer.errors import RecipeError

_KINDS = {dict: "a mapping", list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}


class Node:
    """A value and its place.

    Args:
        value: What JSON gave.
        place: Of the whole: the recipe key and the file.
        parent: What it is in; None for the whole.
        key: Its name or number there.
    """

    __slots__ = ("_key", "_parent", "_place", "value")

    def __init__(self, value: Any, place: str = "", parent: Node | None = None, key: str | int = "") -> None:
        self.value, self._place, self._parent, self._key = value, place, parent, key

    @property
    def place(self) -> str:
        """Such as ``data.captions: x.json: images[3].sentences``."""
        steps: list[str] = []
        node = self
        while node._parent is not None:
            steps.append(f"[{node._key}]" if isinstance(node._key, int) else f".{node._key}")
            node = node._parent
        path = "".join(reversed(steps)).removeprefix(".")
        return f"{node._place}: {path}" if path else node._place

    def wrong(self, expected: str) -> RecipeError:
        """The error that it is something else than expected."""
        if self.value is None or isinstance(self.value, bool):
            got = {None: "null", True: "true", False: "false"}[self.value]
        else:
            got = _KINDS.get(type(self.value), "something else")
            if isinstance(self.value, str | int | float):
                got = repr(self.value)[:60]
        return RecipeError(f"{self.place} must be {expected}, got {got}")

    def __getitem__(self, name: str) -> Node:
        """The member of a mapping, which must be there."""
        found = self.get(name)
        if found is None:
            raise RecipeError(f"{self.place} has no {name!r}")
        return found

    def get(self, name: str) -> Node | None:
        """The member of a mapping, or None."""
        if not isinstance(self.value, dict):
            raise self.wrong("a mapping")
        return Node(self.value[name], parent=self, key=name) if name in self.value else None

    def entries(self) -> Iterator[Node]:
        """The entries of a list."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return (Node(value, parent=self, key=number) for number, value in enumerate(self.value))

    def members(self) -> Iterator[tuple[str, Node]]:
        """The members of a mapping."""
        if not isinstance(self.value, dict):
            raise self.wrong("a mapping")
        return ((name, Node(value, parent=self, key=name)) for name, value in self.value.items())

    def text(self) -> str:
        """A string."""
        if not isinstance(self.value, str):
            raise self.wrong("a string")
        return self.value

    def identifier(self) -> str:
        """An id as text: 42 and "42" are the same."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | str):
            raise self.wrong("a whole number or a string")
        return str(self.value)

    def one_of(self, names: dict[str, str]) -> str:
        """What a name stands for."""
        name = self.text()
        if name not in names:
            raise self.wrong(f"one of {', '.join(names)}")
        return names[name]
