"""The C++, CUDA and Triton kernels draw the edit scripts that the definition in torch draws, bit for bit.

The CUDA kernels run on the host, see `backends/test_cuda_build.py`. Triton's run in its interpreter, in a process of
its own: ``TRITON_INTERPRET=1`` counts when triton is imported. `make test` starts one.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from smoothloss import _compiled as compiled
from smoothloss.sampling import (
    BatchPool,
    EditSampler,
    ReferencePool,
    UniformPool,
    VocabularyPool,
    _edit_native,
    _edit_reference,
    _hamming_native,
)
from smoothloss.sampling.samples import Samples, Sentences

IN_INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1"
HAS_NATIVE = compiled.load("_C")[0] is not None
ISAS = list(compiled.require("_C").available_isas()) if HAS_NATIVE else []
POOLS = ("vocabulary", "batch", "references")
GUARD = 5
DRAWS = {"native": _edit_native.draw, "reference": _edit_reference.draw}


class Case(NamedTuple):
    """The arguments of a draw."""

    sampler: EditSampler
    target: Tensor
    lengths: Tensor | None
    num_samples: int
    seed: int
    references: Tensor

    def draw(self, impl: str) -> Samples:
        """With log-probabilities as they are computed, in float64."""
        sentences = Sentences(self.target, self.lengths, self.references, self.sampler.pool)
        seed = torch.tensor([self.seed])
        return DRAWS[impl](sentences, self.num_samples, seed, self.sampler._settings, torch.float64)


@functools.cache
def make_pool(name: str, size: int, exclude: tuple[int, ...]) -> UniformPool:
    pools = {"batch": BatchPool, "references": ReferencePool}
    return pools[name](exclude) if name in pools else VocabularyPool(size, exclude)


@st.composite
def samplers(draw: st.DrawFn, size: int, insertions: tuple[int, ...]) -> EditSampler:
    exclude = draw(st.sampled_from([(), (0,), tuple(range(min(3, size)))]))
    return EditSampler(
        draw(st.sampled_from([1e-20, 1e-3, 0.03, 0.12, 0.3, 1.0, 1e6])),
        make_pool(draw(st.sampled_from(POOLS)), size, exclude),
        max_insertions=draw(st.sampled_from(insertions)),
        pad=draw(st.sampled_from([-100, 0, 2**15, -(2**40)])),
    )


@st.composite
def cases(draw: st.DrawFn, largest: int = 70, insertions: tuple[int, ...] = (1, 2, 4, 7, 40)) -> Case:
    size = draw(st.sampled_from([1, 2, 3, 7, 40, 300]))
    widths = [width for width in (0, 1, 2, 5, 16, 33, 70) if width <= largest]
    batch, width = draw(st.integers(0, 4)), draw(st.sampled_from(widths))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtypes = st.sampled_from([torch.int16, torch.int32, torch.int64])
    # Negative ids, and for a pool that is a vocabulary also some out of it.
    target = torch.randint(-2, size + 1, (batch, width), generator=random).to(draw(dtypes))
    lengths = torch.randint(0, width + 1, (batch,), generator=random) if draw(st.booleans()) else None
    references = torch.randint(-2, size + 2, (batch, draw(st.integers(0, 12))), generator=random).to(draw(dtypes))
    seed = draw(st.integers(-(2**63), 2**63 - 1))
    return Case(draw(samplers(size, insertions)), target, lengths, draw(st.integers(1, 4)), seed, references)


@pytest.fixture(params=[*(f"native {isa}" for isa in ISAS), "emulated CUDA"])
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Let the kernels of this name draw for CPU tensors."""
    if IN_INTERPRETER:
        pytest.skip("these are tried in the process without Triton's interpreter")
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "emulated CUDA":
            emulate(patch, request.getfixturevalue("emulated_cuda"))
        else:
            patch.setenv("SMOOTHLOSS_ISA", request.param.split()[1])
        yield request.param


@pytest.fixture
def interpreted() -> None:
    """Have Triton's kernels among what draws."""
    if not IN_INTERPRETER:
        pytest.skip("needs a process with TRITON_INTERPRET=1")
    pytest.importorskip("triton", reason="triton is not installed")
    from smoothloss.sampling import _edit_triton

    DRAWS["triton"] = _edit_triton.draw


def emulate(patch: pytest.MonkeyPatch, module: ModuleType) -> None:
    """Draw by the CUDA kernels, with scratch memory that holds anything but zeros."""

    def call(name: str, like: Tensor, *arguments: Any) -> None:
        (_, _, batch, width, _), kernel_pool, samples, max_insertions = (
            arguments[0], arguments[2], arguments[5][-1], arguments[6][0],
        )  # fmt: skip
        words = _hamming_native.scratch_words(kernel_pool[0], batch, width, kernel_pool[3])
        words += _edit_native.scratch_words(batch, width, samples, max_insertions)
        scratch = torch.full((words + GUARD,), -7)
        getattr(module, name)(*arguments, scratch.data_ptr(), words, 0, 0)
        assert (scratch[words:] == -7).all()
        if words:
            with pytest.raises(ValueError, match="scratch: got"):
                getattr(module, name)(*arguments, scratch.data_ptr(), words - 1, 0, 0)

    patch.setattr(compiled, "call", call)


def assert_equal(actual: Samples, expected: Samples) -> None:
    assert actual.tokens.dtype == expected.tokens.dtype
    for name in ("tokens", "distance", "lengths"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name
    torch.testing.assert_close(actual.log_prob, expected.log_prob, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("kernels")
@given(case=cases())
@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
def test_the_same_samples_as_the_definition(case: Case) -> None:
    assert_equal(case.draw("native"), case.draw("reference"))


@pytest.mark.usefixtures("interpreted")
@given(case=cases(largest=5, insertions=(1, 2, 4)))
@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
def test_the_same_samples_in_triton(case: Case) -> None:
    assert_equal(case.draw("triton"), case.draw("reference"))


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("tau", [0.02, 0.12, 1e4])
def test_weights_that_leave_the_range_of_float64_in_triton(tau: float) -> None:
    """By many edits and a large pool, in both directions; 3 of 40 words of the second sentence are there."""
    target = torch.randint(0, 100_000, (2, 40), generator=torch.Generator().manual_seed(1))
    case = Case(
        EditSampler(tau, VocabularyPool(100_000), max_insertions=2), target, torch.tensor([40, 3]), 2, 7, target
    )
    assert_equal(case.draw("triton"), case.draw("reference"))


@pytest.mark.skipif(not IN_INTERPRETER, reason="needs a process with TRITON_INTERPRET=1")
def test_triton_takes_sentences_of_one_block() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    sampler = EditSampler(1.0, BatchPool(), impl="triton")
    assert sampler(torch.zeros(1, 4, dtype=torch.int64), None, 1).tokens.shape == (1, 1, 8)
    with pytest.raises(RuntimeError, match=r"impl='triton' cannot run here: .*at most 1024 tokens, not 1025"):
        sampler(torch.zeros(1, 1025, dtype=torch.int64), None, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("kernels")
@given(case=cases(largest=16), more=st.integers(1, 40))
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
def test_samples_do_not_depend_on_the_padding(case: Case, more: int) -> None:
    batch, width = case.target.shape
    lengths = torch.full((batch,), width) if case.lengths is None else case.lengths
    case = case._replace(lengths=lengths)
    # Whatever stands there: tokens of the pool, so that it would show if they took part.
    filler = case.target.abs()[:, :1].expand(-1, more) if width else case.target.new_zeros(batch, more)
    padded = case._replace(
        target=torch.cat([case.target, filler], dim=1),
        references=torch.nn.functional.pad(case.references, (0, more), value=-1),
    )
    for impl in ("native", "reference"):
        narrow, wide = case.draw(impl), padded.draw(impl)
        assert torch.equal(narrow.lengths, wide.lengths)
        assert torch.equal(narrow.distance, wide.distance)
        torch.testing.assert_close(wide.log_prob, narrow.log_prob, rtol=1e-12, atol=1e-12)
        inside = torch.arange(narrow.tokens.shape[-1]) < narrow.lengths[..., None]
        assert torch.equal(narrow.tokens[inside], wide.tokens[..., : inside.shape[-1]][inside])


@pytest.mark.slow
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("tau", [0.02, 0.08, 0.3, 1.0, 1e4])
def test_long_sentences(tau: float) -> None:
    """Whose weights leave the range of float64, in both directions."""
    random = torch.Generator().manual_seed(1)
    target = torch.randint(0, 100_000, (3, 300), generator=random)
    few = torch.randint(0, 3, (3, 300), generator=random)
    for pool, sentences in ((VocabularyPool(100_000), target), (BatchPool(), few)):
        case = Case(EditSampler(tau, pool, max_insertions=8), sentences, torch.tensor([300, 120, 0]), 3, 7, few)
        assert_equal(case.draw("native"), case.draw("reference"))


@pytest.mark.usefixtures("order", "kernels")
def test_any_order_of_threads() -> None:
    random = torch.Generator().manual_seed(1)
    target = torch.randint(0, 50, (3, 40), generator=random)
    references = torch.randint(0, 99, (3, 70), generator=random)
    for name in POOLS:
        sampler = EditSampler(0.25, make_pool(name, 60, (3, 4)))
        case = Case(sampler, target, torch.tensor([40, 0, 17]), 40, 99, references)
        assert_equal(case.draw("native"), case.draw("reference"))


@pytest.mark.skipif(not HAS_NATIVE, reason="no C++ here")
def test_any_number_of_threads() -> None:
    target = torch.randint(0, 50, (40, 30), generator=torch.Generator().manual_seed(1))
    case = Case(EditSampler(0.25, BatchPool()), target, None, 20, 5, target)
    before = torch.get_num_threads()
    try:
        draws = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            draws.append(case.draw("native"))
    finally:
        torch.set_num_threads(before)
    for other in draws[1:]:
        assert all(torch.equal(one, two) for one, two in zip(draws[0], other, strict=True))


@pytest.mark.usefixtures("kernels")
def test_nothing_is_written_beyond_the_end() -> None:
    for name in POOLS:
        sampler = EditSampler(1.0, make_pool(name, 40, (0,)), max_insertions=3)
        case = Case(sampler, torch.full((3, 5), 7), None, 3, 5, torch.full((3, 2), 9))
        expected = case.draw("reference")
        with pytest.MonkeyPatch.context() as patch:
            given: list[Tensor] = []
            original = torch.empty

            def guarded(shape: tuple[int, ...] | int, **options: Any) -> Tensor:
                count = int(torch.Size(shape if isinstance(shape, tuple) else (shape,)).numel())
                given.append(original(count + GUARD, **options).fill_(3))  # noqa: B023
                return given[-1][:count].view(shape)  # noqa: B023

            patch.setattr(torch, "empty", guarded)
            actual = case.draw("native")
        assert_equal(actual, expected)
        assert given
        assert all((memory[-GUARD:] == 3).all() for memory in given)


@pytest.mark.skipif(not HAS_NATIVE, reason="no C++ here")
@pytest.mark.parametrize("name", POOLS)
def test_a_draw_is_a_few_operators_and_one_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, target = EditSampler(0.3, make_pool(name, 40, (0,))), torch.randint(1, 40, (8, 6))
    arguments = (target, torch.full((8,), 6), 10, torch.Generator(), target)
    sampler(*arguments)  # what is made once
    crossings: list[str] = []
    call = compiled.call
    monkeypatch.setattr(compiled, "call", lambda *given: (crossings.append(given[0]), call(*given)))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        sampler(*arguments)
    operators = [event.key for event in recorded.events() if event.key.startswith("aten::")]
    assert len(operators) <= 10, operators
    assert crossings == ["draw_edit"]


@pytest.mark.skipif(not HAS_NATIVE, reason="no C++ here")
def test_the_binding_refuses_what_it_can_see() -> None:
    target, out = torch.zeros(2, 3, dtype=torch.int64), torch.empty(1, 2, 5, dtype=torch.int64)
    other, seed, flags = torch.empty(1, 2, dtype=torch.int64), torch.tensor([1]), torch.tensor([True, False])
    tables, address = torch.zeros(9, dtype=torch.int64), other.data_ptr()
    good: dict[str, Any] = {
        "sentences": (target.data_ptr(), 8, 2, 3, 0),
        "excluded": (flags.data_ptr(), 2),
        "pool": (1, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0),
        "temperature": (2.0, 0.5, 1.0),
        "seed": seed.data_ptr(),
        "out": (out.data_ptr(), 8, address, address, 1),
        "edit": (2, -100, address, 8),
        "threads": 1,
    }

    def draw(**changes: Any) -> None:
        compiled.require("_C").draw_edit(*{**good, **changes}.values(), "")

    draw()
    table, wrong = tables.data_ptr(), torch.tensor([3, 4])
    for changes, message in [
        ({"sentences": (0, 8, 2, 3, 0)}, "target: got a null pointer"),
        ({"sentences": (target.data_ptr(), 8, 2, 3, wrong.data_ptr())}, r"lengths\[1\]: got 4, expected 0 to 3"),
        ({"pool": (3, 0, 8, 0, table, 0, table, table, 9, 0, 1)}, "pool: got similarity rows"),
        ({"sentences": (0, 8, 2, 0, 0), "out": (0, 8, address, address, 1)}, "tokens, lengths: got a null pointer"),
        ({"edit": (0, -100, address, 8)}, "max_insertions: got 0"),
        ({"edit": (2**31, -100, address, 8)}, "max_insertions: got 2147483648"),
        ({"edit": (2, -100, 0, 8)}, "tokens, lengths: got a null pointer"),
        ({"edit": (2, -100, address, 2)}, "log_prob: got 2 bytes"),
        ({"threads": 0}, "threads: got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            draw(**changes)


def test_an_implementation_that_cannot_draw_says_why() -> None:
    target = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"impl='native' cannot run here: .*not for meta"):
        EditSampler(1.0, BatchPool(), impl="native")(target.to("meta"), None, 1)
    with pytest.raises(ValueError, match="impl: got 'cuda', expected one of 'auto', 'reference', 'native', 'triton'"):
        EditSampler(1.0, BatchPool(), impl="cuda")  # type: ignore[arg-type]


def test_samples_are_the_same_without_the_binaries(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, target = EditSampler(0.4, VocabularyPool(40)), torch.randint(0, 40, (6, 12))
    native = sampler(target, None, 5, torch.Generator().manual_seed(0))
    monkeypatch.setattr(compiled, "load", lambda name: (None, "not here"))
    reference = sampler(target, None, 5, torch.Generator().manual_seed(0))
    assert native.log_prob.dtype == reference.log_prob.dtype == torch.float32
    for one, other in zip(native[:2], reference[:2], strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(native.log_prob, reference.log_prob, rtol=1.2e-7, atol=1e-12)
