"""What a teacher says about a position: its likeliest classes, their log-probabilities, and what is left."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from smoothloss._validation import check_device, check_local, check_shape, check_tensor

_CHUNK_BYTES = 1 << 26  # of a float32 copy of logits
# How far above one rounding may lift a probability, or the sum of a position's.
_SLACK = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True, eq=False)
class Teacher:
    """A distribution over V classes of which K are known one by one and the others by their sum.

    With q the teacher's distribution at a position, ``log_probs[k] = log q[indices[k]]`` and
    ``log_rest = log sum of q[v] over all v that are not among the indices``.

    Attributes:
        indices: ``(..., K)`` int64 or int32, the classes. A negative one is an empty slot, so K may differ from
            position to position; a position with nothing but empty slots has no teacher.
        log_probs: ``(..., K)``, a floating-point dtype. What stands in an empty slot is not read; what is made here has
            ``-inf`` there. A class may repeat: its probabilities add up.
        log_rest: ``(...)`` in the dtype of `log_probs`; ``-inf`` where nothing is left. None where it is not known.
        is_distinct: whether it is known that no class repeats, which saves a loss the look.
        is_full: whether it is known that no slot is empty, likewise.

    Raises:
        TypeError: A value is no tensor, or of another dtype.
        ValueError: Shapes or devices do not fit; on the CPU also for values that are no log-probabilities: NaN,
            above 0, or a position whose probabilities add up to more than 1 (by more than rounding explains).
    """

    indices: Tensor
    log_probs: Tensor
    log_rest: Tensor | None = None
    is_distinct: bool = field(default=False, init=False, repr=False)
    is_full: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        check_tensor(self.indices, "indices", floating=False)
        check_local(self.indices, "indices")
        check_tensor(self.log_probs, "log_probs", floating=True)
        check_local(self.log_probs, "log_probs")
        if self.log_probs.dtype not in _SLACK:
            raise TypeError(f"log_probs: got {self.log_probs.dtype}, expected one of {', '.join(map(str, _SLACK))}")
        if self.indices.dim() < 1:
            raise ValueError("indices: got shape (), expected (..., K)")
        check_shape(self.log_probs, "log_probs", tuple(self.indices.shape), "as indices")
        check_device(self.log_probs, "log_probs", self.indices, "indices")
        if self.log_rest is not None:
            check_tensor(self.log_rest, "log_rest", floating=True)
            check_local(self.log_rest, "log_rest")
            if self.log_rest.dtype != self.log_probs.dtype:
                raise TypeError(f"log_rest: got {self.log_rest.dtype}, expected {self.log_probs.dtype}, as log_probs")
            check_shape(self.log_rest, "log_rest", tuple(self.indices.shape[:-1]), "one number a position")
            check_device(self.log_rest, "log_rest", self.indices, "indices")
        if _has_values(self.log_probs) and _has_values(self.indices):
            self._check_values()
            self.__dict__.update(is_distinct=_is_distinct(self.indices), is_full=_is_full(self.indices))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Teacher:
        """Return the same teacher on a device."""
        rest = None if self.log_rest is None else self.log_rest.to(device, non_blocking=non_blocking)
        indices = self.indices.to(device, non_blocking=non_blocking)
        log_probs = self.log_probs.to(device, non_blocking=non_blocking)
        return unchecked(indices, log_probs, rest, is_distinct=self.is_distinct, is_full=self.is_full)

    @classmethod
    def from_logits(cls, logits: Tensor, k: int) -> Teacher:
        """Keep the K likeliest classes: ``log_softmax(logits).topk(k)``, and the log of what the others add up to.

        The rest is summed over the rest itself. ``log(1 - sum)`` would lose it: where the K classes hold all but 1e-8,
        a float32 sum cannot tell.

        Args:
            logits: ``(..., V)``. 16-bit and float32 logits are computed in float32, float64 ones in float64.
            k: K, between 1 and V. A class of logit ``-inf`` takes no slot.

        Returns:
            Indices ``(..., K)`` int64, the likeliest first; `log_probs` and `log_rest` float32.

        Raises:
            TypeError: `logits` is no floating-point tensor, or `k` no integer.
            ValueError: `k` is out of range; on the CPU also for logits of NaN or ``inf``, or all ``-inf``.
        """
        classes = _check_logits(logits)
        if not 1 <= check_integer(k, "k") <= classes:
            raise ValueError(f"k: got {k}, expected between 1 and {classes}, the classes of logits")
        return _by_chunks(logits, lambda rows: _top_k(rows, int(k)))

    @classmethod
    def sample(cls, logits: Tensor, draws: int, *, generator: torch.Generator | None = None) -> Teacher:
        """Draw classes from ``softmax(logits)``: each of those drawn has its share of the draws for a probability.

        The expected value of the shares is the teacher's whole distribution, so that cross-entropy against them has the
        expected value and gradient of cross-entropy against all V classes, whose tail a top-k would cut off. Nothing is
        left beside them: `log_rest` is ``-inf``.

        Args:
            logits: ``(..., V)``.
            draws: n >= 1 draws with replacement at each position.
            generator: Random numbers of the device of `logits`.

        Returns:
            Indices ``(..., n)`` int64 in ascending order, then empty slots; `log_probs` = log(count / n), float32.

        Raises:
            TypeError: `logits` is no floating-point tensor, or `draws` no integer.
            ValueError: ``draws < 1``; on the CPU also for logits of NaN or ``inf``, or all ``-inf``.
        Source: Anshumann et al. 2025, "Sparse Logit Sampling" (random sampling distillation).
        """
        _check_logits(logits)
        if check_integer(draws, "draws") < 1:
            raise ValueError(f"draws: got {draws}, expected at least 1")
        return _by_chunks(logits, lambda rows: _draw(rows, int(draws), generator))

    def _check_values(self) -> None:
        slack = _SLACK[self.log_probs.dtype]
        known = self.log_probs.detach().masked_fill(self.indices < 0, -torch.inf)
        if known.numel() and not known.max() <= slack:  # NaN is not
            raise ValueError(f"log_probs: got {float(known.max())}, expected log-probabilities, at most 0")
        total = known.float().exp().sum(-1)
        if self.log_rest is not None:
            if self.log_rest.numel() and not self.log_rest.max() <= slack:
                raise ValueError(f"log_rest: got {float(self.log_rest.max())}, expected log-probabilities, at most 0")
            occupied = (self.indices >= 0).any(-1)  # elsewhere there is no teacher, and nothing to add up
            total = total + self.log_rest.detach().float().exp() * occupied
        if total.numel() and not total.max() <= 1 + slack:
            raise ValueError(f"log_probs: got probabilities that add up to {float(total.max())}, expected at most 1")


def unchecked(
    indices: Tensor, log_probs: Tensor, log_rest: Tensor | None, *, is_distinct: bool = False, is_full: bool = False
) -> Teacher:
    """A teacher whose parts are right by construction."""
    teacher = object.__new__(Teacher)
    teacher.__dict__.update(
        indices=indices, log_probs=log_probs, log_rest=log_rest, is_distinct=is_distinct, is_full=is_full
    )
    return teacher


def _is_distinct(indices: Tensor) -> bool:
    """Whether no class repeats at any position; on the CPU, where looking waits for nobody."""
    ordered = indices.sort(-1).values
    return not ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any()


def _is_full(indices: Tensor) -> bool:
    """Whether there are slots, and none of them is empty; on the CPU, as above."""
    return indices.shape[-1] > 0 and bool((indices >= 0).all())


def _has_values(tensor: Tensor) -> bool:
    """Whether values can be looked at here without waiting for a device: not in compiled code, nor under torch.func."""
    plain = type(tensor) is Tensor and tensor.device.type == "cpu" and not torch.compiler.is_compiling()
    return plain and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _check_logits(logits: Tensor) -> int:
    check_tensor(logits, "logits", floating=True)
    if logits.dim() < 1 or logits.shape[-1] < 1:
        raise ValueError(f"logits: got shape {tuple(logits.shape)}, expected (..., V) with V >= 1")
    return logits.shape[-1]


def check_integer(value: object, name: str) -> int:
    """Return a whole number, of numpy or torch too, as an int, or raise TypeError."""
    if isinstance(value, bool):
        raise TypeError(f"{name}: got bool, expected an integer")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: got {type(value).__name__}, expected an integer") from None


def _by_chunks(logits: Tensor, function: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]) -> Teacher:
    """Apply a function to the rows of logits, few at a time: its float32 copies may be larger than the logits.

    No class comes twice in what it returns.
    """
    classes, positions = logits.shape[-1], logits.shape[:-1]
    rows = logits.detach().reshape(positions.numel(), classes)
    parts = [function(chunk) for chunk in rows.split(max(1, _CHUNK_BYTES // (4 * classes)))]
    indices, log_probs, log_rest = (torch.cat(part) for part in zip(*parts, strict=True))
    width = indices.shape[-1]
    teacher = Teacher(indices.view(*positions, width), log_probs.view(*positions, width), log_rest.view(positions))
    return unchecked(teacher.indices, teacher.log_probs, teacher.log_rest, is_distinct=True, is_full=teacher.is_full)


def _centred(rows: Tensor) -> Tensor:
    """Logits less the largest of their row. NaN throughout where that is infinite or NaN, which the caller finds."""
    rows = rows if rows.dtype == torch.float64 else rows.float()
    return rows - rows.amax(-1, keepdim=True)


def _top_k(rows: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    rows = _centred(rows)
    log_sum = rows.exp().sum(-1, keepdim=True).log()
    values, indices = rows.topk(k)
    log_rest = rows.scatter(-1, indices, -torch.inf).logsumexp(-1) - log_sum[:, 0]
    indices = indices.masked_fill(values == -torch.inf, -1)
    return indices, (values - log_sum).float(), log_rest.clamp(max=0).float()


def _draw(rows: Tensor, draws: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    # In float64: a float32 running sum over a large vocabulary would swallow the tail.
    below = _centred(rows).double().exp().cumsum(-1)
    total = below[:, -1:]
    number = torch.rand((len(rows), draws), dtype=torch.float64, device=rows.device, generator=generator)
    number = torch.minimum(number * total, torch.nextafter(total, torch.zeros_like(total)))
    drawn = torch.searchsorted(below, number, right=True).sort(-1).values
    is_new = torch.ones_like(drawn)
    is_new[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    slot = is_new.cumsum(-1) - 1
    indices = torch.full_like(drawn, -1).scatter(-1, slot, drawn)
    counts = torch.zeros_like(number).scatter_add(-1, slot, torch.ones_like(number))
    log_probs = (counts / draws).log().masked_fill(~total.isfinite(), torch.nan).float()
    return indices, log_probs, torch.full_like(log_probs[:, 0], -torch.inf)
