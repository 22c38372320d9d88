"""The token statistics of the Triton kernels, in Triton's interpreter, against their definition in float64.

Needs a process of its own: ``TRITON_INTERPRET=1`` counts when triton is imported. `make test` starts one.
"""
# ruff: noqa: E402

from __future__ import annotations

import itertools
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1", allow_module_level=True)
triton = pytest.importorskip("triton", reason="triton is not installed")
np = pytest.importorskip("numpy")
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
    pytest.skip("this Triton's interpreter does not run loops with numpy 2.4 or newer", allow_module_level=True)

import smoothloss.functional as F
from smoothloss.backends import triton as triton_kernels
from smoothloss.backends.common import RowOptions, StatisticsGradients, TokenStatistics
from smoothloss.backends.triton.config import STATISTICS_CONFIGS
from smoothloss.testing import assert_error_budget, dense_statistics, make_inputs, relative_error

pytestmark = [
    pytest.mark.usefixtures("poison"),
    # The interpreter computes what a masked lane would, in numpy, which warns of log(0).
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

PLAIN = RowOptions()
OPTIONS = {
    "plain": PLAIN,
    "scale": RowOptions(logit_scale=0.7),
    "softcap": RowOptions(softcap=6.0),
    "both": RowOptions(logit_scale=1.7, softcap=6.0),
}
F32, F64 = torch.float32, torch.float64
# Classes so far apart share a lane of float64 rows.
LANES = STATISTICS_CONFIGS[F64][0].block


def definition(logits: Tensor, indices: Tensor, options: RowOptions) -> TokenStatistics:
    """Return the statistics, differentiable, in the dtype of the logits; an index beyond V is an empty slot."""
    return dense_statistics(logits, indices.masked_fill(indices >= logits.shape[1], -1), options)


def random_grads(statistics: TokenStatistics, seed: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    one, two, three, four = (torch.randn(x.shape, generator=generator, dtype=F64).to(x) for x in statistics[:4])
    return one, two, three, four


def expected_gradient(
    logits: Tensor, indices: Tensor, options: RowOptions, grads: tuple[Tensor | None, ...]
) -> Tensor:  # fmt: skip
    """Return the gradient of the definition in the dtype of the logits."""
    leaf = logits.clone().requires_grad_()
    used = [(x, g) for x, g in zip(definition(leaf, indices, options), grads, strict=False) if g is not None]
    used = [(x, g.to(x)) for x, g in used if x.requires_grad]
    if not used:
        return torch.zeros_like(logits)
    return torch.autograd.grad([x for x, _ in used], leaf, [g for _, g in used], allow_unused=True)[0]


def run(
    logits: Tensor, indices: Tensor, options: RowOptions, grads: tuple[Tensor | None, ...] | None = None,
    inplace: bool = False, out_dtype: torch.dtype | None = None,
) -> tuple[TokenStatistics, Tensor]:  # fmt: skip
    """Return statistics and gradient, every result poisoned beforehand."""
    statistics, saved = triton_kernels.token_statistics(logits, indices, options)
    return statistics, run_backward(statistics, saved, logits, indices, options, grads, inplace, out_dtype)


def run_backward(
    statistics: TokenStatistics, saved: Tensor, logits: Tensor, indices: Tensor, options: RowOptions,
    grads: tuple[Tensor | None, ...] | None, inplace: bool, out_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    before = logits.clone()
    out = before if inplace else torch.full(logits.shape, torch.nan, dtype=out_dtype or logits.dtype)
    grads = random_grads(statistics) if grads is None else grads
    kept = StatisticsGradients(*(grad if grad is None else grad.to(saved) for grad in grads))
    triton_kernels.token_statistics_backward(kept, before if inplace else logits, indices, saved, options, out)
    return out


def check(logits: Tensor, indices: Tensor, options: RowOptions = PLAIN, inplace: bool = False) -> None:
    """Compare statistics and gradient of float64 logits with the definition."""
    expected = definition(logits, indices, options)
    statistics, gradient = run(logits, indices, options, inplace=inplace)
    for name, one, other in zip(TokenStatistics._fields, statistics, expected, strict=True):
        assert one.dtype == other.dtype, name
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
    wanted = expected_gradient(logits, indices, options, random_grads(expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-11, atol=1e-12)


def check_budget(logits: Tensor, indices: Tensor, options: RowOptions = PLAIN) -> None:
    """Compare with the definition in float64, by the error that the same definition has at this precision."""
    exact, eager = definition(logits.double(), indices, options), definition(logits, indices, options)
    grads = random_grads(exact)
    statistics, gradient = run(logits, indices, options, grads)
    for actual, yardstick, oracle in zip(statistics[:4], eager, exact, strict=False):
        finite = oracle.isfinite()
        assert torch.equal(actual[~finite].double(), oracle[~finite])
        assert_error_budget(actual[finite], yardstick[finite], oracle[finite])
    assert torch.equal(statistics.argmax, exact.argmax)
    assert_error_budget(
        gradient,
        expected_gradient(logits, indices, options, grads),
        expected_gradient(logits.double(), indices, options, grads),
    )


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("v", "s"), [(1, 3), (7, 5), (8, 0), (100, 1), (1003, 40)])
def test_equals_the_definition(v: int, s: int, name: str, inplace: bool) -> None:
    inputs = make_inputs(2, v, s, dtype=F64, seed=v + s)
    check(inputs.logits, inputs.indices, OPTIONS[name], inplace)


@pytest.mark.parametrize("v", [4 * LANES, 4 * LANES + 1, 9800, 33 * LANES + 5])
def test_rows_of_several_blocks(v: int) -> None:
    inputs = make_inputs(1, v, 40, dtype=F64, ignored=0.0)
    inputs.indices[0, :4] = torch.tensor([v - 1, 3, 0, v - 1])
    check(inputs.logits, inputs.indices, OPTIONS["both"], inplace=True)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("s", [33, 128, 129, 200])
def test_many_slots(s: int, inplace: bool) -> None:
    inputs = make_inputs(1, 150, s, dtype=F64, ignored=0.0)
    check(inputs.logits, inputs.indices, OPTIONS["softcap"], inplace)


def test_many_slots_in_rows_of_several_blocks() -> None:
    inputs = make_inputs(1, 33 * LANES + 7, 150, dtype=F64, ignored=0.0)
    inputs.indices[0, :3] = torch.tensor([33 * LANES + 6, 32 * LANES, 31 * LANES])
    check(inputs.logits, inputs.indices)


def test_listed_classes_that_share_a_lane() -> None:
    v = 36 * LANES  # more blocks than bits in a word
    logits = torch.randn(4, v, dtype=F64, generator=torch.Generator().manual_seed(0)) * 4
    lane = torch.tensor([[5, 0, LANES - 1, 31]]).t()
    blocks = torch.tensor([0, 1, 2, 1, 31, 32, 35, 7])
    indices = (lane + blocks * LANES).int()
    indices[0, 1] = -1
    indices[1, 2:] = LANES * 3 + torch.arange(6)
    check(logits, indices)
    whole = (lane + torch.arange(36) * LANES).int()  # nothing is left of the lane
    check(logits, whole)


@pytest.mark.parametrize("v", [1, 2, 33, 140])
def test_a_rest_of_no_class_or_one(v: int) -> None:
    generator = torch.Generator().manual_seed(v)
    logits = torch.randn(1, v, dtype=F64, generator=generator)
    indices = torch.randperm(v, generator=generator)[None].int()
    assert definition(logits, indices, PLAIN).log_rest == -torch.inf
    check(logits, indices)
    check(logits, indices[:, 1:].contiguous())


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("v", "s"), [(7, 3), (100, 21), (1003, 9), (5003, 64)])
def test_float32_within_the_error_budget(v: int, s: int, name: str) -> None:
    inputs = make_inputs(3, v, s, dtype=F32, seed=v)
    check_budget(inputs.logits, inputs.indices, OPTIONS[name])


def tail(rest: float, dtype: torch.dtype = F32, v: int = 3001, s: int = 21) -> tuple[Tensor, Tensor]:
    """Return logits whose classes beyond s have a mass near `rest` together, and these s classes."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, v, generator=generator, dtype=F64)
    indices = torch.stack([torch.randperm(v, generator=generator)[:s] for _ in range(2)])
    gap = logits.logsumexp(-1) - logits.gather(1, indices).logsumexp(-1) - torch.tensor(rest, dtype=F64).log()
    return logits.scatter_add(1, indices, gap[:, None].expand(-1, s)).to(dtype), indices.int()


@pytest.mark.parametrize("rest", [0.9, 2e-3, 7e-6, 1.4e-8, 1e-9, 1e-30, 1e-300])
@pytest.mark.parametrize("dtype", [F32, F64])
def test_the_rest_is_right_in_the_tail(rest: float, dtype: torch.dtype) -> None:
    logits, indices = tail(rest, dtype)
    grads = (None, torch.tensor([1.0, -0.3], dtype=F64), None, None)
    exact = definition(logits.double(), indices, PLAIN).log_rest
    statistics, gradient = run(logits, indices, PLAIN, grads)
    eps = torch.finfo(dtype).eps
    # Rounded once, by half a unit, and the sum errs as little; in float64 what is exact here is itself rounded.
    budget = eps * (exact.abs() / 2 + 2) if dtype == F32 else 1e-13 * exact.abs().clamp(min=1)
    assert (statistics.log_rest.double() - exact).abs().le(budget).all()
    expected = expected_gradient(logits.double(), indices, PLAIN, grads)
    listed = torch.zeros_like(logits, dtype=torch.bool).scatter(1, indices.long(), True)
    for mask in (listed, ~listed):
        assert relative_error(gradient[mask], expected[mask]) < (1e-6 if dtype == F32 else 1e-12)


@pytest.mark.parametrize("s", [5, 140])
def test_only_the_gradients_that_come_in_are_computed(s: int) -> None:
    options = OPTIONS["both"]
    inputs = make_inputs(2, 60, s, dtype=F64, ignored=0.0)
    statistics, saved = triton_kernels.token_statistics(inputs.logits, inputs.indices, options)
    everything = random_grads(statistics)
    for used in itertools.product([False, True], repeat=4):
        grads = tuple(grad if use else None for grad, use in zip(everything, used, strict=True))
        expected = expected_gradient(inputs.logits, inputs.indices, options, grads)
        gradient = run_backward(
            statistics, saved, inputs.logits, inputs.indices, options, grads, inplace=sum(used) == 2
        )
        torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("s", "junk"), [(4, torch.nan), (4, torch.inf), (4, -torch.inf), (140, torch.nan)])
def test_rows_without_gradients_are_zero_whatever_their_logits(s: int, junk: float) -> None:
    inputs = make_inputs(4, 60, s, dtype=F64, ignored=0.0)
    dirty = inputs.logits.clone()
    dirty[1, ::3], dirty[3] = junk, junk
    grads = random_grads(definition(inputs.logits, inputs.indices, PLAIN))
    for grad in grads:
        grad[[1, 3]] = 0.0
    grads[0][inputs.indices < 0] = torch.nan  # of a slot that holds nothing
    kept = (grads[0].nan_to_num(), *grads[1:])
    for options in (PLAIN, OPTIONS["both"]):
        statistics, saved = triton_kernels.token_statistics(dirty, inputs.indices, options)
        expected = expected_gradient(inputs.logits, inputs.indices, options, kept)
        for inplace in (False, True):
            gradient = run_backward(statistics, saved, dirty, inputs.indices, options, grads, inplace)
            assert gradient[[1, 3]].eq(0).all()
            torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-12)


def test_a_repeated_class_counts_once_and_an_empty_slot_never() -> None:
    logits = torch.randn(2, 50, dtype=F64, generator=torch.Generator().manual_seed(0))
    once = torch.tensor([[3, 49, -1, -1], [0, 7, 8, -1]], dtype=torch.int32)
    more = torch.tensor([[49, 3, 3, 49, 50, -(2**31), 3], [8, 0, 7, 2**31 - 1, -1, 0, 0]], dtype=torch.int32)
    one, other = run(logits, once, PLAIN)[0], run(logits, more, PLAIN)[0]
    for name in ("log_rest", "entropy", "logsumexp", "argmax"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    assert other.log_prob[0, 4:6].eq(0).all()
    assert other.log_prob[1, 3:5].eq(0).all()
    check(logits, more)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_argmax_is_the_first_of_the_largest(dtype: torch.dtype) -> None:
    v = 9 * LANES + 3
    logits = torch.randn(14, v, generator=torch.Generator().manual_seed(3), dtype=F64).to(dtype)
    for row, places in enumerate([(0, 1), (v - 1,), (LANES, LANES - 1), (5 * LANES, 9 * LANES), (4 * LANES + 1, 4)]):
        logits[row, list(places)] = 20.0
    logits[5] = 0.0
    logits[6] = -torch.inf
    logits[7] = torch.finfo(dtype).min
    logits[8] = -torch.inf
    logits[8, 700] = torch.finfo(dtype).min
    logits[9, [1200, 3000]] = torch.inf
    logits[10, [4000, 900]] = torch.nan
    logits[11, 3], logits[11, [2000, 2500]] = torch.inf, torch.nan
    logits[12] = torch.nan
    logits[13] = torch.finfo(dtype).max
    none = torch.empty(14, 0, dtype=torch.int32)
    options = (PLAIN, RowOptions(softcap=0.5), RowOptions(logit_scale=-0.3), RowOptions(logit_scale=1e-30))
    for option in options:  # argmax is that of the logits as they came in
        statistics, _ = triton_kernels.token_statistics(logits, none, option)
        assert torch.equal(statistics.argmax, logits.argmax(-1)), option


def test_logits_of_minus_infinity() -> None:
    inputs = make_inputs(4, 40, 3, dtype=F64, ignored=0.0, empty=0.0)
    inputs.logits[:, 5:9] = -torch.inf
    inputs.logits[1, :39] = -torch.inf  # one class is certain
    inputs.logits[2, 3:] = -torch.inf  # nothing is possible beyond what is listed
    inputs.indices[2] = torch.tensor([0, 1, 2])
    inputs.indices[3, 1] = 6
    check(inputs.logits, inputs.indices)
    statistics, gradient = run(inputs.logits, inputs.indices, PLAIN)
    assert statistics.log_rest[2] == -torch.inf
    assert statistics.log_prob[3, 1] == -torch.inf
    assert statistics.entropy[1] == 0
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [F32, F64])
def test_a_large_common_offset_changes_nothing(dtype: torch.dtype) -> None:
    indices = torch.tensor([[0, 7, -1], [99, 99, 3]], dtype=torch.int32)
    equal = torch.zeros(2, 100, dtype=dtype)
    grads = random_grads(definition(equal, indices, PLAIN))
    expected, gradient = run(equal, indices, PLAIN, grads)
    for offset in (torch.finfo(dtype).min, torch.finfo(dtype).max, -2e38, 1e15):
        statistics, moved = run(torch.full_like(equal, offset), indices, PLAIN, grads)
        for name in ("log_prob", "log_rest", "entropy", "argmax"):
            assert torch.equal(getattr(statistics, name), getattr(expected, name)), (offset, name)
        assert torch.equal(moved, gradient)
    one = torch.full((2, 100), torch.finfo(dtype).min, dtype=dtype)
    one[:, 3] = 0.0
    statistics, gradient = run(one, indices, PLAIN, grads)
    assert statistics.log_prob[:, 2].tolist() == [0, 0]
    assert statistics.entropy.tolist() == [0, 0]
    assert statistics.log_rest[0] == 0
    assert gradient.isfinite().all()


def test_a_nan_is_seen() -> None:
    logits = torch.randn(2, 3000, dtype=F64, generator=torch.Generator().manual_seed(0))
    logits[0, 1700] = torch.nan
    indices = torch.tensor([[1700, 2], [0, 2]], dtype=torch.int32)
    statistics, gradient = run(logits, indices, PLAIN)
    for values in statistics[:4]:
        assert values.isnan().reshape(2, -1).all(-1).tolist() == [True, False]
    assert gradient.isnan().all(-1).tolist() == [True, False]


def test_no_rows() -> None:
    logits, indices = torch.empty(0, 40, dtype=F64), torch.empty(0, 4, dtype=torch.int32)
    statistics, gradient = run(logits, indices, PLAIN)
    assert [tuple(x.shape) for x in statistics] == [(0, 4), (0,), (0,), (0,), (0,)]
    assert statistics.argmax.dtype == torch.int64
    assert gradient.shape == (0, 40)


def test_rows_that_lie_apart_and_a_gradient_of_another_dtype() -> None:
    inputs = make_inputs(4, 60, 5, dtype=F64)
    storage = torch.randn(4, 77, dtype=F64)
    before = storage[:, 60:].clone()
    storage[:, :60] = inputs.logits
    expected, gradient = run(inputs.logits, inputs.indices, OPTIONS["both"])
    statistics, saved = triton_kernels.token_statistics(storage[:, :60], inputs.indices, OPTIONS["both"])
    for one, other in zip(statistics, expected, strict=True):
        assert torch.equal(one, other)
    _, narrow = run(inputs.logits, inputs.indices, OPTIONS["both"], out_dtype=F32)
    assert torch.equal(narrow, gradient.float())
    apart = storage[:, :60]
    grads = StatisticsGradients(*random_grads(expected))
    triton_kernels.token_statistics_backward(grads, apart, inputs.indices, saved, OPTIONS["both"], apart)
    assert torch.equal(apart, gradient)
    assert torch.equal(storage[:, 60:], before), "nothing beside the rows is written"


def test_gradcheck_of_logits_and_of_hidden_states() -> None:
    # gradcheck allocates and compares NaN-filled memory of its own under deterministic algorithms.
    torch.use_deterministic_algorithms(False)
    inputs = make_inputs(2, 11, 4, dtype=F64, ignored=0.0)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 5, dtype=F64, generator=generator).requires_grad_() for n in (2, 11))
    how = {"impl": "triton", "logit_scale": 1.3, "softcap": 4.0}
    assert torch.autograd.gradcheck(
        lambda z: tuple(F.token_statistics(z, inputs.indices, **how)[:4]),
        inputs.logits.clone().requires_grad_(),
        fast_mode=True,
    )
    assert torch.autograd.gradcheck(
        lambda x, w: tuple(F.linear_token_statistics(x, w, inputs.indices, **how, chunk_bytes=11 * 8)[:4]),
        (hidden, weight),
        fast_mode=True,
    )


@given(
    v=st.sampled_from([1, 7, 8, 100, 1003, 2 * LANES]), s=st.sampled_from([0, 1, 3, 33]), n=st.integers(0, 3),
    seed=st.integers(0, 1000), name=st.sampled_from(sorted(OPTIONS)), inplace=st.booleans(),
    scale=st.sampled_from([0.0, 0.1, 3.0, 30.0]), offset=st.sampled_from([0.0, 1e4, -1e4]), far=st.booleans(),
)  # fmt: skip
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_drawn_rows(
    v: int, s: int, n: int, seed: int, name: str, inplace: bool, scale: float, offset: float, far: bool
) -> None:
    inputs = make_inputs(n, v, s, dtype=F64, seed=seed, scale=scale)
    logits, indices = inputs.logits, inputs.indices
    if far and s:  # the listed classes have nearly all the mass
        logits = logits.scatter(1, indices.clamp(min=0).long(), scale * 10)
    if not OPTIONS[name].softcap:
        logits = (logits * 64).round() / 64 + offset
    check(logits, indices, OPTIONS[name], inplace)
