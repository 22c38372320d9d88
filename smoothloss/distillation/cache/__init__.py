"""Teachers on disk: written once, read in any order. The format is described in :mod:`.index` and :mod:`.shard`."""

from smoothloss.distillation.cache.describe import describe
from smoothloss.distillation.cache.fill import join, reshard, write_from
from smoothloss.distillation.cache.fingerprint import fingerprint
from smoothloss.distillation.cache.reader import TeacherCache
from smoothloss.distillation.cache.writer import TeacherCacheWriter

__all__ = ["TeacherCache", "TeacherCacheWriter", "describe", "fingerprint", "join", "reshard", "write_from"]
