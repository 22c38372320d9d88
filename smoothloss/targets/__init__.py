"""What a loss wants each position to predict, as a value: constructors, mixing, and what can be asked of it.

A new loss is a new target. ``F.cross_entropy(input, target)`` takes class numbers, or a `Target`::

    from smoothloss import targets

    target = 0.5 * targets.labels(y) + 0.5 * targets.top_k(indices, log_probs)

Source of the equations: Elbayad, Besacier, Verbeek, ACL 2018 (arXiv 1805.05062).
"""

from smoothloss.targets.constructors import entries, labels, lazy_sequence, sequence, token, top_k
from smoothloss.targets.target import Target

__all__ = ["Target", "entries", "labels", "lazy_sequence", "sequence", "token", "top_k"]

lazy_sequence_target = lazy_sequence  # the name that it had before a target was a value
