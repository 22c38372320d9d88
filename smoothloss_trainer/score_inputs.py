"""What ``smoothloss score`` compares: candidates and references in text or JSON, from files, pipes or stdin."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.files import STDIN, Input, existing_input, is_stream, parse_text, read_lines

Documents = list[list[str]]
_Value = TypeVar("_Value")

# How the JSON that is read here begins; a line of text hardly ever does.
_JSON_START = re.compile(r'\s*(?:\[\s*[{\]]|\{\s*["}])')


@dataclass(frozen=True)
class Texts:
    """What is scored.

    Args:
        ids: A name for each candidate.
        candidates: B texts.
        references: The references of each, one at least.
        kind: What the names are: a "line" or an "id".
    """

    ids: list[str]
    candidates: list[str]
    references: Documents
    kind: str


def check_streams(paths: Sequence[str]) -> None:
    """Refuse a stream that would have to be read twice.

    Raises:
        RecipeError: naming it.
    """
    for path, count in Counter(paths).items():
        if count > 1 and is_stream(existing_input(path, "score")):
            name = "standard input" if path == STDIN else path
            raise RecipeError(f"{name} is given {count} times, and can be read only once")


def read_files(candidates: str, references: Sequence[str]) -> Texts:
    """Candidates and references.

    Text against text goes by the lines, JSON against JSON by the ids. Text against JSON goes by the order of the JSON:
    that of its ids where they are the numbers 0, 1, 2, ... or 1, 2, 3, ... (a run's line numbers), else that of the
    file; their numbers must be the same.

    Raises:
        RecipeError: when a file is missing or broken, or they do not fit.
    """
    found = _load(candidates, "candidates")
    texts = _candidates_by_id(found.content, candidates) if isinstance(found, _Json) else found
    if not texts:
        raise RecipeError(f"candidates: {candidates} has no candidate")
    contents = [_load(path, "references") for path in references]
    columns = [content for content in contents if not isinstance(content, _Json)]
    if len(columns) == len(contents):
        return _against_lines(texts, candidates, list(zip(references, columns, strict=True)))
    if len(references) > 1:
        raise RecipeError(f"references in JSON must be one file, got {len(references)}")
    return _against_json(texts, candidates, contents[0], references[0])


def read_documents(path: str) -> Documents:
    """The texts of ``--df``: a document a line, or an id in JSON.

    Raises:
        RecipeError: when the file is missing, broken or empty.
    """
    found = _load(path, "--df")
    if isinstance(found, _Json):
        documents = list(_texts_by_id(found.content, path).values())
    else:
        documents = [[line] for line in found]
    if not any(documents):
        raise RecipeError(f"--df: {path} has no document")
    return documents


@dataclass(frozen=True)
class _Json:
    """What JSON says, as against the lines of a text."""

    content: Any


def _load(path: str, key: str) -> list[str] | _Json:
    """Lines, or JSON: told by the name of a file, and by the first characters of a stream."""
    source = existing_input(path, key)
    lines = read_lines(source, key)
    named = path.removesuffix(".gz")
    if named.endswith(".jsonl"):
        return _Json(_rows(lines, source, key))
    if not named.endswith(".json") and not (is_stream(source) and _JSON_START.match("\n".join(lines[:9]))):
        return lines
    return _Json(parse_text("\n".join(lines), source, key))


def _rows(lines: Sequence[str], source: Input, key: str) -> dict[str, str]:
    """The best texts of a run's ``nbest.<split>.jsonl``: ``{"id", "hypotheses": [{"text", "score"}]}`` on each line."""
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        row = parse_text(line, source, f"{key}: line {number}")
        try:
            name, listed = _identifier(row["id"]), row["hypotheses"]
            text = listed[0]["text"] if listed else ""
        except (KeyError, TypeError, IndexError):
            name, text = None, None
        if name is None or name in found or not isinstance(text, str):
            raise RecipeError(f"{key}: {source}: line {number} has no id of its own with hypotheses and their text")
        found[name] = text
    return found


def _identifier(value: Any) -> str:
    """An id as text: 42, "42" and 42.0 are the same.

    Raises:
        TypeError: when it is something else.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"{value!r} is no id")
    return str(value)


def _candidates_by_id(content: Any, path: str) -> dict[str, str]:
    """COCO results ``[{"image_id": ..., "caption": ...}]``, or ``{id: text}``, or ``{id: [text]}``."""
    if isinstance(content, list):
        pairs = _pairs(content, path, "results with image_id and caption")
    else:
        pairs = [(name, text) for name, texts in _texts_by_id(content, path).items() for text in texts]
    several = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if several:
        raise RecipeError(f"{path} has {len(several)} ids with more than one candidate, such as {several[0]}")
    return dict(pairs)


def _texts_by_id(content: Any, path: str) -> dict[str, list[str]]:
    """COCO annotations ``{"annotations": [{"image_id": ..., "caption": ...}]}``, or ``{id: [texts]}``."""
    found: dict[str, list[str]] = {}
    if not isinstance(content, dict):
        raise RecipeError(f"{path} holds neither COCO annotations nor a mapping of ids to texts")
    if isinstance(content.get("annotations"), list):
        for name, text in _pairs(content["annotations"], path, "annotations with image_id and caption"):
            found.setdefault(name, []).append(text)
        return found
    for name, texts in content.items():
        found[name] = [texts] if isinstance(texts, str) else texts
        if not isinstance(found[name], list) or not all(isinstance(text, str) for text in found[name]):
            raise RecipeError(f"{path} has no list of texts for the id {name}")
    return found


def _pairs(entries: list[Any], path: str, expected: str) -> list[tuple[str, str]]:
    pairs = []
    for number, entry in enumerate(entries):
        try:
            name, text = _identifier(entry["image_id"]), entry["caption"]
        except (KeyError, TypeError, IndexError):
            text = None
        if not isinstance(text, str):
            raise RecipeError(f"{path} does not hold {expected}: entry {number} has other content")
        pairs.append((name, text))
    return pairs


def _against_lines(texts: list[str] | dict[str, str], path: str, columns: Sequence[tuple[str, list[str]]]) -> Texts:
    """Candidates against text files. As in sacrebleu, an empty line of a reference file is no reference."""
    ordered = _in_order(texts) if isinstance(texts, dict) else [(str(n), text) for n, text in enumerate(texts, 1)]
    for name, column in columns:
        _check_sizes(name, len(column), "lines", path, len(ordered))
    groups = [[text for text in row if text.strip()] for row in zip(*(column for _, column in columns), strict=True)]
    return _checked([name for name, _ in ordered], [text for _, text in ordered], groups, "line")


def _against_json(texts: list[str] | dict[str, str], path: str, found: Any, references: str) -> Texts:
    """Candidates against one JSON file."""
    by_id = _texts_by_id(found.content, references)
    if isinstance(texts, dict):
        return _matched(texts, by_id, references)
    ordered = _in_order(by_id)
    _check_sizes(references, len(ordered), "ids", path, len(texts))
    return _checked([name for name, _ in ordered], texts, [group for _, group in ordered], "id")


def _check_sizes(path: str, size: int, what: str, candidates: str, number: int) -> None:
    if size != number:
        raise RecipeError(f"{path} has {size} {what} and {candidates} has {number}; they must be the same")


def _in_order(texts: Mapping[str, _Value]) -> list[tuple[str, _Value]]:
    """By number where the ids are line numbers, from 0 or from 1 on; as they stand otherwise."""
    numbers = range(len(texts) + 1)
    for counted in (numbers[:-1], numbers[1:]):
        names = [str(number) for number in counted]
        if texts.keys() == set(names):
            return [(name, texts[name]) for name in names]
    return list(texts.items())


def _checked(ids: list[str], candidates: list[str], groups: Documents, kind: str) -> Texts:
    places = [str(number) for number in range(1, len(ids) + 1)] if kind == "line" else ids
    bare = [place for place, group in zip(places, groups, strict=True) if not group]
    if bare:
        raise RecipeError(f"{len(bare)} candidates have no reference, such as that of {kind} {bare[0]}")
    return Texts(ids, candidates, groups, kind)


def _matched(candidates: dict[str, str], references: dict[str, list[str]], path: str) -> Texts:
    """The candidates with the references of their ids; those of other ids are left out, as in coco-caption."""
    bare = [name for name in candidates if not references.get(name)]
    if bare:
        raise RecipeError(f"{path} has no reference for {len(bare)} of {len(candidates)} candidates, such as {bare[0]}")
    return Texts(list(candidates), list(candidates.values()), [references[name] for name in candidates], "id")
