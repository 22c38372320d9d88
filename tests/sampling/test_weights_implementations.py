"""Importance weights of all implementations are those of the definition in torch, at the ends of the numbers too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Literal, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from smoothloss import _compiled as compiled
from smoothloss.sampling import importance_weights
from smoothloss.sampling._weights_reference import log_weights
from smoothloss.sampling.importance import Weighing

GUARD = 5
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 3e38, -3e38, 1e-45]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT,
    "strided": lambda x: torch.stack((x, x * 3), -1).flatten(-2)[:, ::2],
    "expanded": lambda x: x[:1].expand_as(x),
    "negative": lambda x: torch._neg_view(-x),
}


class Case(NamedTuple):
    """The arguments of a call."""

    scores: Tensor
    log_prob: Tensor
    tau: float = 0.5
    normalize: Literal["samples", "batch"] = "samples"
    clip: float | None = None

    def weights(self, impl: str) -> Tensor:
        options = {"tau": self.tau, "normalize": self.normalize, "clip": self.clip, "impl": impl}
        return importance_weights(self.scores, self.log_prob, **options)  # type: ignore[arg-type]

    def exact(self) -> Tensor:
        """Return the softmax of the definition's logarithms in float64."""
        dtype = self.weights("reference").dtype
        bound = math.inf if self.clip is None else self.clip
        bound = bound if abs(bound) < 1e39 or dtype == torch.float64 else math.copysign(math.inf, bound)
        of_batch = self.normalize == "batch"
        weighing = Weighing(self.scores, self.log_prob, self.tau, bound, of_batch, dtype)
        weights = log_weights(weighing).double().softmax(0).view(self.scores.shape)
        return weights * self.scores.shape[1] if of_batch else weights


@st.composite
def cases(draw: st.DrawFn) -> Case:
    samples, inputs = draw(st.sampled_from([0, 1, 2, 5, 31, 33, 70])), draw(st.sampled_from([0, 1, 2, 7, 40]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    is_special = draw(st.sampled_from([0.0, 0.0, 0.1, 0.9]))

    def numbers(scale: float) -> Tensor:
        values = torch.rand(samples, inputs, generator=random, dtype=torch.float64) * scale
        chosen = torch.randint(len(SPECIAL), (samples, inputs), generator=random)
        special = torch.rand(samples, inputs, generator=random) < is_special
        values = torch.where(special, torch.tensor(SPECIAL, dtype=torch.float64)[chosen], values)
        return LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))](values.to(draw(st.sampled_from(DTYPES))))

    return Case(
        numbers(draw(st.sampled_from([1.0, 10.0, 1e4]))),
        numbers(draw(st.sampled_from([-1.0, -60.0, -1e4]))),
        draw(st.sampled_from([1e-37, 0.01, 0.5, 1.0, 1e37])),
        draw(st.sampled_from(["samples", "batch"])),
        draw(st.sampled_from([None, 0.3, -1.0, math.inf, -math.inf, 1e300, -1e300])),
    )


@pytest.fixture(params=["native", "emulated CUDA"])
def impl(request: pytest.FixtureRequest) -> Iterator[str]:
    """The `impl` to ask for, with what must be replaced for it to be the one of this name."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "emulated CUDA":
            emulate(patch, request.getfixturevalue("emulated_cuda"))
        yield "native"


def emulate(patch: pytest.MonkeyPatch, module: ModuleType) -> None:
    """Let the CUDA kernel weigh CPU tensors."""

    def call(name: str, like: Tensor, *arguments: Any) -> None:
        getattr(module, name)(*arguments, 0, 0)

    patch.setattr(compiled, "call", call)


def assert_weights(actual: Tensor, case: Case) -> None:
    """Hold weights against the softmax in float64: an exponential, a sum and a quotient round."""
    expected = case.weights("reference")
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    info = torch.finfo(actual.dtype)
    error = 4 * info.eps if actual.dtype == torch.float32 else 1e-14  # of sums in another order
    torch.testing.assert_close(actual.double(), case.exact(), rtol=error, atol=info.tiny, equal_nan=True)
    assert torch.equal(actual.isnan(), expected.isnan())


@pytest.mark.slow
@given(case=cases())
@example(case=Case(torch.full((3, 2), -math.inf), torch.zeros(3, 2)))
@example(case=Case(torch.full((3, 2), math.inf), torch.zeros(3, 2), normalize="batch"))
@example(case=Case(torch.zeros(3, 2), torch.full((3, 2), -math.inf)))
@example(case=Case(torch.zeros(3, 2), torch.full((3, 2), math.inf)))
@example(case=Case(torch.zeros(1, 4), torch.arange(4.0)[None], normalize="batch"))
@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
def test_the_weights_of_the_definition(impl: str, case: Case) -> None:
    assert_weights(case.weights(impl), case)


@pytest.mark.parametrize("normalize", ["samples", "batch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2500, 2), (3, 700), (1, 2000)])
def test_more_samples_than_threads(
    impl: str, shape: tuple[int, int], dtype: torch.dtype, normalize: Literal["samples", "batch"]
) -> None:
    random = torch.Generator().manual_seed(0)
    scores, log_prob = (torch.rand(shape, generator=random, dtype=torch.float64) for _ in range(2))
    case = Case(scores.to(dtype), -30 * log_prob.to(dtype), 0.1, normalize)
    assert_weights(case.weights(impl), case)


@pytest.mark.parametrize("normalize", ["samples", "batch"])
def test_the_same_bits_in_any_order_of_threads(
    emulated_cuda: ModuleType, monkeypatch: pytest.MonkeyPatch, normalize: Literal["samples", "batch"]
) -> None:
    random = torch.Generator().manual_seed(0)
    case = Case(torch.rand(90, 30, generator=random), -9 * torch.rand(90, 30, generator=random), 0.1, normalize)
    emulate(monkeypatch, emulated_cuda)
    weights = []
    for order in ("forward", "reverse", "shuffled"):
        monkeypatch.setenv("EMULATION_ORDER", order)
        weights.append(case.weights("native"))
        assert_weights(weights[-1], case)
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


def test_nothing_is_written_beyond_the_end(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, given, original = Case(torch.rand(4, 3), torch.rand(4, 3), normalize="batch"), [], torch.empty

    def guarded(shape: tuple[int, ...], **options: Any) -> Tensor:
        given.append(original(math.prod(shape) + GUARD, **options).fill_(3))
        return given[-1][:-GUARD].view(shape)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", guarded)
        weights = case.weights(impl)
    assert_weights(weights, case)
    assert len(given) == 1
    assert (given[0][-GUARD:] == 3).all()


def test_one_kernel_and_no_operator_that_computes() -> None:
    case = Case(torch.rand(4, 3).double(), torch.rand(4, 3).t().contiguous().t(), clip=0.5, normalize="batch")
    case.weights("auto")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        case.weights("auto")
    operators = {event.key for event in recorded.events() if event.key.startswith("aten::")}
    assert operators <= {"aten::empty", "aten::resolve_neg"}


def test_the_gradient_is_the_references() -> None:
    case = Case(torch.rand(4, 3, requires_grad=True), torch.rand(4, 3))
    one, other = (torch.autograd.grad(case.weights(impl)[0].sum(), case.scores)[0] for impl in ("auto", "reference"))
    assert one.any()
    assert torch.equal(one, other)
    with pytest.raises(RuntimeError, match="impl='native' cannot run here: the kernel has no gradient"):
        case.weights("native")
    with torch.no_grad():
        assert_weights(case.weights("native"), case)
    assert not case._replace(scores=case.scores.detach()).weights("auto").requires_grad


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own, of forward mode
@pytest.mark.parametrize("normalize", ["samples", "batch"])
def test_tracers_and_transforms_get_the_reference(normalize: Literal["samples", "batch"]) -> None:
    case = Case(torch.rand(4, 3), -torch.rand(4, 3), 0.3, normalize, 0.7)
    expected = case.weights("reference")

    def weights(scores: Tensor) -> Tensor:
        return Case(scores, case.log_prob, case.tau, normalize, case.clip).weights("auto")  # as torch 2.6 compiles it

    torch.compiler.reset()
    compiled_weights = torch.compile(weights, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled_weights(case.scores), expected)
    torch.testing.assert_close(torch.vmap(weights)(case.scores.expand(2, 4, 3))[1], expected)
    _, tangent = torch.func.jvp(weights, (case.scores,), (torch.ones(4, 3),))
    assert tangent.shape == (4, 3)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert weights(torch.rand(4, 3)).shape == (4, 3)
    meta = Case(torch.rand(4, 3, device="meta"), torch.rand(4, 3, device="meta"))
    assert meta.weights("auto").device.type == "meta"
    with pytest.raises(RuntimeError, match="impl='native' cannot run here: the kernel needs memory"):
        meta.weights("native")


def test_weights_are_the_same_without_the_binaries(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(torch.rand(4, 3), torch.rand(4, 3))
    assert_weights(case.weights("native"), case)
    monkeypatch.setattr(compiled, "load", lambda name: (None, "not here"))
    assert torch.equal(case.weights("auto"), case.weights("reference"))
    with pytest.raises(RuntimeError, match="impl='native' cannot run here: not here"):
        case.weights("native")
    with pytest.raises(ValueError, match="impl: got 'gpu', expected one of 'auto', 'reference', 'native'"):
        case.weights("gpu")


def test_the_binding_refuses_what_it_can_see() -> None:
    numbers = torch.zeros(4, 3)
    good: dict[str, Any] = {
        "scores": (numbers.data_ptr(), 0, 3, 1),
        "log_prob": (numbers.data_ptr(), 0, 3, 1),
        "samples": 4,
        "inputs": 3,
        "options": (1.0, math.inf, False),
        "out": numbers.data_ptr(),
        "threads": 1,
    }

    def weigh(**changes: Any) -> None:
        compiled.require("_C").importance_weights(*{**good, **changes}.values(), "")

    weigh()
    assert torch.equal(numbers, torch.full((4, 3), 0.25))
    weigh(samples=0, scores=(0, 0, 3, 1), log_prob=(0, 0, 3, 1), out=0)
    for changes, message in [
        ({"scores": (0, 0, 3, 1)}, "scores: got a null pointer"),
        ({"log_prob": (0, 0, 3, 1)}, "log_prob: got a null pointer"),
        ({"scores": (numbers.data_ptr(), 3, 3, 1)}, "scores: expected float32 or float64"),
        ({"samples": -1}, "scores: got a negative size"),
        ({"samples": 2**30}, r"scores: got a negative size, or more than 2\^31 - 1"),
        ({"options": (0.0, 1.0, False)}, "tau: got 0"),
        ({"options": (1.0, math.nan, False)}, "clip: got NaN"),
        ({"out": 0}, "out: got a null pointer"),
        ({"threads": 0}, "threads: got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            weigh(**changes)
