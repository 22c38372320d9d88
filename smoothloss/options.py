"""The options of a call: named once, checked once, documented once.

All losses share them, keyword-only:

* ``label_smoothing`` eps: the share of each target's mass that is spread evenly over all V classes (torch's meaning).
* ``entropy`` gamma: subtracts ``gamma * H(p)``, the entropy over all V classes (Pereyra et al. 2017).
* ``z_loss``: adds ``z_loss * logsumexp(z) ** 2``.
* ``logit_scale``, ``softcap``: ``z = softcap * tanh(logit_scale * input / softcap)``; None for no softcap.
* ``kl``: subtracts the target's own entropy, so that the value is ``KL(q || p)``; the gradient stays.
* ``reduction``: "mean" (over the positions whose target has mass; nan when there is none), "sum", "none".
* ``impl``: "reference", "native" (C++, or CUDA C++) or "triton"; a RuntimeError says why where that cannot run. "auto"
  takes the first that can: C++ on the CPU, CUDA C++ and then Triton on NVIDIA GPUs, else the reference; and the
  reference under ``torch.func.vmap`` and in forward mode.

On logits alone:

* ``inplace``: the backward may write the gradient over `input`, which must not be used afterwards. A permission, not a
  command: it has no effect under ``torch.compile``, on the reference, or where `input` does not fill its own memory
  (slices, expanded and transposed tensors).

On hidden states alone:

* ``chunk_bytes``: size of the scratch for logits and their gradients in bytes; None for 256 MiB on the CPU and 1.5 GiB
  on CUDA.
* ``memory``: "low" computes the logits again in the backward, a slice of the vocabulary at a time: a fourth GEMM, and
  no sum of gradients of the size of `linear_weight` beside the gradient itself. So does ``reduction="none"`` always.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import torch

from smoothloss._validation import REDUCTIONS, check_choice, check_flag, check_integer, check_number
from smoothloss.backends import IMPLEMENTATIONS, Implementation
from smoothloss.backends.common import RowOptions

Memory = Literal["fast", "low"]


class Options(NamedTuple):
    """The checked options of a call on logits or hidden states."""

    row: RowOptions
    kl: bool
    reduction: str
    impl: Implementation
    inplace: bool = False
    chunk_bytes: int | None = None
    memory: Memory = "fast"


def check(
    label_smoothing: float, entropy: float, z_loss: float, logit_scale: float, softcap: float | None, kl: bool,
    reduction: str, impl: Implementation, inplace: bool = False, chunk_bytes: int | None = None,
    memory: Memory = "fast",
) -> Options:  # fmt: skip
    """Return the options.

    Raises:
        TypeError, ValueError: naming the option, what was got and what was expected.
    """
    given = (label_smoothing, entropy, z_loss, logit_scale, softcap, kl, reduction, impl, inplace, chunk_bytes, memory)
    if torch.compiler.is_compiling():
        return _check(*given)
    try:
        return _remembered(*given)
    except TypeError:  # something that cannot be remembered, which is something that is wrong
        return _check(*given)


def _check(
    label_smoothing: Any, entropy: Any, z_loss: Any, logit_scale: Any, softcap: Any, kl: Any,
    reduction: Any, impl: Any, inplace: Any, chunk_bytes: Any, memory: Any,
) -> Options:  # fmt: skip
    check_choice(reduction, "reduction", REDUCTIONS)
    check_choice(impl, "impl", IMPLEMENTATIONS)
    check_choice(memory, "memory", ("fast", "low"))
    row = RowOptions(
        check_number(label_smoothing, "label_smoothing", 0.0, 1.0),
        check_number(entropy, "entropy"),
        check_number(z_loss, "z_loss"),
        check_number(logit_scale, "logit_scale", 0.0, open_low=True),
        0.0 if softcap is None else check_number(softcap, "softcap", 0.0, open_low=True),
    )
    chunk_bytes = None if chunk_bytes is None else check_integer(chunk_bytes, "chunk_bytes", 1)
    return Options(row, check_flag(kl, "kl"), reduction, impl, check_flag(inplace, "inplace"), chunk_bytes, memory)


# A training run calls with the same options every step.
_remembered = functools.lru_cache(maxsize=256, typed=True)(_check)
