"""Which cases of a test `make quick` runs; `make test` runs them all."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(kept: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """Return cases for `parametrize`, all but the kept ones marked slow; a tuple is a case of several arguments."""
    named = list(cases)
    assert all(case in named for case in kept), "a case to keep is not among the cases"
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if case in kept else pytest.mark.slow)
        for case in named
    ]
