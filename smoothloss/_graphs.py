"""What code that torch compiles needs to be told."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_Function = TypeVar("_Function", bound=Callable[..., object])


def constant(function: _Function) -> _Function:
    """Let compiled code take the function's result for a constant: ``torch.compiler.assume_constant_result``.

    That one imports ``torch._dynamo``, which takes twice as long as everything else here, for an attribute.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
