"""What a cache holds, in a few lines."""

from __future__ import annotations

from pathlib import Path

from smoothloss.distillation.cache.index import NAME
from smoothloss.distillation.cache.packing import Packing
from smoothloss.distillation.cache.reader import TeacherCache

_LOOKED_AT = 64  # sequences


def describe(path: str | Path, *, verify: bool = False) -> str:
    """Return what a cache holds, for people to read; also of one that is not complete.

    Args:
        path: The cache's folder.
        verify: Read everything and compare it with what was written, instead of the sizes of the files alone.

    Raises:
        FileNotFoundError: There is no cache, or a shard is missing.
        ValueError: It is damaged, or of a newer version.
    """
    cache = TeacherCache(path, partial=True)
    if verify:
        cache.verify()
    settings, records = cache.settings, cache.records
    positions, entries = (sum(getattr(record, name) for record in records) for name in ("positions", "entries"))
    size = sum(record.bytes for record in records) + (cache.path / NAME).stat().st_size
    lines = {
        "cache": str(path),
        "state": ("complete" if cache.complete else "not complete") + (", verified" if verify else ""),
        "vocabulary": f"{settings.vocabulary_size:,} classes",
        "fingerprint": settings.fingerprint,
        "values": _values(cache),
        "sequences": f"{len(cache):,} in {len(records):,} shards",
        "positions": f"{positions:,}",
        "entries": f"{entries:,}" + (f", {entries / positions:.1f} a position" if positions else ""),
        "size": f"{size:,} bytes" + _ratios(size, positions, entries),
    }
    if settings.log_rest and positions:
        lines["rest"] = _rest(cache)
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {text}" for name, text in lines.items())


def _values(cache: TeacherCache) -> str:
    settings = cache.settings
    if settings.ids == "packed":
        packing = Packing.of(settings.vocabulary_size)
        ids = f"ids of {packing.bits / packing.digits:.4g} bits"
    else:
        ids = "ids of 32 bits"
    if settings.draws is not None:
        return f"{ids}, counts of {settings.draws} draws"
    return f"{ids}, log-probabilities of 16 bits, {'with' if settings.log_rest else 'without'} the rest"


def _ratios(size: int, positions: int, entries: int) -> str:
    ratios = [
        f"{size / count:.2f} {what}" for count, what in ((positions, "a position"), (entries, "an entry")) if count
    ]
    return f" ({', '.join(ratios)})" if ratios else ""


def _rest(cache: TeacherCache) -> str:
    """The mean of the mass beyond the entries, of the first sequences."""
    looked_at = range(min(len(cache), _LOOKED_AT))
    teachers = [cache[number] for number in looked_at]
    rest = [teacher.log_rest.double().exp() for teacher in teachers if teacher.log_rest is not None]
    count = sum(len(part) for part in rest)
    mean = sum(float(part.sum()) for part in rest) / max(count, 1)
    return f"{100 * mean:.3g} % of the mass on average, in the first {len(looked_at)} sequences"
