"""Keys with types and ranges: how the dataclasses of a recipe or a table are filled from plain values, and explained.

A key is a field of a dataclass. Its annotation says the type and the range, its default is the field's, its meaning
stands under ``Args:`` in the docstring. Nothing is converted: text is no number, and 2.0 is no whole number.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo

from smoothloss_trainer.devices import choose_device
from smoothloss_trainer.errors import RecipeError

T = TypeVar("T")
_CONFIG = ConfigDict(strict=True, allow_inf_nan=False)
_LONGEST_NAME = 255  # bytes, of a file on most systems
_ROOM_FOR_ENDINGS = 55  # bytes of what stands around a split's name in the names of files


class Text(str):
    """Text that knows the folder that paths in it are relative to: that of the file, or of the command line."""

    folder: Path

    @classmethod
    def of(cls, folder: Path) -> Any:
        """A function that makes such text of a string."""

        def make(text: str) -> Text:
            made = cls(text)
            made.folder = folder
            return made

        return make


def is_there(path: Path, *, prefix: bool = False) -> bool:
    """Whether there is such a file or folder, or with ``prefix`` a file whose name goes on with a dot and an ending."""
    try:
        if path.exists():
            return True
        start = f"{path.name}."
        return prefix and any(
            file.name.startswith(start) and file.suffix not in (".yaml", ".yml") for file in path.parent.iterdir()
        )
    except (OSError, ValueError):
        return False


def find_path(text: str, *, prefix: bool = False) -> str:
    """A relative path made absolute: in the folder that the text knows, or else in the working folder.

    Raises:
        ValueError: when it is in neither, naming both.
    """
    folder = getattr(text, "folder", None)
    if folder is None or text.startswith("~") or "$" in text or Path(text).is_absolute():
        return str(text)
    places = list(dict.fromkeys([folder / text, Path.cwd() / text]))
    for place in places:
        if is_there(place, prefix=prefix):
            return str(place)
    raise ValueError(f"no such file: {' nor '.join(map(str, places))}")


def check_path(text: str) -> None:
    """Refuse what no file system takes for a path.

    Raises:
        ValueError: saying why.
    """
    if not text or "\0" in text:
        raise ValueError(f"must be a path, got {shown(text)}")
    try:
        os.fsencode(Path(text).expanduser())
    except UnicodeEncodeError:
        raise ValueError(f"must be a path, got {shown(text)}") from None
    except RuntimeError:
        raise ValueError(f"there is no such user as in {shown(text)}") from None


def _path(prefix: bool) -> BeforeValidator:
    def check(value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str):
            return value  # for the type to refuse
        check_path(value)
        return find_path(value, prefix=prefix) if _is_here(info) else str(value)

    return BeforeValidator(check)


def _is_here(info: ValidationInfo) -> bool:
    return bool(info.context and info.context["here"])


def check_file_name(name: str, longest: int = _LONGEST_NAME) -> str:
    """A name that a file or folder can have.

    Raises:
        ValueError: when it is empty, ``.`` or ``..``, too long, or has a slash or a character that is not printed.
    """
    odd = name in ("", ".", "..") or "/" in name or "\\" in name or not name.isprintable()
    if odd or len(name.encode()) > longest:
        raise ValueError(f"must be a name for files: printed characters, no slash, at most {longest} bytes")
    return name


def _check_device(name: str, info: ValidationInfo) -> str:
    choose_device(name, here=_is_here(info))
    return name


def _check_words(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("must be text of printed characters, and not empty")
    return text


Size = Annotated[int, Field(ge=1, le=65_536)]  # of a layer
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
CountOrNone = Annotated[int, Field(ge=0, le=1_000_000_000)]  # 0 switches off
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]
PartialShare = Annotated[float, Field(ge=0, lt=1)]
Temperature = Annotated[float, Field(ge=0.001, le=1000)]
Words = Annotated[str, AfterValidator(_check_words)]
FileName = Annotated[str, AfterValidator(check_file_name)]
SplitName = Annotated[str, AfterValidator(lambda name: check_file_name(name, _LONGEST_NAME - _ROOM_FOR_ENDINGS))]
FilePath = Annotated[str, _path(prefix=False), Field(json_schema_extra={"format": "path"})]
FilePrefix = Annotated[str, _path(prefix=True), Field(json_schema_extra={"format": "path"})]
Device = Annotated[str, AfterValidator(_check_device)]


@dataclass(frozen=True)
class Key:
    """A key of a recipe or table.

    Args:
        name: With the sections it is in: ``loss.alpha``.
        hint: Its annotation; a dataclass for a section.
        explanation: What it means.
        default: What it is when left out; ``dataclasses.MISSING``: it is needed.
    """

    name: str
    hint: Any
    explanation: str
    default: Any

    @property
    def is_section(self) -> bool:
        """Whether it has keys of its own."""
        return is_dataclass(self.hint)

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of its values."""
        return _schema(self.hint)


Hints = Mapping[str, Any]


def fields_of(kind: type, hints: Hints) -> dict[str, Any]:
    """The annotations of a dataclass by field; ``hints`` has others in place of its own."""
    return {**_hints_of(kind), **hints}


_hints_of = cache(lambda kind: get_type_hints(kind, include_extras=True))


def keys_of(kind: type, hints: Hints | None = None, prefix: str = "") -> Iterator[Key]:
    """All keys of a dataclass; its sections come last, each followed by its own keys.

    Args:
        kind: The dataclass.
        hints: Annotations of some fields in place of the dataclass's own.
        prefix: What the names begin with.
    """
    types, explanations = fields_of(kind, hints or {}), _explanations(kind)
    for field in sorted(dataclasses.fields(kind), key=lambda field: is_dataclass(types[field.name])):
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        key = Key(f"{prefix}{field.name}", types[field.name], explanations.get(field.name, ""), default)
        yield key
        if key.is_section:
            yield from keys_of(key.hint, None, f"{key.name}.")


def paths_of(section: Any) -> Iterator[str]:
    """The paths in a dataclass and its sections, as they were written."""
    for name, hint in fields_of(type(section), {}).items():
        value = getattr(section, name)
        if is_dataclass(value):
            yield from paths_of(value)
        elif value and "'format': 'path'" in str(_schema(hint)):
            yield from value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]


def _explanations(kind: type) -> dict[str, str]:
    """What the docstring of a dataclass says of its fields."""
    arguments = (inspect.getdoc(kind) or "").partition("Args:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n {6,}.*)*)", arguments, re.MULTILINE)
    return {name: _plain(text) for name, text in entries}


def _plain(text: str) -> str:
    """A docstring's words without its marks, in one line."""
    return " ".join(re.sub(r":\w+:`~?([^`]*)`", r"\1", text).replace("``", "").split())


def build(
    kind: type[T],
    values: Any,
    *,
    hints: Hints | None = None,
    here: bool = True,
    key: str = "",
    known: Callable[[], list[str]] | None = None,
) -> T:
    """A dataclass from a mapping, all its values checked.

    Args:
        kind: The dataclass.
        values: What is given.
        hints: Annotations of some fields in place of the dataclass's own.
        here: Look for files and devices on this machine.
        key: The section that the dataclass is of, for errors.
        known: Gives the names of all keys, for errors; left out, those of the dataclass.

    Raises:
        RecipeError: one line that names the key, what was got and what was expected.
    """
    if not isinstance(values, dict):
        raise RecipeError(f"{key or 'it'} must be a mapping of keys to values, got {shown(values)}")
    known = known or (lambda: [each.name for each in keys_of(kind, hints, f"{key}." if key else "")])
    types, prefix = fields_of(kind, hints or {}), f"{key}." if key else ""
    for name in values:
        if name not in types:
            raise unknown_key(f"{prefix}{name}", known())
    built = {}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        name, hint = f"{prefix}{field.name}", types[field.name]
        if field.name not in values:
            if field.default is field.default_factory is dataclasses.MISSING:
                raise RecipeError(f"{name} is needed")
        elif is_dataclass(hint):
            built[field.name] = build(hint, values[field.name], here=here, key=name, known=known)  # type: ignore[arg-type]
        else:
            built[field.name] = check(hint, values[field.name], name, here=here)
    return kind(**built)


def unknown_key(name: str, known: list[str]) -> RecipeError:
    """The error of a key that there is not, with the nearest one that there is."""
    last = name.rpartition(".")[2]
    near = [other for other in known if other.rpartition(".")[2] == last] or get_close_matches(name, known, 1)
    return RecipeError(f"there is no key {_printed(name)}" + (f", did you mean {near[0]}?" if near else ""))


def check(hint: Any, value: Any, key: str, *, here: bool = True) -> Any:
    """The value of one key, which must be of the type and in the range that an annotation says.

    Raises:
        RecipeError: one line that names the key, what was got and what was expected.
    """
    if get_origin(hint) is dict and is_dataclass(get_args(hint)[1]) and isinstance(value, dict):
        checked = check(dict[get_args(hint)[0], dict[str, Any]], value, key)  # type: ignore[misc]
        return {name: build(get_args(hint)[1], each, here=here, key=f"{key}.{name}") for name, each in checked.items()}
    try:
        return _adapter(hint).validate_python(value, context={"here": here})
    except ValidationError as caught:
        errors = caught.errors(include_url=False)
    own = next((error for error in errors if error["type"] == "value_error"), errors[0])
    schema, got = _schema(hint), value
    if isinstance(value, dict) and own["loc"] and schema.get("type") == "object":
        name, is_name = own["loc"][0], own["loc"][-1] == "[key]"
        key = f"{key}.{_printed(str(name))}"
        schema = schema.get("propertyNames" if is_name else "additionalProperties", {})
        got = name if is_name else value[name]
    if own["type"] == "value_error":
        error = own["ctx"]["error"]
        raise RecipeError(str(error) if isinstance(error, RecipeError) else f"{key}: {error}") from None
    raise RecipeError(f"{key} must be {expected(schema)}, got {shown(got)}") from None


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=None if is_dataclass(hint) else _CONFIG)


@cache
def _schema(hint: Any) -> dict[str, Any]:
    return _adapter(hint).json_schema()


def shown(value: Any) -> str:
    """A value as errors show it: in one line, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]} ..."


def _printed(name: str) -> str:
    return name if name.isprintable() and len(name) <= 60 else shown(name)


def expected(schema: Mapping[str, Any]) -> str:
    """What a JSON schema takes, in words: ``a number from 0 to 1``."""
    if "anyOf" in schema:
        return " or ".join(expected(each) for each in schema["anyOf"])
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return ("a whole number" if kind == "integer" else "a number") + _range(schema)
    if kind == "array":
        parts = [expected(each) for each in schema.get("prefixItems", [schema.get("items", {})])]
        if len(parts) == 1:
            return "a list of " + re.sub(r"^a (whole number|number|path|value|list|mapping)", r"\1s", parts[0])
        return f"a list of {len(parts)}: {', '.join(parts)}"
    if kind == "object":
        inner = schema.get("additionalProperties")  # True: anything
        return f"a mapping of names to {expected(inner if isinstance(inner, Mapping) else {})}"
    if kind == "string":
        return "a path" if schema.get("format") == "path" else "text"
    return {"boolean": "true or false", "null": "null"}.get(str(kind), "a value")


def _range(schema: Mapping[str, Any]) -> str:
    both = "minimum" in schema and "maximum" in schema
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to" if both else "up to"}
    words["exclusiveMaximum"] = "below"
    parts = [f"{word} {schema[bound]:,}" for bound, word in words.items() if bound in schema]
    return f" {(' ' if both else ' and ').join(parts)}" if parts else ""


def explain(keys: Iterator[Key]) -> str:
    """All keys, as ``--section.key``, with what they take, what they are when left out, and what they mean."""
    lines: list[str] = []
    for key in keys:
        if key.is_section:
            title = _plain((inspect.getdoc(key.hint) or "").partition("\n")[0])
            lines += ["", f"{key.name}: {title}"]
            continue
        default = "needed" if key.default is dataclasses.MISSING else f"default {_written(key.default)}"
        lines.append(f"  --{key.name}  ({expected(key.schema)}; {default})")
        lines += textwrap.wrap(key.explanation, 112, initial_indent=" " * 8, subsequent_indent=" " * 8)
    return "\n".join(lines)


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        value = list(value)
    return value if isinstance(value, str) and value else shown(value)
