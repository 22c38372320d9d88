from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from smoothloss.distillation import Teacher, TeacherCache, describe

WriteCache = Callable[..., TeacherCache]


def test_it_says_what_a_cache_holds(tmp_path: Path, write_cache: WriteCache) -> None:
    teacher = Teacher(torch.tensor([[1, 2], [3, 4]]), torch.full((2, 2), 0.45).log(), torch.full((2,), 0.1).log())
    write_cache(tmp_path / "cache", [teacher] * 3, 151_936)
    size = sum(file.stat().st_size for file in (tmp_path / "cache").iterdir())
    lines = dict(line.split(None, 1) for line in describe(tmp_path / "cache", verify=True).splitlines())
    assert lines == {
        "cache": str(tmp_path / "cache"),
        "state": "complete, verified",
        "vocabulary": "151,936 classes",
        "fingerprint": "text",
        "values": "ids of 17.33 bits, log-probabilities of 16 bits, with the rest",
        "sequences": "3 in 1 shards",
        "positions": "6",
        "entries": "12, 2.0 a position",
        "size": f"{size:,} bytes ({size / 6:.2f} a position, {size / 12:.2f} an entry)",
        "rest": "10 % of the mass on average, in the first 3 sequences",
    }


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"draws": 12}, "ids of 7 bits, counts of 12 draws"),
        ({"ids": "int32", "log_rest": False}, "ids of 32 bits, log-probabilities of 16 bits, without the rest"),
    ],
)
def test_empty_and_incomplete_caches(tmp_path: Path, options: dict[str, object], values: str) -> None:
    writer = TeacherCache.write(tmp_path / "cache", vocabulary_size=128, fingerprint="text", **options)  # type: ignore[arg-type]
    text = describe(tmp_path / "cache")
    writer.close()
    assert "state        not complete\n" in text and f"values       {values}\n" in text
    assert "sequences    0 in 0 shards" in text and "rest" not in text.split(values)[1]


def test_damage_is_found_when_asked_for(tmp_path: Path, write_cache: WriteCache) -> None:
    cache = write_cache(
        tmp_path / "cache", [Teacher(torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1))], 9, log_rest=False
    )
    shard = cache.path / cache.records[0].file
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert "verified" not in describe(cache.path)
    with pytest.raises(ValueError, match="is a damaged shard"):
        describe(cache.path, verify=True)
