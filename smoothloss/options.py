"""The options of a call: named once, checked once, documented once.

All losses share those of `CallOptions`, keyword-only; losses on logits take those of `LogitsOptions` too, losses on
hidden states those of `LinearOptions`. What of them concerns each row by itself is declared in
`smoothloss.row_options`. A loss takes them as ``**given``, and its signature shows every one by name, with its default.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar, get_type_hints

import torch
from torch import Tensor

from smoothloss._prior import check_prior
from smoothloss._validation import REDUCTIONS, check_choice, check_flag, check_group, check_integer, check_number
from smoothloss.backends import IMPLEMENTATIONS, Implementation
from smoothloss.backends.common import replaced
from smoothloss.row_options import RowKeywords, RowOptions, check_row_options

__all__ = [
    "CallOptions",
    "LinearOptions",
    "LogitsOptions",
    "Memory",
    "Options",
    "RowKeywords",
    "Tail",
    "check",
    "takes",
]

Memory = Literal["fast", "low"]
Tail = Literal["exact", "compensated"]


class CallOptions(RowKeywords, total=False):
    """What every loss takes, besides `RowKeywords`.

    Attributes:
        prior: ``(V,)`` probabilities by which the mass that lies on all classes (label smoothing's, `uniform`'s, a
            table's uniform tail) is spread instead of evenly: ``u * (lse - (prior * z).sum(-1))``. Unigram frequencies
            give unigram label smoothing, zeros leave classes out (masked label smoothing), whatever their logits.
            Constant for the gradient; it must sum to one within its dtype's rounding.
        kl: subtracts the target's own entropy, so that the value is ``KL(q || p)``; the gradient stays.
        reduction: "mean" (over the positions whose target has mass; nan when there is none), "sum", "none".
        impl: "reference", "native" (C++, or CUDA C++) or "triton"; a RuntimeError says why where that cannot run.
            "auto" takes the first that can: C++ on the CPU, CUDA C++ and then Triton on NVIDIA GPUs, else the
            reference; and the reference under ``torch.func.vmap`` and in forward mode.
        group: a `torch.distributed` process group over which the classes are split: the last dimension of logits, or
            the first of `linear_weight` and `linear_bias`, is this process's slice, in the order of the ranks, of any
            size. Class numbers, tables and class weights are those of all classes; hidden states and targets are the
            same on every process, and so are the loss and the gradient of the hidden states. A DTensor says the same
            without it. In eager mode.
    """

    prior: Tensor | None
    kl: bool
    reduction: str
    impl: Implementation
    group: Any


class LogitsOptions(CallOptions, total=False):
    """What losses on logits take, besides `CallOptions`.

    Attributes:
        inplace: the backward may write the gradient over `input`, which must not be used afterwards. A permission, not
            a command: it has no effect under ``torch.compile``, on the reference, or where `input` does not fill its
            own memory (slices, expanded and transposed tensors).
    """

    inplace: bool


class LinearOptions(CallOptions, total=False):
    """What losses on hidden states take, besides `CallOptions`.

    Attributes:
        chunk_bytes: size of the scratch for logits and their gradients in bytes; None for 256 MiB on the CPU and
            1.5 GiB on CUDA.
        memory: "low" computes the logits again in the backward, a slice of the vocabulary at a time: a fourth GEMM, and
            no sum of gradients of the size of `linear_weight` beside the gradient itself. So does
            ``reduction="none"`` always.
        tail: "compensated" leaves out of the two products of the gradients the classes that bfloat16 cannot see in a
            chunk of rows, and puts a product of low rank back for them; the loss stays what it is, and so do entries
            of the target, uniform mass and `prior` in the gradients. Where this takes more than half of the classes,
            or a chunk has fewer than 256 rows or a table with an exact tail, all are multiplied. For bfloat16, with
            "mean" or "sum", ``memory="fast"`` and no entropy; on CUDA with torch 2.8 or newer and Triton, where it
            takes half as much scratch again and the host does not wait to know how many classes are left. It pays
            where most classes are improbable in all rows.
        tail_tolerance: how much that may err in the gradients of `input` and `linear_weight`, each as a whole
            (Frobenius), in units of what rounding them to bfloat16 errs, 0.17 %. The error is measured at random: it
            is more than twice the tolerance with a probability of less than 0.001.
    """

    chunk_bytes: int | None
    memory: Memory
    tail: Tail
    tail_tolerance: float


class Options(NamedTuple):
    """The checked options of a call on logits or hidden states."""

    row: RowOptions = RowOptions()
    kl: bool = False
    reduction: str = "mean"
    impl: Implementation = "auto"
    inplace: bool = False
    chunk_bytes: int | None = None
    memory: Memory = "fast"
    group: Any = None
    tail: Tail = "exact"
    tail_tolerance: float = 1.0
    prior: Tensor | None = None


_DEFAULT = Options()


def check(given: Mapping[str, Any], names: tuple[str, ...]) -> Options:
    """Return the options of a call.

    Args:
        given: what the caller gave of them.
        names: of the options that there are, `LOGITS` or `LINEAR`.

    Raises:
        TypeError, ValueError: naming the option, what was got and what was expected.
    """
    if not given:
        return _DEFAULT
    if given.get("prior") is not None:  # what a tensor holds cannot be remembered
        rest = {name: value for name, value in given.items() if name != "prior"}
        return replaced(Options, check(rest, names), prior=check_prior(given["prior"]))
    # A group that is remembered would never end.
    if torch.compiler.is_compiling() or given.get("group") is not None:
        return _check(names, **given)
    try:
        return _remembered(names, **given)
    except TypeError:  # something that cannot be remembered, which is something that is wrong
        return _check(names, **given)


def check_names(given: Iterable[str], names: tuple[str, ...]) -> None:
    """Raise TypeError for an option that there is not."""
    for name in given:
        if name not in names:
            raise TypeError(
                f"got an unexpected keyword argument {name!r}, expected one of the loss's own or an option:"
                f" {', '.join(names)}"
            )


def _check(names: tuple[str, ...], /, **given: Any) -> Options:
    check_names(given, names)
    return _check_values(**given)


# A training run calls with the same options every step.
_remembered = functools.lru_cache(maxsize=256, typed=True)(_check)


def _check_values(
    *,
    prior: None = None,
    kl: bool = False,
    reduction: str = "mean",
    impl: Implementation = "auto",
    inplace: bool = False,
    chunk_bytes: int | None = None,
    memory: Memory = "fast",
    group: Any = None,
    tail: Tail = "exact",
    tail_tolerance: float = 1.0,
    **row: Any,
) -> Options:
    del prior
    check_choice(reduction, "reduction", REDUCTIONS)
    check_choice(impl, "impl", IMPLEMENTATIONS)
    check_choice(memory, "memory", ("fast", "low"))
    check_choice(tail, "tail", ("exact", "compensated"))
    tail_tolerance = check_number(tail_tolerance, "tail_tolerance", 0.0, open_low=True)
    chunk_bytes = None if chunk_bytes is None else check_integer(chunk_bytes, "chunk_bytes", 1)
    check_group(group)
    inplace, kl = check_flag(inplace, "inplace"), check_flag(kl, "kl")
    options = Options(
        check_row_options(**row), kl, reduction, impl, inplace, chunk_bytes, memory, group, tail, tail_tolerance
    )
    if tail == "compensated":
        _check_compensated(options)
    return options


def _check_compensated(options: Options) -> None:
    """Raise ValueError for an option that goes without the gradients that are made in the forward, or has its own."""
    for name, got, is_possible, expected in (
        ("reduction", options.reduction, options.reduction != "none", "'mean' or 'sum'"),
        ("memory", options.memory, options.memory == "fast", "'fast'"),
        ("impl", options.impl, options.impl != "reference", "another one"),
        ("group", "one", options.group is None, "None"),
        ("entropy", options.row.entropy, options.row.entropy == 0, "0"),
    ):
        if not is_possible:
            got = got if name == "group" else repr(got)
            raise ValueError(f"{name}: got {got} with tail='compensated', expected {expected}")


# ---- signatures


def _defaults() -> dict[str, Any]:
    declared = (*_parameters(check_row_options), *_parameters(_check_values))
    return {each.name: each.default for each in declared if each.kind is each.KEYWORD_ONLY}


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


DEFAULTS = _defaults()
LOGITS = tuple(get_type_hints(LogitsOptions))
LINEAR = tuple(get_type_hints(LinearOptions))
_Function = TypeVar("_Function", bound=Callable[..., Any])


def takes(kind: type[Any], defaults: Mapping[str, Any] = DEFAULTS) -> Callable[[_Function], _Function]:
    """Let a function that takes ``**given`` of this kind show every option by name, with its default and its type."""
    types = get_type_hints(kind)
    shown = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=types[name])
        for name in types
    ]

    def declare(function: _Function) -> _Function:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        function.__signature__ = signature.replace(parameters=[*own, *shown])  # type: ignore[attr-defined]
        function.__annotations__ = {
            **{name: value for name, value in function.__annotations__.items() if name != "given"}, **types,
        }  # fmt: skip
        return function

    return declare
