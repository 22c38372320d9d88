"""All implementations of a draw by Hamming distance draw what the definition in torch draws, bit for bit.

Those of the CUDA kernels run on the host (see `ops/test_cuda_build.py`), Triton's in its interpreter, which needs a
process of its own: ``TRITON_INTERPRET=1`` counts when triton is imported. `make test` starts one.
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

from smoothloss import SimilarityTable
from smoothloss import _compiled as compiled
from smoothloss.sampling import (
    BatchPool,
    HammingSampler,
    Pool,
    ReferencePool,
    SimilarPool,
    VocabularyPool,
    _hamming_native,
)
from smoothloss.sampling.samples import Samples, Sentences

IN_INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1"
HAS_NATIVE = compiled.load("_C")[0] is not None
ISAS = list(compiled.require("_C").available_isas()) if HAS_NATIVE else []
NAMES = [] if IN_INTERPRETER else [*(f"native {isa}" for isa in ISAS), "emulated CUDA"]
POOLS = ("vocabulary", "batch", "references", "uniform", "renormalize")
GUARD = 5

pytestmark = [pytest.mark.filterwarnings("ignore::RuntimeWarning")]  # of numpy, for integers that wrap as they should


class Case(NamedTuple):
    """The arguments of a draw."""

    tau: float
    pool: Pool
    target: Tensor
    lengths: Tensor | None
    num_samples: int
    seed: int
    references: Tensor

    def draw(self, impl: str) -> Samples:
        sampler = HammingSampler(self.tau, self.pool, impl=impl)  # type: ignore[arg-type]
        return sampler._draw(
            Sentences(self.target, self.lengths, self.references, self.pool),
            self.num_samples,
            torch.tensor([self.seed]),
        )


@functools.cache
def table(size: int, tail: str) -> SimilarityTable:
    vectors = torch.randn(size, 6, generator=torch.Generator().manual_seed(size))
    vectors[size // 2] = 0
    return SimilarityTable.from_embeddings(vectors, k=min(5, size), tau=0.4, tail=tail, exclude=(0,))  # type: ignore[arg-type]


@functools.cache
def make_pool(name: str, size: int, exclude: tuple[int, ...]) -> Pool:
    if name in ("uniform", "renormalize"):
        return SimilarPool(table(size, name), exclude)
    pools = {"batch": BatchPool, "references": ReferencePool}
    return pools[name](exclude) if name in pools else VocabularyPool(size, exclude)


@st.composite
def cases(draw: st.DrawFn, largest: int = 70) -> Case:
    size, name = draw(st.sampled_from([1, 2, 3, 7, 40, 300])), draw(st.sampled_from(POOLS))
    exclude = draw(st.sampled_from([(), (0,), tuple(range(min(3, size)))]))
    widths = [width for width in (0, 1, 2, 5, 16, 31, 32, 33, 64, 70) if width <= largest]
    batch, width = draw(st.integers(0, 5)), draw(st.sampled_from(widths))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([torch.int16, torch.int32, torch.int64]))
    # Negative ids, and for a set pool's target also some out of it.
    highest = size if name in ("uniform", "renormalize") else size + 1
    target = torch.randint(-2, highest, (batch, width), generator=random).to(dtype)
    lengths = torch.randint(0, width + 1, (batch,), generator=random) if draw(st.booleans()) else None
    columns, wide = draw(st.integers(0, 12)), draw(st.sampled_from([torch.int16, torch.int32, torch.int64]))
    references = torch.randint(-2, size + 2, (batch, columns), generator=random).to(wide)
    return Case(
        draw(st.sampled_from([1e-20, 0.03, 0.12, 0.3, 1.0, 1e6])),
        make_pool(name, size, exclude),
        target,
        lengths,
        draw(st.integers(1, 4)),
        draw(st.integers(-(2**63), 2**63 - 1)),
        references,
    )


@pytest.fixture(params=NAMES or ["triton"])
def impl(request: pytest.FixtureRequest) -> Iterator[str]:
    """The `impl` to ask for, with what must be replaced for it to be the one of this name."""
    name = str(request.param)
    with pytest.MonkeyPatch.context() as patch:
        if name == "emulated CUDA":
            emulate(patch, request.getfixturevalue("emulated_cuda"))
        elif name == "triton":
            if not IN_INTERPRETER:
                pytest.skip("needs a process with TRITON_INTERPRET=1")
            pytest.importorskip("triton", reason="triton is not installed")
        else:
            patch.setenv("SMOOTHLOSS_ISA", name.split()[1])
        yield "triton" if name == "triton" else "native"


def emulate(patch: pytest.MonkeyPatch, module: ModuleType, device: int = 0) -> None:
    """Let the CUDA kernels draw for CPU tensors, with scratch memory that holds anything but zeros."""

    def call(name: str, like: Tensor, *arguments: Any) -> None:
        (_, _, batch, width, _), kernel_pool = arguments[0], arguments[2]
        words = _hamming_native.scratch_words(kernel_pool[0], batch, width, kernel_pool[3])
        scratch = torch.full((words + GUARD,), -7)
        getattr(module, name)(*arguments, scratch.data_ptr(), words, device, 0)
        assert (scratch[words:] == -7).all()
        if words:
            with pytest.raises(ValueError, match="scratch: got"):
                getattr(module, name)(*arguments, scratch.data_ptr(), words - 1, device, 0)

    patch.setattr(compiled, "call", call)


def assert_equal(actual: Samples, expected: Samples) -> None:
    assert actual.tokens.dtype == expected.tokens.dtype
    for name in ("tokens", "distance", "lengths"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name
    # Sums of float64 in another order, rounded to float32.
    torch.testing.assert_close(actual.log_prob, expected.log_prob, rtol=1.2e-7, atol=1e-12)


@given(case=cases())
@settings(deadline=None, max_examples=150 if not IN_INTERPRETER else 40, suppress_health_check=list(HealthCheck))
def test_the_same_samples_as_the_definition(impl: str, case: Case) -> None:
    assert_equal(case.draw(impl), case.draw("reference"))


@given(case=cases(largest=16), more=st.integers(1, 40))
@settings(deadline=None, max_examples=60 if not IN_INTERPRETER else 20, suppress_health_check=list(HealthCheck))
def test_samples_do_not_depend_on_the_padding(impl: str, case: Case, more: int) -> None:
    batch, width = case.target.shape
    lengths = torch.full((batch,), width) if case.lengths is None else case.lengths
    case = case._replace(lengths=lengths)
    # Whatever stands there: tokens of the pool, so that it would show if they took part.
    filler = case.target.abs()[:, :1].expand(-1, more) if width else case.target.new_zeros(batch, more)
    padded = case._replace(
        target=torch.cat([case.target, filler], dim=1),
        references=torch.nn.functional.pad(case.references, (0, more), value=-1),
    )
    narrow, wide = case.draw(impl), padded.draw(impl)
    assert torch.equal(wide.tokens[..., :width], narrow.tokens)
    assert torch.equal(wide.tokens[..., width:], filler.to(wide.tokens.dtype).expand(case.num_samples, -1, -1))
    assert torch.equal(wide.distance, narrow.distance)
    torch.testing.assert_close(wide.log_prob, narrow.log_prob, rtol=1.2e-7, atol=1e-12)


def test_many_different_tokens(impl: str) -> None:
    """Sets of more tokens than a block of threads has, with many repeats, and all orders of threads."""
    random = torch.Generator().manual_seed(0)
    target = torch.randint(0, 900, (40, 33) if not IN_INTERPRETER else (5, 33), generator=random)
    references = torch.randint(0, 4000, (target.shape[0], 300), generator=random)
    for pool in (BatchPool((3, 4)), ReferencePool((3, 4))):
        case = Case(0.15, pool, target, None, 2, 99, references)
        assert_equal(case.draw(impl), case.draw("reference"))


@pytest.mark.skipif(IN_INTERPRETER, reason="of the CUDA kernels")
@pytest.mark.parametrize(("sentences", "device", "launches"), [(7, 0, 1), (64, 0, 1), (64, 2, 2), (130, 0, 2)])
def test_a_set_is_built_in_shared_memory_where_there_is_room(
    native_on_emulated_cuda: Any, monkeypatch: pytest.MonkeyPatch, sentences: int, device: int, launches: int
) -> None:
    """Device 0 has 96 KiB for a block that asks for them, device 2 just what every block may have."""
    random = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3000, (sentences, 33), generator=random)
    references = torch.randint(0, 9000, (2, 33 * sentences), generator=random)
    emulate(monkeypatch, native_on_emulated_cuda.module, device)
    for case in (
        Case(0.15, BatchPool((3, 4)), target, None, 2, 99, target),
        Case(0.15, ReferencePool((3, 4)), target[:2], None, 2, 99, references),
    ):
        before = native_on_emulated_cuda.num_launches
        drawn = case.draw("native")
        assert native_on_emulated_cuda.num_launches - before == launches
        assert_equal(drawn, case.draw("reference"))


@pytest.mark.skipif(IN_INTERPRETER, reason="minutes in the interpreter, whose programs take a sample each")
def test_more_samples_than_warps(impl: str) -> None:
    """Blocks that go on to other samples with the set that they have built."""
    target = torch.randint(0, 9, (5, 3), generator=torch.Generator().manual_seed(0))
    for pool in (BatchPool(), ReferencePool()):
        case = Case(1.0, pool, target, None, 300, 99, target)
        assert_equal(case.draw(impl), case.draw("reference"))


@pytest.mark.usefixtures("order")
def test_any_order_of_threads(impl: str) -> None:
    random = torch.Generator().manual_seed(1)
    target, references = (
        torch.randint(0, 50, (3, 40), generator=random),
        torch.randint(0, 99, (3, 70), generator=random),
    )
    for pool in (BatchPool((3, 4)), ReferencePool((3, 4))):
        case = Case(0.15, pool, target, torch.tensor([40, 0, 17]), 2, 99, references)
        assert_equal(case.draw(impl), case.draw("reference"))


def test_nothing_is_written_beyond_the_end(impl: str) -> None:
    for name in POOLS:
        case = Case(1.0, make_pool(name, 40, (0,)), torch.full((3, 5), 7), None, 3, 5, torch.full((3, 2), 9))
        expected = case.draw("reference")
        with pytest.MonkeyPatch.context() as patch:
            given: list[Tensor] = []
            original = torch.empty

            def guarded(shape: tuple[int, ...] | int, **options: Any) -> Tensor:
                count = int(torch.Size(shape if isinstance(shape, tuple) else (shape,)).numel())
                given.append(original(count + GUARD, **options).fill_(3))  # noqa: B023
                return given[-1][:count].view(shape)  # noqa: B023

            patch.setattr(torch, "empty", guarded)
            actual = case.draw(impl)
        assert_equal(actual, expected)
        assert given
        assert all((memory[-GUARD:] == 3).all() for memory in given)


@pytest.mark.skipif(not HAS_NATIVE, reason="no C++ here")
@pytest.mark.parametrize("name", POOLS)
def test_a_draw_is_a_few_operators_and_one_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, target = HammingSampler(0.3, make_pool(name, 40, (0,))), torch.randint(1, 40, (8, 6))
    arguments = (target, torch.full((8,), 6), 10, torch.Generator(), target)
    sampler(*arguments)  # what is made once
    kernels: list[str] = []
    call = compiled.call
    monkeypatch.setattr(compiled, "call", lambda *given: (kernels.append(given[0]), call(*given)))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        sampler(*arguments)
    operators = [event.key for event in recorded.events() if event.key.startswith("aten::")]
    assert len(operators) <= 10, operators
    assert kernels == ["draw_hamming"]


@pytest.mark.skipif(not HAS_NATIVE, reason="no C++ here")
def test_the_binding_refuses_what_it_can_see() -> None:
    target, out = torch.zeros(2, 3, dtype=torch.int64), torch.empty(1, 2, 3, dtype=torch.int64)
    other, seed, flags = torch.empty(1, 2, dtype=torch.int64), torch.tensor([1]), torch.tensor([True, False])
    tables = torch.zeros(9, dtype=torch.int64)
    good: dict[str, Any] = {
        "sentences": (target.data_ptr(), 8, 2, 3, 0),
        "excluded": (flags.data_ptr(), 2),
        "pool": (1, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0),
        "temperature": (2.0, 0.5, 1.0),
        "seed": seed.data_ptr(),
        "out": (out.data_ptr(), 8, other.data_ptr(), other.data_ptr(), 1),
        "threads": 1,
    }

    def draw(**changes: Any) -> None:
        compiled.require("_C").draw_hamming(*{**good, **changes}.values(), "")

    draw()
    address = tables.data_ptr()
    for changes, message in [
        ({"sentences": (0, 8, 2, 3, 0)}, "target: got a null pointer"),
        ({"sentences": (target.data_ptr(), 1, 2, 3, 0)}, "target: got tokens of 1 bytes"),
        ({"sentences": (target.data_ptr(), 8, -1, 3, 0)}, "target: got a negative size"),
        ({"sentences": (target.data_ptr(), 8, 2**20, 2**12, 0)}, r"target: got more than 2\^31 - 1 tokens"),
        ({"excluded": (0, 2)}, "excluded: got a null pointer"),
        ({"excluded": (flags.data_ptr(), 1)}, "excluded: got a null pointer, or fewer"),
        ({"pool": (4, *good["pool"][1:])}, "pool: got an unknown number"),
        ({"pool": (0, *good["pool"][1:])}, "pool: got no tokens"),
        ({"pool": (0, 0, 8, 0, address, 0, 0, 0, 9, 9, 0)}, "pool: got a null pointer for the ranks"),
        ({"pool": (0, 0, 8, 0, address, address, 0, 0, 9, 10, 0)}, "pool: got 10 of 9 tokens"),
        ({"pool": (3, 0, 8, 0, address, 0, address, address, 9, 0, 0)}, "pool: got rows of 0 segments"),
        ({"pool": (2, 0, 8, 2, 0, 0, 0, 0, 0, 0, 0)}, "references: got a null pointer"),
        ({"temperature": (0.5, 0.5, 1.0)}, "temperature: got odds"),
        ({"seed": 0}, "seed: got a null pointer"),
        ({"out": (0, 8, other.data_ptr(), other.data_ptr(), 1)}, "tokens: got a null pointer"),
        ({"out": (out.data_ptr(), 8, 0, 0, 1)}, "distance, log_prob: got a null pointer"),
        ({"threads": 0}, "threads: got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            draw(**changes)


def test_an_implementation_that_cannot_draw_says_why() -> None:
    exact = SimilarPool(table(40, "exact"))
    target = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match=r"impl='native' cannot run here: .*how to draw from SimilarPool"):
        HammingSampler(1.0, exact, impl="native")(target, None, 1)
    with pytest.raises(RuntimeError, match=r"impl='native' cannot run here: .*not for meta"):
        HammingSampler(1.0, BatchPool(), impl="native")(target.to("meta"), None, 1)
    with pytest.raises(ValueError, match="impl: got 'gpu'"):
        HammingSampler(1.0, exact, impl="gpu")  # type: ignore[arg-type]
    if not IN_INTERPRETER:
        with pytest.raises(RuntimeError, match="impl='triton' cannot run here"):
            HammingSampler(1.0, BatchPool(), impl="triton")(target, None, 1)


def test_samples_are_the_same_without_the_binaries(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, target = HammingSampler(1.0, VocabularyPool(40)), torch.randint(0, 40, (6, 12))
    native = sampler(target, None, 5, torch.Generator().manual_seed(0))
    monkeypatch.setattr(compiled, "load", lambda name: (None, "not here"))
    assert_equal(native, sampler(target, None, 5, torch.Generator().manual_seed(0)))
