from __future__ import annotations

import json
import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from smoothloss_trainer.documents import MAX_DEPTH, MAX_YAML_CHARACTERS, dump_yaml, parse_json, parse_yaml
from smoothloss_trainer.errors import RecipeError

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{','.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 9)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 300))

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        *(("1e-3", 0.001), ("1E5", 1e5), ("-.5", -0.5), ("3.", 3.0), ("010", 10), ("0o10", 8), ("0x1F", 31), ("+1", 1)),
        *(("no", "no"), ("on", "on"), ("Yes", "Yes"), ("1_000", "1_000"), ("1:30", "1:30"), ("2020-01-01",) * 2),
        *(("~", None), ("", None), ("Null", None), ("'null'", "null"), ("TRUE", True), ("'1'", "1"), ("!!str 1", "1")),
        *((".inf", math.inf), ("-.INF", -math.inf), ("<<", "<<")),
    ],
)
def test_plain_words_of_yaml_mean_what_version_1_2_says(word: str, value: Any) -> None:
    found = parse_yaml(f"a: {word}", "x")["a"]
    assert (type(found), found) == (type(value), value)


def test_keys_are_text_and_mappings_merge() -> None:
    assert parse_yaml("{2016: a, true: b, ~: c}", "x") == {"2016": "a", "true": "b", "~": "c"}
    assert parse_yaml("a: &a {x: 1, y: 1}\nb: {y: 2, <<: *a}", "x")["b"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key 'a' occurs twice"),
        ("a: {b: 1, b: 1}", "line 1: the key 'b' occurs twice"),
        (BOMB, "more than .* values"),
        (MERGE_BOMB, "more than .* values"),
        (CHAIN, "nested deeper"),
        ("a: &a [*a]", "nested deeper"),
        ("a: &a {b: *a}", "nested deeper"),
        ("a: &a {<<: *a}", "nested deeper"),
        ("[" * 10_000, "nested deeper"),
        ("{a: " * 10_000, "nested deeper"),
        ("- " * 10_000, "nested deeper"),
        ("a: " + "x" * MAX_YAML_CHARACTERS, "longer than"),
        ("a: " + "1" * 5000, "too long a number"),
        ("a: !!python/object/apply:os.getcwd []", "tag .* is not allowed"),
        ("a: !!set {x}", "tag .* is not allowed"),
        ("a: !!int x", "tag .* is not allowed"),
        ("a: !!timestamp 2020-01-01", "tag .* is not allowed"),
        ("? [a]\n: 1", "a key must be text"),
        ("a: {<<: 3}", "must merge mappings"),
        ("a: {<<: {b: 1}, <<: {b: 2}}", "line 1: the key '<<' occurs twice"),
        ('"\\U00110000"', "not valid YAML"),
        ("a: \x00", "not valid YAML"),
        ("a: [", "not valid YAML"),
        ("a: *b", "not valid YAML"),
        ("--- a\n--- b", "not valid YAML"),
        ("%YAML 1." + "9" * 5000 + "\n--- a", "not valid YAML"),
    ],
)
def test_what_is_no_yaml_or_too_much_of_it_is_one_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"^recipe r.yaml .*{message}") as caught:
        parse_yaml(text, "recipe r.yaml")
    assert "\n" not in str(caught.value)


@given(st.text() | st.text("-?:,[]{}&*!|>%@\"'\\ \n\tab01.<"))
def test_any_text_is_yaml_or_one_line(text: str) -> None:
    try:
        parse_yaml(text, "x")
    except RecipeError as error:
        assert len(str(error).splitlines()) == 1


@given(st.dictionaries(st.text(), SCALARS))
def test_what_is_written_is_read_by_either_version_of_yaml(values: dict[str, Any]) -> None:
    text = dump_yaml(values)
    assert parse_yaml(text, "x") == values
    assert yaml.safe_load(text) == values


@given(VALUES)
def test_json_is_read_as_python_does(value: Any) -> None:
    assert parse_json(json.dumps(value), "x") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested deeper"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested deeper"),
        ('{"a":' * 3000 + "1" + "}" * 3000, "nested deeper"),
        ('{"a": {"b": 1, "b": 2}}', "the key 'b' occurs twice"),
        ("[NaN]", "NaN is no number"),
        ("-Infinity", "-Infinity is no number"),
        ("[1e999]", "1e999 is too large"),
        ("1" * 5000, "limit"),
        ("", "Expecting value"),
    ],
)
def test_what_is_no_json_or_too_deep_is_one_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"^data.captions: .*{message}") as caught:
        parse_json(text, "data.captions")
    assert "\n" not in str(caught.value)


def test_json_may_be_as_python_writes_it() -> None:
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH, "x")
    assert parse_json("[Infinity, 1e999]", "x", constants=True) == [math.inf, math.inf]
    assert parse_json('{"a": 1, "a": 2}', "x", unique=False) == {"a": 2}
