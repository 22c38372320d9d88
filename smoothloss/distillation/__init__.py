"""Learning from a teacher: what it says of each position, losses against that, and how it is kept on disk."""

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
from smoothloss.distillation.modules import DistillationLoss, LinearDistillationLoss
from smoothloss.distillation.teacher import Teacher

__all__ = [
    "DistillationLoss",
    "LinearDistillationLoss",
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
