"""The implementations of the primitive, one folder each, and which of them runs where.

A new implementation is a folder here, which holds what `Backend` (or `Kernels`) asks for, a line in `_MODULES`, and its
place in `_PREFERENCE`. Implementations import nothing from each other.
"""

from __future__ import annotations

import functools
import importlib
from typing import Literal, Protocol, cast, get_args

import torch
from torch import Tensor

from smoothloss import _graphs as graphs
from smoothloss.backends.common import (
    Candidates,
    Forward,
    RowOptions,
    RowTarget,
    StatisticsGradients,
    TableRows,
    TokenStatistics,
)

Implementation = Literal["auto", "reference", "native", "triton"]
IMPLEMENTATIONS: tuple[str, ...] = get_args(Implementation)

_MODULES = {
    "reference": "smoothloss.backends.reference",
    "native": "smoothloss.backends.native",
    "triton": "smoothloss.backends.triton",
}
# On an H100 the CUDA C++ kernels took 0.74 to 0.96 of the time of Triton's on given logits, 1.07 in the smallest case
# (benchmarks/results/logits_h100.json), and half of it on the linear op's float32 logits, which no cache holds: they
# read them once, Triton's twice (benchmarks/NOTES.md).
_PREFERENCE = {"cpu": ("native", "reference"), "cuda": ("native", "triton", "reference")}


class Backend(Protocol):
    """What every implementation offers. Rows are checked by the caller; logits have stride 1 along V."""

    def unavailable(self, device_type: str, dtype: torch.dtype) -> str | None:
        """Return why logits of this device type and dtype cannot be processed, or None when they can."""

    def forward(self, logits: Tensor, target: RowTarget, options: RowOptions, reduction: str) -> Forward:
        """Return the losses of logits ``(N, V)``, reduced as "none", "sum" or "mean" says.

        Raises:
            OutOfRange: an index is out of range, where that can be seen without waiting for a device.
        """

    def reduce(self, losses: Tensor, mass: Tensor, reduction: str) -> tuple[Tensor, Tensor]:
        """Return "sum" or "mean" of losses ``(N,)`` and the factor that it gives the gradient.

        The mean is over the rows whose mass is not 0; where there are none it is nan, and the factor 1.
        """

    def token_statistics(
        self, logits: Tensor, indices: Tensor, options: RowOptions
    ) -> tuple[TokenStatistics, Tensor | None]:
        """Return the statistics of logits ``(N, V)`` at indices ``(N, S)``, and what their backward is to know.

        The accumulator dtype throughout. Of the options logit_scale and softcap count; argmax is that of the logits as
        they came in. A negative index is an empty slot. The rest is summed over itself, relative to its own largest
        logit, so that no rest is too small.

        The second result is ``(N, SAVED_STATISTICS)``: of the classes that slots name the largest logit z and
        ``sum exp(z - largest)``, -inf and 0 where there is none; the entropy; largest and sum of the rest. None where
        autograd sees through the forward.

        Raises:
            OutOfRange: an index is out of range, where that can be seen without waiting for a device.
        """

    def smoothed_target(
        self, candidates: Candidates, table: TableRows | None, token_alpha: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return indices, weights and uniform mass of the target that `reference.smoothed_target` defines."""


class Kernels(Backend, Protocol):
    """An implementation that autograd does not see through: it has backwards of its own, differentiable once."""

    def backward(
        self, grad: Tensor, scale: Tensor | None, logits: Tensor, statistics: Tensor, target: RowTarget,
        options: RowOptions, out: Tensor, mass: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Write ``scale grad_n dloss_n / dlogits`` to `out`, which may be `logits` itself; rows without mass get 0.

        Args:
            grad: ``(N,)`` or one element.
            scale: one element, or None: 1.
            logits: ``(N, V)``.
            statistics: what the forward returned.
            target: the target.
            options: as in the forward.
            out: ``(N, V)``, stride 1 along V.
            mass: ``(N,)`` takes the place of the target's as the coefficient of p, and where it is 0 only the target's
                own entries and uniform mass are written; neither label smoothing nor dense rows go with it.
        """

    def forward_backward(
        self, logits: Tensor, target: RowTarget, options: RowOptions, out: Tensor, reduction: str
    ) -> tuple[Forward, bool]:
        """Return the forward without statistics, but with the mass of each row, and write the gradient of each loss.

        `out` may be `logits` itself. The second result is False where it is known that no row is ignored.
        """

    def token_statistics_backward(
        self, grads: StatisticsGradients, logits: Tensor, indices: Tensor, saved: Tensor, options: RowOptions,
        out: Tensor,
    ) -> None:  # fmt: skip
        """Write the gradient of the logits to `out` ``(N, V)``, which may be `logits` itself.

        ::

            dz_v = p_v (g_lse - sum_s g_s - g_rest + [v not in I] g_rest / rest - g_H (log p_v + H))
                   + sum_s g_s [v = i_s];   dlogits = logit_scale (1 - (z / softcap)^2) dz

        A row whose gradients are all zero gets 0, whatever its logits are.
        """

    def jensen_shannon(
        self, logits: Tensor, teacher: RowTarget, beta: float, options: RowOptions
    ) -> tuple[Tensor, Tensor]:
        """Return the divergence of each row of logits ``(N, V)``, and what its backward is to know.

        It is ``beta KL(a || m) + (1 - beta) KL(p || m)``, ``m = beta a + (1 - beta) p``, which
        `distillation._jensen_shannon.definition` defines. Of the options logit_scale and softcap count.

        Args:
            logits: as everywhere.
            teacher: ``log a``: that of each class in a slot as `weights`, each class once, and that of every other
                class as `uniform`. A row without a filled slot has no teacher: loss 0, and its logits may be anything.
            beta: strictly between 0 and 1.
            options: of the row.

        The second result is ``(N, SAVED_JENSEN_SHANNON)``: largest logit z, ``sum exp(z - largest)``, ``KL(p || m)``.

        Raises:
            OutOfRange: an index is out of range, where that can be seen without waiting for a device.
        """

    def jensen_shannon_backward(
        self, grad: Tensor, logits: Tensor, teacher: RowTarget, saved: Tensor, beta: float, options: RowOptions,
        out: Tensor,
    ) -> None:  # fmt: skip
        """Write ``grad_n (1 - beta) p_v (log p_v - log m_v - KL(p || m))`` to `out`, which may be `logits` itself.

        Times what logit_scale and softcap add, as in `token_statistics_backward`. A row whose gradient is 0, or that
        has no teacher, gets 0, whatever its logits are.
        """

    def scaled_copy(self, values: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``(values * factor).to(dtype)``, rounded once, of contiguous values in the accumulator dtype."""


_loaded: dict[str, Backend] = {}  # no functools.cache, which torch.compile does not like


def get(name: str) -> Backend:
    """Return the implementation `name`, imported on first use."""
    if name not in _loaded:
        _loaded[name] = cast(Backend, importlib.import_module(_MODULES[name]))
    return _loaded[name]


def kernels(name: str) -> Kernels:
    """Return an implementation that has backwards of its own, which is every one but the reference."""
    return get(name)  # type: ignore[return-value]


@functools.cache
def unavailable(name: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Return why the implementation `name` cannot run there, or None when it can."""
    try:
        backend = get(name)
    except ImportError as error:
        return f"{_MODULES[name]} cannot be imported: {error}"
    return backend.unavailable(device_type, dtype)


def choose(impl: str, device_type: str, dtype: torch.dtype) -> str:
    """Return the implementation to run: "reference", "native" or "triton".

    Raises:
        ValueError: `impl` is not a known name.
        RuntimeError: `impl` names an implementation that cannot run on this device and dtype, with the reason.
    """
    return (
        _choose_constant(impl, device_type, dtype)
        if torch.compiler.is_compiling()
        else _choose(impl, device_type, dtype)
    )


@functools.lru_cache
def _choose(impl: str, device_type: str, dtype: torch.dtype) -> str:
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl: got {impl!r}, expected one of {', '.join(map(repr, IMPLEMENTATIONS))}")
    if impl != "auto":
        reason = unavailable(impl, device_type, dtype)
        if reason is not None:
            raise RuntimeError(f"impl={impl!r} cannot run here: {reason}")
        return impl
    candidates = _PREFERENCE.get(device_type, ("reference",))
    return next(name for name in candidates if unavailable(name, device_type, dtype) is None)


@graphs.constant
def _choose_constant(impl: str, device_type: str, dtype: torch.dtype) -> str:
    return _choose(impl, device_type, dtype)
