"""Numbers that users pass: Python's, NumPy's and one-element arrays of them are all the same thing."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable
from typing import Any

import numpy as np


def as_integer(value: object, name: str, low: int | None = None, high: int | None = None) -> int:
    """Return an integer of any kind as an int.

    Raises:
        TypeError: `value` is no integer; a bool is none.
        ValueError: it is not in [low, high].
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):
        number = None
    if number is None or isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}), expected an integer")
    if low is not None and number < low:
        raise ValueError(f"{name}: got {number}, expected at least {low}")
    if high is not None and number > high:
        raise ValueError(f"{name}: got {number}, expected at most {high}")
    return number


def as_real(value: object, name: str) -> float:
    """Return a real number of any kind as a float; it may be NaN or infinite.

    Raises:
        TypeError: `value` is no real number; a bool is none.
        ValueError: it is an integer beyond float64.
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}), expected a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}: got {value}, expected a finite number") from None


def as_positive(value: object, name: str) -> float:
    """Return a finite number > 0 as a float.

    Raises:
        TypeError: `value` is no real number.
        ValueError: it is not finite, or not > 0.
    """
    number = as_real(value, name)
    if not 0 < number < math.inf:
        raise ValueError(f"{name}: got {number}, expected a finite number > 0")
    return number


def as_token_ids(values: Iterable[int], name: str, size: int | None = None) -> list[int]:
    """Return token ids as a list of ints: a sequence, an array or a set of integers.

    Raises:
        TypeError: `values` cannot be iterated over, or holds anything but integers.
        ValueError: a token id is negative, or not below `size`.
    """
    try:
        items: list[Any] = list(values)
    except TypeError:
        raise TypeError(f"{name}: got {values!r} ({type(values).__name__}), expected a sequence of token ids") from None
    tokens = []
    for item in items:
        try:
            tokens.append(as_integer(item, name))
        except TypeError:
            raise TypeError(f"{name}: got {item!r} ({type(item).__name__}), expected integer token ids") from None
    for token in tokens:
        if token < 0 or (size is not None and token >= size):
            expected = "token ids >= 0" if size is None else f"0 <= token < {size}"
            raise ValueError(f"{name}: got token {token}, expected {expected}")
    return tokens
