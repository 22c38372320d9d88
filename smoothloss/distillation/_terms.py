"""What two distributions differ by, class by class, from their log-probabilities.

All three take ``log_q`` of the teacher, a constant, and ``log_p`` of the student, ``(..., C)``, and add up over the
classes. ``-inf`` is a class that is ruled out, on either side. Only differences of logarithms are taken, never the
logarithm of a difference; ``0 log 0 = 0`` in values and gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Below every log-probability whose exponential is not 0, and a number that can be computed with.
_NOTHING = -1e4


def forward_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return ``sum q (log q - log p)``: ``inf`` where p is 0 and q is not."""
    q = log_q.exp()
    return (q * (log_q - log_p)).where(q > 0, 0.0).sum(-1)


def reverse_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return ``sum p (log p - log q)``: ``inf`` where q is 0 and p is not."""
    log_p, p = _without_zeros(log_p)
    return (p * (log_p - log_q)).where(p > 0, 0.0).sum(-1)


def cross_entropy(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return ``-sum p log q``: ``inf`` where q is 0 and p is not."""
    _, p = _without_zeros(log_p)
    return -(p * log_q.where(p > 0, 0.0)).sum(-1)


def jensen_shannon(log_q: Tensor, log_p: Tensor, beta: float) -> Tensor:
    """Return ``sum beta q (log q - log m) + (1 - beta) p (log p - log m)``, ``m = beta q + (1 - beta) p``.

    With ``d = log p - log q`` ::

        log m - log q = log(beta + (1 - beta) e^d) = log1p((1 - beta) expm1(d))      where d <= 0
                                                   = d + log1p(beta expm1(-d))       where d > 0

    which neither overflows nor, where p and q are close, cancels. The derivative by log p is
    ``(1 - beta) p (log p - log m)``. At beta = 0 and 1, where all of this is 0, it is forward and reverse KL: the
    limits of what it is to beta, and to 1 - beta.
    """
    if beta in (0.0, 1.0):
        return reverse_kl(log_q, log_p) if beta else forward_kl(log_q, log_p)
    log_q, log_p = log_q.clamp(min=_NOTHING), log_p.clamp(min=_NOTHING)
    d = log_p - log_q
    above = torch.relu(d)  # whose derivative at 0 is 0, and that of the other part 1: there too it is one or the other
    below = d - above
    log_factor = torch.log1p((1 - beta) * torch.expm1(below)) + torch.log1p(beta * torch.expm1(-above))
    from_q, from_p = log_factor + above, log_factor - below
    return -(beta * log_q.exp() * from_q + (1 - beta) * log_p.exp() * from_p).sum(-1)


def negative_entropy(p: Tensor, log_p: Tensor) -> Tensor:
    """Return ``sum p log p``."""
    return (p * log_p.clamp(min=_NOTHING)).sum(-1)


def _without_zeros(log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-probabilities, 0 for those of probability 0 and without a gradient there, and the probabilities."""
    is_zero = log_p.detach().exp() == 0
    log_p = log_p.masked_fill(is_zero, 0.0)
    return log_p, log_p.exp().masked_fill(is_zero, 0.0)
