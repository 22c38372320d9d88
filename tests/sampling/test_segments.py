"""Draws from rows of segments in C++ are those of the torch code."""

import pytest
import torch

from smoothloss import SimilarityTable
from smoothloss import _compiled as compiled
from smoothloss.sampling import HammingSampler, SimilarPool
from smoothloss.sampling.segments import SegmentRows, SegmentSubstitutes

pytestmark = pytest.mark.skipif(compiled.load("_C")[0] is None, reason=f"no C++ here: {compiled.load('_C')[1]}")


def make_substitutes(size, k, tail, shape):
    generator = torch.Generator().manual_seed(size)
    vectors = torch.randn(size, 8, generator=generator)
    table = SimilarityTable.from_embeddings(vectors, k=k, tau=0.3, tail=tail, exclude=(0, 1))
    allowed = torch.rand(size, generator=generator) < 0.9
    tokens = torch.randint(0, size, shape, generator=generator)
    return SegmentSubstitutes(SegmentRows.of(table, allowed), tokens, torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("tail", ["uniform", "renormalize"])
@pytest.mark.parametrize(("size", "k"), [(3, 1), (50, 7), (2000, 64)])
@pytest.mark.parametrize("shape", [(1, 1), (7, 9), (0, 4), (64, 150)])
def test_native_draws_are_those_of_torch(tail, size, k, shape):
    substitutes = make_substitutes(size, k, tail, shape)
    number = torch.rand(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    number = number * substitutes.count * (number < 0.5)
    for numbers in (number, number.transpose(0, 0).flip(0), number.permute(2, 1, 0).contiguous().permute(2, 1, 0)):
        native, torches = substitutes._draw_native(numbers), substitutes._draw_torch(numbers)
        assert torch.equal(native[0], torches[0])
        assert torch.equal(native[1].nan_to_num(), torches[1].nan_to_num())
        assert native[0].shape == native[1].shape == numbers.shape


def test_samples_are_the_same_without_the_binaries(monkeypatch):
    table = SimilarityTable.from_embeddings(torch.randn(40, 8), k=5, tau=0.3)
    sampler, target = HammingSampler(1.0, SimilarPool(table)), torch.randint(0, 40, (6, 12))
    native = sampler(target, None, 5, torch.Generator().manual_seed(0))
    monkeypatch.setattr(compiled, "load", lambda name: (None, "not here"))
    for one, other in zip(native, sampler(target, None, 5, torch.Generator().manual_seed(0)), strict=True):
        assert torch.equal(one, other)


def test_the_binding_refuses_what_it_can_see():
    substitutes = make_substitutes(50, 7, "uniform", (4, 5))
    rows, number = substitutes.rows.arguments(), torch.rand(2, 20, dtype=torch.float64)
    drawn, log_ratio = torch.empty(2, 20, dtype=torch.int64), torch.empty(2, 20, dtype=torch.float64)

    def draw(tokens=substitutes.tokens, rows=rows, samples=2, positions=20, threads=1, out=None):
        inputs = (number.data_ptr(), tokens.data_ptr(), rows, samples, positions)
        out = drawn.data_ptr() if out is None else out
        compiled.require("_C").draw_segments(*inputs, out, log_ratio.data_ptr(), threads, "")

    draw()
    with pytest.raises(IndexError, match="tokens: got 50, expected 0 <= token < 50"):
        draw(tokens=substitutes.tokens.clone().fill_(50))
    with pytest.raises(ValueError, match=r"rows: got the shape \(0, 17\)"):
        draw(rows=(*rows[:3], 0, 17))
    with pytest.raises(ValueError, match="rows: got a null pointer"):
        draw(rows=(0, *rows[1:]))
    with pytest.raises(ValueError, match="number: got a negative size"):
        draw(samples=-1)
    with pytest.raises(ValueError, match="number: got a null pointer"):
        draw(out=0)
    with pytest.raises(ValueError, match="threads: got 0"):
        draw(threads=0)
