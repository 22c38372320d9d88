"""How the classes are split over processes, and what these tell each other of a row."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from smoothloss.ops.transforms import is_eager


class Split(NamedTuple):
    """How the classes are split: rank r has `sizes[r]` of them, after those of the ranks before it.

    Where it `scatters`, somebody else adds up the processes' parts of the gradient of the hidden states.
    """

    group: Any
    sizes: tuple[int, ...]
    rank: int
    scatters: bool = False

    @property
    def start(self) -> int:
        """The first class of this process."""
        return sum(self.sizes[: self.rank])

    @property
    def size(self) -> int:
        """Number of classes of this process."""
        return self.sizes[self.rank]

    @property
    def total(self) -> int:
        """V."""
        return sum(self.sizes)

    def own(self, indices: Tensor) -> Tensor:
        """Return indices counted from the start of this process's classes, -1 for those of others."""
        outside = (indices < self.start) | (indices >= self.start + self.size)
        return (indices - self.start).masked_fill(outside, -1)

    def add_up(self, d_inputs: Tensor) -> None:
        """Add the other processes' parts to this one's of the gradient of the hidden states."""
        if not self.scatters:
            dist.all_reduce(d_inputs, group=self.group)

    def owner(self, indices: Tensor) -> Tensor:
        """Return the rank that holds each index; any rank for one that names no class."""
        ends = torch.tensor(self.sizes, device=indices.device).cumsum(0)
        return torch.searchsorted(ends, indices.long(), right=True).clamp(max=len(self.sizes) - 1)


_known: dict[tuple[Any, int], tuple[int, ...]] = {}


def split_over(group: Any, size: int, device: torch.device) -> Split:
    """Return how the classes are split over a group of which this process holds `size` of them; a `Split` as it is.

    An accelerator is asked for the sizes once for each `size`, and afterwards only whether they are still the same.
    """
    if isinstance(group, Split):  # asked for already
        return group
    world, rank = dist.get_world_size(group), dist.get_rank(group)
    own = torch.tensor([size], dtype=torch.int64, device=device)
    sizes = own.new_empty(world)
    dist.all_gather(list(sizes.split(1)), own, group=group)
    if device.type == "cpu":
        return Split(group, tuple(sizes.tolist()), rank)
    known = _known.get((group, size))
    if known is None:
        known = _known[group, size] = tuple(sizes.tolist())
    elif device.type == "cuda":
        torch._assert_async(
            (sizes == torch.tensor(known, device=device)).all(),
            "group: the other processes' slices have other sizes than before, expected one split of the classes",
        )
    return Split(group, known, rank)


def check_eager(rows: Tensor) -> None:
    """Raise RuntimeError where collectives cannot be seen."""
    if not is_eager(rows):
        raise RuntimeError("group: got a compiled, traced or transformed call, expected plain eager code")


def gathered(summary: Tensor, indices: Tensor, weights: Tensor | None, split: Split) -> Tensor:
    """Return the ``(N, C)`` of each rank, ``(R, N, C)``, having seen that all speak of the same classes.

    Raises:
        ValueError: they do not.
    """
    own = torch.cat((summary, fingerprint(indices, weights).unsqueeze(-1)), -1)
    parts = own.new_empty(len(split.sizes), *own.shape)
    dist.all_gather(list(parts.unbind()), own, group=split.group)
    check_same(parts[..., -1], parts[:1, :, -1])
    return parts[..., :-1]


def fingerprint(indices: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return ``(N,)`` float64, a number that stands for the classes and weights of each row."""
    numbers = (indices if indices.dim() > 1 else indices.unsqueeze(-1)).flatten(1).double() + 2
    numbers = numbers * (torch.arange(numbers.shape[1], device=numbers.device) + 1)
    return (numbers if weights is None else (numbers * weights).where(weights != 0, 0.0)).sum(-1)


def check_same(one: Tensor, other: Tensor) -> None:
    """Compare what `fingerprint` made on different ranks; on CUDA without waiting for it.

    Raises:
        ValueError: they differ.
    """
    are_same = torch.isclose(one, other, rtol=1e-9, atol=0.0, equal_nan=True).all()
    said = (
        "group: got other targets on other processes, expected the same rows on each of them, which has a slice of the"
        " classes (outside of the forward of its unit, a weight that FSDP2 shards is no such slice)"
    )
    if one.device.type == "cuda":
        torch._assert_async(are_same, said)
    elif not are_same:
        raise ValueError(said)


def largest_share(largest: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge sums of exponentials, each relative to its own largest logit, of the ranks ``(R, N)``.

    Returns:
        The largest logit of all, ``sum exp(z - largest)``, and the share of each rank in it, with its logarithm (0
        where a rank has no probability at all).
    """
    centre = largest.where(total != 0, -torch.inf).amax(0)
    weighted = total * (largest - centre).where(total != 0, 0.0).exp()
    sum_exp = weighted.sum(0)
    share = weighted / sum_exp
    far = (largest - centre) + total.log() - sum_exp.log()  # a share may be nothing in any dtype
    return centre, sum_exp, share, torch.where(share > 0.5, share.log(), far).where(total != 0, 0.0)


def whole_of(saved: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest logit of rows, and ``sum exp(z - largest)``, from what the token statistics save of them."""
    listed, listed_sum, _, rest, rest_sum = saved.double().unbind(-1)
    return largest_share(torch.stack((listed, rest)), torch.stack((listed_sum, rest_sum)))[:2]
