"""The C++ kernels of token statistics on their own: every instruction set, and the CUDA source run on the host."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from smoothloss.backends import native
from smoothloss.backends.common import RowOptions, StatisticsGradients, TokenStatistics
from smoothloss.testing import (
    assert_error_budget,
    make_inputs,
    random_gradients,
    relative_error,
    statistics_gradient,
)

CLASSES = (1, 7, 8, 100, 1003, 2048, 2049, 9800)
# Types of the logits and of the gradient.
TYPES = {
    "float32": (torch.float32, torch.float32),
    "float64": (torch.float64, torch.float64),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float32-bfloat16": (torch.float32, torch.bfloat16),
}
OPTIONS = {"plain": RowOptions(), "scale": RowOptions(logit_scale=1.7), "softcap": RowOptions(0, 0, 0, 1.3, 4.0)}


@pytest.fixture(params=["baseline", "avx2", "avx512", "avx512bf16"])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Force each instruction set that this machine can run."""
    if request.param not in native.instruction_sets():
        pytest.skip(f"this machine or build has no {request.param}")
    monkeypatch.setenv("SMOOTHLOSS_ISA", request.param)
    return str(request.param)


def run(
    logits: Tensor, indices: Tensor, options: RowOptions, grads: StatisticsGradients, out: Tensor
) -> TokenStatistics:
    statistics, saved = native.token_statistics(logits, indices, options)
    native.token_statistics_backward(grads, logits, indices, saved, options, out)
    return statistics


def assert_defined(
    statistics: TokenStatistics, out: Tensor, logits: Tensor, indices: Tensor, options: RowOptions,
    grads: StatisticsGradients,
) -> None:  # fmt: skip
    """Hold results against float64; eager PyTorch in the accumulator dtype, rounded alike, sets the budget."""
    oracle, expected = statistics_gradient(logits, indices, options, grads, torch.float64)
    assert torch.equal(statistics.argmax, oracle.argmax)
    if logits.dtype == torch.float64:
        torch.testing.assert_close(tuple(statistics), tuple(oracle), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
        return
    eager, gradient = statistics_gradient(logits, indices, options, grads, torch.float32)
    for mine, theirs, exact in list(zip(statistics, eager, oracle, strict=True))[:4]:
        finite = exact.isfinite()
        assert torch.equal(mine[~finite].double(), exact[~finite])
        assert_budget(mine[finite], theirs[finite], exact[finite])
    assert_budget(out, gradient.to(out.dtype), expected)


def assert_budget(actual: Tensor, eager: Tensor, exact: Tensor) -> None:
    """Assert the error budget; two units are granted, since of so few rows eager is often right by luck."""
    if exact.dim() == 2 and exact.shape[1] == 1:  # p = 1: what is left is rounding
        atol = 4e-6 if actual.dtype == torch.float32 else 0.02
        torch.testing.assert_close(actual.double(), exact, rtol=0, atol=atol)
    elif not relative_error(actual, exact) <= 2 * torch.finfo(torch.float32).eps:
        assert_error_budget(actual, eager, exact)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("types", TYPES)
def test_every_instruction_set(isa: str, types: str, name: str) -> None:
    dtype, out_dtype = TYPES[types]
    for classes, slots in itertools.product(CLASSES, (0, 1, 21)):
        logits, indices, weights, _ = make_inputs(5, classes, slots, dtype=dtype, seed=classes)
        grads = random_gradients(indices, weights.dtype)
        out = torch.full_like(logits, torch.nan, dtype=out_dtype)
        statistics = run(logits, indices, OPTIONS[name], grads, out)
        assert_defined(statistics, out, logits, indices, OPTIONS[name], grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_in_place_and_in_a_wider_tensor(isa: str, dtype: torch.dtype) -> None:
    for offset, name in itertools.product((0, 3), OPTIONS):
        given, indices, weights, _ = make_inputs(4, 5003, 40, dtype=dtype)
        grads = random_gradients(indices, weights.dtype)
        buffer = torch.zeros(4, 5010, dtype=dtype)
        logits = buffer[:, offset : offset + 5003]
        logits.copy_(given)
        statistics = run(logits, indices, OPTIONS[name], grads, logits)
        assert_defined(statistics, logits, given, indices, OPTIONS[name], grads)
        logits.zero_()
        assert not buffer.any(), "written beyond the row"


def test_bitwise_the_same_with_any_number_of_threads(isa: str) -> None:
    logits, indices, _, _ = make_inputs(64, 5003, 9)
    grads, results, before = random_gradients(indices, torch.float32), [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out = torch.empty_like(logits)
        results.append((*run(logits, indices, RowOptions(), grads, out), out))
    torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_bad_tensors_are_refused_by_name() -> None:
    logits, indices, _, _ = make_inputs(4, 10, 3)
    statistics, saved = native.token_statistics(logits, indices, RowOptions())
    grads, out = random_gradients(indices, torch.float32), torch.empty_like(logits)
    wrong: dict[str, dict[str, Any]] = {
        "out: got the shape": {"out": out[:3]},
        "saved: got": {"saved": saved[:, :3].contiguous()},
        "grads.log_prob: got": {"grads": grads._replace(log_prob=torch.ones(4))},
        "grads.entropy: got the type": {"grads": grads._replace(entropy=torch.ones(4, dtype=torch.float64))},
        "softcap: got -1": {"options": RowOptions(softcap=-1.0)},
        "contiguous": {"saved": saved.t().contiguous().t()},
    }
    good: dict[str, Any] = {
        "grads": grads, "logits": logits, "indices": indices, "saved": saved, "options": RowOptions(), "out": out,
    }  # fmt: skip
    native.token_statistics_backward(**good)
    for message, change in wrong.items():
        with pytest.raises(ValueError, match=message):
            native.token_statistics_backward(**(good | change))
    assert statistics.argmax.dtype == torch.int64


# ---- the CUDA source on the host


@pytest.fixture
def kernels(native_on_emulated_cuda: Any) -> Any:
    return native_on_emulated_cuda


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("types", [*TYPES, "float16"])
@pytest.mark.usefixtures("kernels")
def test_cuda_rows(types: str, name: str) -> None:
    dtype, out_dtype = TYPES.get(types, (torch.float16, torch.float16))
    for classes, slots in itertools.product((1, 7, 100, 1003, 9800), (0, 1, 21)):
        logits, indices, weights, _ = make_inputs(3, classes, slots, dtype=dtype, seed=classes)
        grads = random_gradients(indices, weights.dtype)
        out = torch.full_like(logits, torch.nan, dtype=out_dtype)
        statistics = run(logits, indices, OPTIONS[name], grads, out)
        assert_defined(statistics, out, logits, indices, OPTIONS[name], grads)


@pytest.mark.usefixtures("kernels", "order")
def test_cuda_in_place_and_misaligned() -> None:
    for dtype, offset, name in itertools.product((torch.float32, torch.bfloat16), (0, 3), OPTIONS):
        given, indices, weights, _ = make_inputs(3, 1003, 40, dtype=dtype)
        grads = random_gradients(indices, weights.dtype)
        buffer = torch.zeros(3, 1010, dtype=dtype)
        logits = buffer[:, offset : offset + 1003]
        logits.copy_(given)
        statistics = run(logits, indices, OPTIONS[name], grads, logits)
        assert_defined(statistics, logits, given, indices, OPTIONS[name], grads)
        logits.zero_()
        assert not buffer.any(), "written beyond the row"


@pytest.mark.usefixtures("kernels", "order")
def test_cuda_with_more_slots_or_classes_than_shared_memory_holds() -> None:
    for dtype, classes, slots in (
        (torch.float32, 9801, 3600),
        (torch.float64, 5003, 2100),
        (torch.bfloat16, 400003, 9),
    ):
        given, indices, weights, _ = make_inputs(2, classes, slots, dtype=dtype, ignored=0.0)
        grads = random_gradients(indices, weights.dtype)
        logits = given.clone()
        statistics = run(logits, indices, RowOptions(), grads, logits)
        assert_defined(statistics, logits, given, indices, RowOptions(), grads)


@pytest.mark.usefixtures("kernels")
def test_cuda_every_subset_of_the_gradients() -> None:
    logits, indices, _, _ = make_inputs(3, 203, 5, dtype=torch.float64, ignored=0.0)
    every = random_gradients(indices, torch.float64)
    for used in itertools.product((True, False), repeat=4):
        grads = StatisticsGradients(*(grad if use else None for grad, use in zip(every, used, strict=True)))
        out = torch.full_like(logits, torch.nan)
        run(logits, indices, RowOptions(), grads, out)
        if any(used):
            _, expected = statistics_gradient(logits, indices, RowOptions(), grads, torch.float64)
            torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
        else:
            assert out.eq(0).all()


@pytest.mark.usefixtures("kernels", "order")
def test_cuda_finds_the_first_of_the_largest_and_the_first_nan() -> None:
    for dtype, offset in itertools.product((torch.float32, torch.bfloat16), range(8)):
        logits = torch.zeros(6, 1011, dtype=dtype)[:, offset : offset + 1003]
        logits[1, [1002, 1001, 7]] = 1.0
        logits[2] = -torch.inf
        logits[3, 1000:] = 2.0
        logits[4, [900, 77]], logits[4, 5] = torch.nan, 9.0
        logits[5] = -torch.inf
        logits[5, 1002] = 0.0
        statistics, _ = native.token_statistics(logits, torch.full((6, 1), 7), RowOptions())
        assert torch.equal(statistics.argmax, logits.argmax(-1))


@pytest.mark.usefixtures("kernels")
def test_cuda_out_of_range_is_an_empty_slot() -> None:
    logits, indices, _, _ = make_inputs(3, 203, 5, ignored=0.0, empty=0.0)
    beyond = indices.long()
    beyond[:, 1], beyond[:, 2] = 203, 2**40
    within = beyond.where(beyond < 203, -1)
    grads, results = random_gradients(indices, torch.float32), []
    for slots in (beyond, within):
        out = torch.empty_like(logits)
        results.append((*run(logits, slots, RowOptions(), grads, out), out))
    assert all(map(torch.equal, *results))


@pytest.mark.usefixtures("kernels")
def test_cuda_a_small_rest_keeps_its_mass_and_its_gradient() -> None:
    generator = torch.Generator().manual_seed(3)
    for log_rest in (-2.0, -20.7, -300.0):
        logits = torch.randn(2, 20000, generator=generator, dtype=torch.float64)
        logits[:, 8:] += log_rest - logits[:, 8:].logsumexp(-1, keepdim=True)
        logits = logits.float()
        indices = torch.arange(8).expand(2, 8).contiguous()
        for grads in (
            StatisticsGradients(None, torch.tensor([1.0, -0.3]), None, None),
            StatisticsGradients(torch.ones(2, 8), None, None, None),
        ):
            out = torch.empty_like(logits)
            statistics = run(logits, indices, RowOptions(), grads, out)
            oracle, expected = statistics_gradient(logits, indices, RowOptions(), grads, torch.float64)
            known = max(1e-6, 1.2e-7 * float(oracle.log_rest.abs().max()))
            assert ((statistics.log_rest.double() - oracle.log_rest).exp() - 1).abs().max() <= known
            if grads.log_rest is not None:
                assert relative_error(out, expected) <= 1e-6
