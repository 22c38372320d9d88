"""What users may pass: numbers of any kind, and one short line that says what is wrong with what is none."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import smoothloss.functional as F
from smoothloss._validation import check_integer, check_number, check_token_ids
from smoothloss.row_options import check_row_options

REALS: list[Callable[[Any], Any]] = [float, np.float64, np.array, Fraction]
INTEGERS: list[Callable[[Any], Any]] = [int, np.int32, np.int64, np.array, torch.tensor]


@given(st.floats(-1e300, 1e300), st.sampled_from(REALS))
def test_real_numbers_of_any_kind(value: float, kind: Callable[[Any], Any]) -> None:
    found = check_number(kind(value), "x")
    assert type(found) is float
    assert found == value


@given(st.integers(-(2**31), 2**31 - 1), st.sampled_from(INTEGERS))
def test_integers_of_any_kind(value: int, kind: Callable[[Any], Any]) -> None:
    found = check_integer(kind(value), "x")
    assert type(found) is int
    assert found == value
    assert check_token_ids([kind(value & 1023)], "x") == [value & 1023]
    if kind is not torch.tensor:
        assert check_number(kind(value), "x") == value


@pytest.mark.parametrize(
    "value", [None, "1", "x" * 999, True, np.bool_(True), 1j, [1.0], np.ones((40, 40)), torch.ones(9, 9), {}, object()]
)
def test_what_is_no_number_is_told_in_one_line(value: object) -> None:
    for check in (check_number, check_integer):
        with pytest.raises(TypeError, match=r"^x: got .*, expected a") as caught:
            check(value, "x")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 120


@pytest.mark.parametrize(
    ("options", "wrong", "expected"),
    [
        ({}, [math.nan, math.inf, -math.inf, np.float32("inf")], "a finite number$"),
        ({"finite": False}, [math.nan], "a number$"),
        ({"low": 0.0}, [-1e-300, math.nan, math.inf], "a finite number >= 0$"),
        ({"low": 0.0, "open_low": True}, [0, 0.0, -1, math.nan, math.inf], "a finite number > 0$"),
        ({"low": 0.0, "high": 1.0}, [-0.1, 1.1, 2, math.inf, math.nan], r"a number in \[0, 1\]$"),
        ({"low": 0.0, "high": 1.0, "open_low": True}, [0.0, 1.5], r"a number in \(0, 1\]$"),
        ({}, [10**400, Fraction(10**400)], "a number within float64$"),
    ],
)
def test_numbers_out_of_range(options: dict[str, Any], wrong: list[Any], expected: str) -> None:
    for value in wrong:
        with pytest.raises(ValueError, match=f"^x: got .*, expected {expected}"):
            check_number(value, "x", **options)


@pytest.mark.parametrize("option", ["softcap", "logit_scale"])
def test_scales_of_logits_are_within_float32(option: str) -> None:
    for value in (1e39, 1e300):
        with pytest.raises(ValueError, match=rf"^{option}: got 1e\+\d+, expected a number in \(0, 3\.40282e\+38\]$"):
            check_row_options(**{option: value})
    logits = torch.rand(3, 5)
    assert not F.cross_entropy(logits, torch.arange(3), **{option: 3.4e38}).isnan()  # type: ignore[arg-type]


def test_numbers_at_the_ends_of_their_range() -> None:
    for value in (math.inf, -math.inf):
        assert check_number(value, "x", finite=False) == value
    assert check_number(0, "x", 0.0, 1.0) == 0.0
    assert check_number(1, "x", 0.0, 1.0, open_low=True) == 1.0
    assert check_integer(3, "x", 3, 3) == 3
    for low, high in ((4, None), (None, 2)):
        with pytest.raises(ValueError, match=r"^x: got 3, expected at"):
            check_integer(3, "x", low, high)


def test_token_ids() -> None:
    assert check_token_ids({3, 1}, "ids") == [1, 3]
    assert check_token_ids(np.array([2, 0]), "ids", 3) == [2, 0]
    mistakes: list[tuple[Any, type[Exception], str]] = [
        (3, TypeError, r"ids: got 3 \(int\), expected a sequence of token ids"),
        ([1, "2"], TypeError, r"ids: got '2' \(str\), expected integer token ids"),
        ([-1], ValueError, "ids: got token -1, expected token ids >= 0"),
    ]
    for ids, error, message in mistakes:
        with pytest.raises(error, match=message):
            check_token_ids(ids, "ids")
    with pytest.raises(ValueError, match="ids: got token 3, expected 0 <= token < 3"):
        check_token_ids([3], "ids", 3)
