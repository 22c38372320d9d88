"""What users may pass, checked before any kernel runs. Messages name the argument, what was got, what was expected.

Python's numbers and NumPy's, and one-element arrays of them, are all the same thing.
"""

from __future__ import annotations

import math
import numbers
import operator
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

REDUCTIONS = ("none", "mean", "sum")


def check_tensor(value: object, name: str, *, floating: bool | None = None) -> Tensor:
    """Return `value` when it is a tensor, floating or integer as asked, else raise TypeError."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a torch.Tensor")
    if floating is True and not value.dtype.is_floating_point:
        raise TypeError(f"{name}: got {value.dtype}, expected a floating-point dtype")
    if floating is False and value.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: got {value.dtype}, expected torch.int64 or torch.int32")
    return value


def check_local(value: Tensor, name: str) -> None:
    """Raise TypeError for a DTensor, whose parts lie on several devices."""
    module = sys.modules.get("torch.distributed.tensor")
    if module is not None and isinstance(value, module.DTensor):
        raise TypeError(f"{name}: got a DTensor, expected a torch.Tensor: pass {name}.full_tensor()")


def check_group(value: object) -> None:
    """Raise TypeError for a group that is neither None nor a process group."""
    if value is not None and not isinstance(value, getattr(torch.distributed, "ProcessGroup", ())):
        raise TypeError(f"group: got {type(value).__name__}, expected a torch.distributed process group")


def check_constant(value: Tensor, name: str) -> None:
    """Raise ValueError for a tensor that requires grad where there is no gradient."""
    if value.requires_grad:
        raise ValueError(
            f"{name}: got a tensor that requires grad, expected a constant: detach it, or build the loss from"
            " token_statistics, whose log-probabilities may be weighted by anything"
        )


def check_shape(value: Tensor, name: str, expected: tuple[int, ...], meaning: str) -> None:
    """Raise ValueError unless `value` has the shape `expected`, which the message explains by `meaning`."""
    if tuple(value.shape) != tuple(expected):
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected {tuple(expected)} ({meaning})")


def check_device(value: Tensor, name: str, other: Tensor, other_name: str) -> None:
    """Raise ValueError unless both tensors are on one device."""
    if value.device != other.device:
        raise ValueError(f"{name}: got a tensor on {value.device}, expected {other.device}, where {other_name} is")


def check_number(
    value: object,
    name: str,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    finite: bool = True,
) -> float:
    """Return a real number of any kind, also a one-element array of NumPy's, as a float.

    Raises:
        TypeError: `value` is no real number; a bool is none.
        ValueError: it is not in [low, high], or (low, high] with `open_low`; NaN; or infinite where `finite` is asked.
    """
    number = _real(value, name)
    inside = (number > low if open_low else number >= low) and number <= high
    # Comparisons, not math.isinf: torch.compile follows them with numbers that vary from call to call.
    if not (inside and (not finite or -math.inf < number < math.inf)):
        raise ValueError(f"{name}: got {value}, expected {_range(low, high, open_low, finite)}")
    return number


def _real(value: object, name: str) -> float:
    if isinstance(value, float):
        return float(value)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: got {_shown(value)}, expected a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}: got {_shown(value)}, expected a number within float64") from None


def _range(low: float, high: float, open_low: bool, finite: bool) -> str:
    if high < math.inf:
        return f"a number in {'(' if open_low else '['}{low:g}, {high:g}]"
    number = "a finite number" if finite else "a number"
    return number if low == -math.inf else f"{number} {'>' if open_low else '>='} {low:g}"


def _shown(value: object) -> str:
    """Return a value and its type in one short line."""
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def check_integer(value: object, name: str, low: int | None = None, high: int | None = None) -> int:
    """Return an integer of any kind as an int.

    Raises:
        TypeError: `value` is no integer; a bool is none.
        ValueError: it is not in [low, high].
    """
    try:
        # Asked for an index, a bool of NumPy 1 gives one, with a warning.
        number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError):
        number = None
    if number is None:
        raise TypeError(f"{name}: got {_shown(value)}, expected an integer")
    if low is not None and number < low:
        raise ValueError(f"{name}: got {number}, expected at least {low}")
    if high is not None and number > high:
        raise ValueError(f"{name}: got {number}, expected at most {high}")
    return number


def check_ignore_index(value: object) -> int:
    """Return the class number of ignored positions: any that int64 holds."""
    return check_integer(value, "ignore_index", -(1 << 63), (1 << 63) - 1)


def check_weight(value: object) -> Tensor:
    """Return weights, of classes or of positions: floating, no DTensor, constant for the gradient."""
    weight = check_tensor(value, "weight", floating=True)
    check_local(weight, "weight")
    check_constant(weight, "weight")
    return weight


def check_token_ids(values: Iterable[int], name: str, size: int | None = None) -> list[int]:
    """Return token ids as a list of ints: a sequence, an array or a set of integers.

    Raises:
        TypeError: `values` cannot be iterated over, or holds anything but integers.
        ValueError: a token id is negative, or not below `size`.
    """
    try:
        items: list[Any] = list(values)
    except TypeError:
        raise TypeError(f"{name}: got {_shown(values)}, expected a sequence of token ids") from None
    tokens = []
    for item in items:
        try:
            tokens.append(check_integer(item, name))
        except TypeError:
            raise TypeError(f"{name}: got {_shown(item)}, expected integer token ids") from None
    for token in tokens:
        if token < 0 or (size is not None and token >= size):
            expected = "token ids >= 0" if size is None else f"0 <= token < {size}"
            raise ValueError(f"{name}: got token {token}, expected {expected}")
    return tokens


def check_choice(value: object, name: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, choices))}")


def check_flag(value: object, name: str) -> bool:
    """Return `value` when it is True or False, of NumPy too, else raise TypeError."""
    if not isinstance(value, bool) and type(value).__name__ not in ("bool_", "bool"):
        raise TypeError(f"{name}: got {type(value).__name__}, expected True or False")
    return bool(value)
