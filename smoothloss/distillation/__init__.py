"""Learning from a teacher: what it says of each position, and how that is kept on disk."""

from smoothloss.distillation.cache import (
    TeacherCache,
    TeacherCacheWriter,
    describe,
    fingerprint,
    join,
    reshard,
    write_from,
)
from smoothloss.distillation.divergences import linear_loss, loss
from smoothloss.distillation.teacher import Teacher

__all__ = [
    "Teacher",
    "TeacherCache",
    "TeacherCacheWriter",
    "describe",
    "fingerprint",
    "join",
    "linear_loss",
    "loss",
    "reshard",
    "write_from",
]
