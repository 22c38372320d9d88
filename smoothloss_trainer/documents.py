"""YAML and JSON as plain values. What a hostile or mistaken document may cost is bounded before it is built.

YAML is read by the rules of version 1.2 for plain words: ``1e-3`` is a number, ``010`` is ten, ``no`` and ``on`` are
text, and so are dates. Keys are text. No key may occur twice, in JSON neither: with most readers the last one silently
wins.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from smoothloss_trainer.errors import RecipeError

MAX_DEPTH = 64  # lists and mappings in each other
MAX_YAML_CHARACTERS = 1 << 17  # PyYAML reads as much in seconds; recipes have a hundredth of it
MAX_YAML_NODES = 1 << 16  # values of a YAML document, those behind its aliases counted wherever they stand

_TAG = "tag:yaml.org,2002:"
# The core schema of YAML 1.2.
_PLAIN_WORDS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "merge": "<<",
}


def parse_json(text: str, what: str, *, constants: bool = False, unique: bool = True) -> Any:
    """The value of a JSON text.

    Args:
        text: JSON.
        what: What an error begins with: ``data.captions: cannot read captions.json``.
        constants: Take ``NaN`` and ``Infinity``, which Python writes and JSON does not know, and numbers too large for
            a float.
        unique: Refuse an object that has a key twice; otherwise the last one wins.

    Raises:
        RecipeError: one line, when it is no JSON, has a key twice, or is nested deeper than :data:`MAX_DEPTH`.
    """
    hooks: dict[str, Any] = {} if constants else {"parse_constant": _refuse_constant, "parse_float": _finite}
    if unique:
        hooks["object_pairs_hook"] = _without_repeats
    try:
        value = json.loads(text, **hooks)
    except RecursionError:
        raise RecipeError(f"{what}: {_too_deep()}") from None
    except ValueError as error:
        raise RecipeError(f"{what}: {' '.join(str(error).split())}") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _children(outer) if isinstance(inner, dict | list)]
    if level:
        raise RecipeError(f"{what}: {_too_deep()}")
    return value


def _children(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _too_deep() -> str:
    return f"lists and mappings are nested deeper than {MAX_DEPTH} levels"


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _finite(word: str) -> float:
    number = float(word)
    if math.isinf(number):
        raise ValueError(f"{word[:40]} is too large a number")
    return number


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} occurs twice in one object")
    return values


def parse_yaml(text: str, what: str, string: Callable[[str], str] = str) -> Any:
    """The value of a YAML text: dictionaries, lists, text, numbers, booleans and None.

    Args:
        text: One YAML document.
        what: What an error begins with: ``recipe mle.yaml``.
        string: Makes what stands for the text of a value (not of a key).

    Raises:
        RecipeError: one line that names the line, when it is no YAML, has a key twice, a tag that says what kind of
            object to make, or is longer, deeper or, with its aliases written out, larger than the bounds above.
    """
    if len(text) > MAX_YAML_CHARACTERS:
        raise RecipeError(f"{what} is longer than {MAX_YAML_CHARACTERS:,} characters")
    try:
        return _Builder(string).build(_Composer(text).get_single_node())
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        problem = " ".join(f"{error.context or ''} {error.problem or ''}".split())
        raise RecipeError(f"{what} is not valid YAML: {line}{problem}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two of escapes that are no character
        raise RecipeError(f"{what} is not valid YAML: {' '.join(str(error).split())}") from None


def dump_yaml(values: dict[str, Any]) -> str:
    """YAML that :func:`parse_yaml` and readers of YAML 1.1 take for the same values."""
    return str(yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _problem(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


class _Composer(yaml.SafeLoader):
    """Makes a graph of nodes of a document, as deep as is allowed at most."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own way)
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH + 1:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=_too_deep(), problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would not take for text."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        # Folded in single quotes, odd line separators would not come back.
        return self.represent_scalar(f"{_TAG}str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_text)

for _name, _pattern in _PLAIN_WORDS.items():
    for _kind in (_Composer, _Dumper):
        _kind.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"^(?:{_pattern})$"), None)


class _Builder:
    """Makes plain values of nodes, aliases written out, until there are too many."""

    def __init__(self, string: Callable[[str], str]) -> None:
        self.string, self.nodes = string, 0

    def build(self, node: yaml.Node | None, depth: int = 0) -> Any:
        if node is None:
            return None
        self.nodes += 1
        if self.nodes > MAX_YAML_NODES:
            raise _problem(f"more than {MAX_YAML_NODES:,} values, those behind aliases counted each time", node)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if depth >= MAX_DEPTH:
            raise _problem(_too_deep(), node)
        expected = "map" if isinstance(node, yaml.MappingNode) else "seq"
        if node.tag != f"{_TAG}{expected}":
            raise _problem(f"the tag {node.tag} is not allowed", node)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(inner, depth + 1) for inner in node.value]
        return self._mapping(node, depth)

    def _mapping(self, node: yaml.Node, depth: int) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        values: dict[str, Any] = {}
        merges = False
        for key, inner in node.value:
            value = self.build(inner, depth + 1)
            if not isinstance(key, yaml.ScalarNode):
                raise _problem("a key must be text", key)
            if key.tag == f"{_TAG}merge":
                if merges:
                    raise _problem("the key '<<' occurs twice", key)
                merges = True
                for other in reversed(value if isinstance(value, list) else [value]):
                    if not isinstance(other, dict):
                        raise _problem("<< must merge mappings", key)
                    merged |= other
            elif key.value in values:
                raise _problem(f"the key {key.value[:80]!r} occurs twice", key)
            else:
                values[key.value] = value
        return merged | values

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        kind, word = node.tag.removeprefix(_TAG), node.value
        if kind in ("str", "merge"):
            return self.string(word)
        if kind not in _PLAIN_WORDS or not re.fullmatch(_PLAIN_WORDS[kind], word):
            raise _problem(f"the tag {node.tag} is not allowed for {word[:40]!r}", node)
        if kind == "null":
            return None
        if kind == "bool":
            return word.lower() == "true"
        if kind == "float":
            return float(word.lower().replace(".inf", "inf").replace(".nan", "nan"))
        try:
            return int(word, 0) if word[:2] in ("0o", "0x") else int(word)
        except ValueError:
            raise _problem(f"{word[:40]}... is too long a number", node) from None


def flat(values: Mapping[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined: ``{"loss": {"tau": 1}}`` becomes ``{"loss.tau": 1}``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        is_nested = isinstance(value, Mapping)
        found |= flat(value, separator, f"{prefix}{key}{separator}") if is_nested else {f"{prefix}{key}": value}
    return found
