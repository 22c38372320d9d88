"""Token statistics, every implementation against their definition in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quick import slow_but
from torch import Tensor

import smoothloss
import smoothloss.functional as F
from smoothloss import TokenStatistics
from smoothloss.backends import unavailable
from smoothloss.backends.common import RowOptions, StatisticsGradients
from smoothloss.testing import (
    assert_error_budget,
    make_inputs,
    random_gradients,
    relative_error,
    statistics_gradient,
)

OPTIONS = {"plain": RowOptions(), "scale": RowOptions(logit_scale=1.7), "softcap": RowOptions(0, 0, 0, 1.3, 4.0)}
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DIFFERENTIABLE = ("log_prob", "log_rest", "entropy", "logsumexp")
# torch's tracers still script methods and instantiate autograd functions.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script"),
]
HYPOTHESIS = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def keywords(options: RowOptions) -> dict[str, float | None]:
    return {"logit_scale": options.logit_scale, "softcap": options.softcap or None}


def pulled(statistics: TokenStatistics, leaf: Tensor, grads: StatisticsGradients) -> Tensor:
    """Return what comes back to a leaf for those gradients that there are."""
    used = [(value, grad) for value, grad in zip(statistics, grads, strict=False) if grad is not None]
    return torch.autograd.grad([value for value, _ in used], leaf, [grad for _, grad in used])[0]


def run(
    logits: Tensor, indices: Tensor, options: RowOptions, grads: StatisticsGradients, impl: str
) -> tuple[TokenStatistics, Tensor]:
    leaf = logits.clone().requires_grad_()
    statistics = F.token_statistics(leaf, indices, impl=impl, **keywords(options))
    gradient = pulled(statistics, leaf, grads)
    return TokenStatistics(*(value.detach() for value in statistics)), gradient


def assert_budget(actual: TokenStatistics, yardstick: TokenStatistics, oracle: TokenStatistics) -> None:
    for name in DIFFERENTIABLE:
        mine, eager, exact = (getattr(values, name) for values in (actual, yardstick, oracle))
        finite = exact.isfinite()
        assert torch.equal(mine[~finite].double(), exact[~finite]), name
        assert_error_budget(mine[finite], eager[finite], exact[finite])
    assert torch.equal(actual.argmax, oracle.argmax)


@pytest.mark.parametrize("name", slow_but(("plain", "softcap"), OPTIONS))
@pytest.mark.parametrize("dtype", slow_but((torch.float32, torch.bfloat16), DTYPES))
@pytest.mark.usefixtures("poison")
def test_equal_the_definition(impl: str, dtype: torch.dtype, name: str) -> None:
    reason = unavailable(impl, "cpu", dtype)
    if reason is not None:
        pytest.skip(reason)
    for classes, slots in ((203, 9), (9800, 64), (2500, 1)):
        logits, indices, weights, _ = make_inputs(13, classes, slots, dtype=dtype)
        grads = random_gradients(indices, weights.dtype)
        actual, gradient = run(logits, indices, OPTIONS[name], grads, impl)
        oracle, expected = statistics_gradient(logits, indices, OPTIONS[name], grads, torch.float64)
        yardstick, eager = statistics_gradient(logits, indices, OPTIONS[name], grads, dtype)
        assert {value.dtype for value in actual[:4]} == {weights.dtype}
        assert actual.argmax.dtype == torch.int64
        if dtype == torch.float64:
            torch.testing.assert_close(tuple(actual), tuple(oracle), rtol=1e-11, atol=1e-13)
        else:
            assert_budget(actual, yardstick, oracle)
        assert gradient.dtype == dtype
        assert_error_budget(gradient, eager, expected)


@given(
    v=st.sampled_from([1, 7, 8, 100, 1003, 2048, 2049, 9800]), n=st.integers(0, 5), s=st.integers(0, 20),
    seed=st.integers(0, 2**20), name=st.sampled_from(list(OPTIONS)),
    used=st.lists(st.booleans(), min_size=4, max_size=4).filter(any), wide=st.booleans(),
)  # fmt: skip
@settings(max_examples=60, **HYPOTHESIS)
def test_any_shape_and_any_of_the_gradients(
    impl: str, v: int, n: int, s: int, seed: int, name: str, used: list[bool], wide: bool
) -> None:
    logits, indices, _, _ = make_inputs(n, v, s, dtype=torch.float64, seed=seed)
    indices = indices.long() if wide else indices
    every = random_gradients(indices, torch.float64, seed=seed)
    grads = StatisticsGradients(*(grad if use else None for grad, use in zip(every, used, strict=True)))
    actual, gradient = run(logits, indices, OPTIONS[name], grads, impl)
    oracle, expected = statistics_gradient(logits, indices, OPTIONS[name], grads, torch.float64)
    torch.testing.assert_close(tuple(actual), tuple(oracle), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("classes", [1, 5, 1003, 4100])
def test_slots_that_name_every_class(impl: str, classes: int) -> None:
    logits = torch.randn(3, classes, dtype=torch.float64)
    indices = torch.stack([torch.randperm(classes) for _ in range(3)])
    grads = random_gradients(indices, torch.float64)
    actual, gradient = run(logits, indices, RowOptions(), grads, impl)
    oracle, expected = statistics_gradient(logits, indices, RowOptions(), grads, torch.float64)
    assert actual.log_rest.eq(-torch.inf).all()
    torch.testing.assert_close(tuple(actual), tuple(oracle))
    torch.testing.assert_close(gradient, expected)
    _, gradient = run(logits, indices, RowOptions(), StatisticsGradients(None, grads.log_rest, None, None), impl)
    assert gradient.eq(0).all()


def with_a_rest_of(log_rest: float, slots: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return logits whose first classes hold all but about ``exp(log_rest)`` of the mass, and these classes."""
    generator = torch.Generator().manual_seed(slots)
    logits = torch.randn(4, 20000, generator=generator, dtype=torch.float64)
    logits[:, :slots] -= logits[:, :slots].logsumexp(-1, keepdim=True)
    logits[:, slots:] += log_rest - logits[:, slots:].logsumexp(-1, keepdim=True)
    order = torch.randperm(20000, generator=generator)
    place = torch.empty_like(order)
    place[order] = torch.arange(20000)
    return logits[:, order].to(dtype), place[:slots].expand(4, slots)


@pytest.mark.slow
@given(depth=st.floats(0.0, 1.0), slots=st.sampled_from([1, 8, 64]))
@settings(max_examples=25, **HYPOTHESIS)
def test_a_small_rest_keeps_its_mass_and_its_gradient(impl: str, depth: float, slots: int) -> None:
    for log_rest in (-20.7 * depth, -20.7 - 1000 * depth):
        logits, indices = with_a_rest_of(log_rest, slots, torch.float32)
        grads = StatisticsGradients(None, torch.tensor([1.0, -0.3, 2.0, 0.7]), None, None)
        actual, gradient = run(logits, indices, RowOptions(), grads, impl)
        oracle, expected = statistics_gradient(logits, indices, RowOptions(), grads, torch.float64)
        # Its logarithm is a float32 number: what is known of the mass is its distance to the next one.
        known = max(1e-6, 1.2e-7 * float(oracle.log_rest.abs().max()))
        assert ((actual.log_rest.double() - oracle.log_rest).exp() - 1).abs().max() <= known
        assert relative_error(gradient, expected) <= 1e-6


def test_a_class_that_holds_nearly_everything_keeps_what_it_lacks(impl: str) -> None:
    if impl == "reference":
        pytest.skip("the reference adds up all classes at once")
    logits, indices = with_a_rest_of(-16.0, 1, torch.float32)
    grads = StatisticsGradients(torch.ones(4, 1), None, None, None)
    actual, gradient = run(logits, indices, RowOptions(), grads, impl)
    oracle, expected = statistics_gradient(logits, indices, RowOptions(), grads, torch.float64)
    assert relative_error(actual.log_prob, oracle.log_prob) <= 1e-5
    assert relative_error(gradient, expected) <= 1e-5


@given(
    offset=st.one_of(st.just(0.0), st.floats(1.0, 3.4e38), st.floats(-3.4e38, -1.0)), s=st.integers(0, 5),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=40, **HYPOTHESIS)
def test_a_common_offset_changes_nothing_but_logsumexp(impl: str, offset: float, s: int, seed: int) -> None:
    logits, indices, _, _ = make_inputs(3, 103, s, seed=seed)
    moved = logits + torch.tensor(offset)
    exact = moved.double() - moved.double()[:, :1]  # the same logits without the offset
    grads = random_gradients(indices, torch.float32)
    actual, gradient = run(moved, indices, RowOptions(), grads, impl)
    oracle, expected = statistics_gradient(exact, indices, RowOptions(), grads, torch.float64)
    for name in ("log_prob", "log_rest", "entropy"):
        torch.testing.assert_close(getattr(actual, name).double(), getattr(oracle, name), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(gradient.double(), expected, rtol=2e-5, atol=2e-6)
    torch.testing.assert_close(actual.logsumexp, moved.double().logsumexp(-1).float(), rtol=2e-7, atol=1e-6)


@pytest.mark.parametrize("lowest", [-torch.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("name", ["plain", "scale"])
def test_rows_of_nothing_but_a_few_classes(impl: str, name: str, lowest: float) -> None:
    for kept in (1, 7):
        logits, indices, _, _ = make_inputs(4, 2100, 9, seed=kept, empty=0.0, ignored=0.0)
        logits[:, kept:] = lowest
        for slots in (indices % kept, indices, indices % kept + kept):
            grads = random_gradients(slots, torch.float32)
            in_range = slots < kept
            statistics, gradient = run(logits, slots, OPTIONS[name], grads, impl)
            clean = logits[:, :kept].clone(), slots.where(in_range, -1)
            oracle, expected = statistics_gradient(*clean, OPTIONS[name], grads, torch.float64)
            torch.testing.assert_close(statistics.entropy.double(), oracle.entropy, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(statistics.logsumexp.double(), oracle.logsumexp)
            torch.testing.assert_close(
                statistics.log_prob[in_range].double(), oracle.log_prob[in_range], rtol=1e-5, atol=1e-6
            )
            assert torch.equal(statistics.argmax, oracle.argmax)
            assert gradient[:, :kept].isfinite().all()
            if lowest == -torch.inf:  # what is named and impossible takes its gradient all the same
                rest = StatisticsGradients(None, *grads[1:])
                assert run(logits, slots, OPTIONS[name], rest, impl)[1][:, kept:].eq(0).all()
                assert statistics.log_prob[~in_range].eq(-torch.inf).all()
                used = StatisticsGradients(grads.log_prob * in_range, *grads[1:])
                _, expected = statistics_gradient(*clean, OPTIONS[name], used, torch.float64)
                _, gradient = run(logits, slots, OPTIONS[name], used, impl)
                torch.testing.assert_close(gradient[:, :kept].double(), expected, rtol=1e-5, atol=1e-6)


def test_the_first_of_the_largest(impl: str) -> None:
    logits = torch.zeros(7, 5000)
    logits[1, [4999, 2047, 2048]] = 1.0
    logits[2] = -torch.inf
    logits[3, 30], logits[3, 4000:] = -0.0, 0.0
    logits[4, 77], logits[4, 5] = torch.nan, 9.0
    logits[5, [3000, 20]] = torch.inf
    logits[6, 4990:] = torch.finfo(torch.float32).max
    indices = torch.full((7, 1), 2047)
    assert torch.equal(F.token_statistics(logits, indices, impl=impl).argmax, logits.argmax(-1))


def test_what_nothing_comes_back_for_may_hold_anything(impl: str) -> None:
    logits, indices, _, _ = make_inputs(4, 50, 4, dtype=torch.float64, ignored=0.0, empty=0.3)
    grads = random_gradients(indices, torch.float64)
    for grad in grads:
        assert grad is not None
        grad[1] = 0.0
    expected = run(logits, indices, OPTIONS["softcap"], grads, impl)[1]
    if impl == "reference":
        pytest.skip("plain torch code multiplies NaN by 0")
    logits[1] = torch.nan
    assert torch.equal(run(logits, indices, OPTIONS["softcap"], grads, impl)[1], expected)
    assert expected[1].eq(0).all()


def test_unused_outputs_cost_nothing(impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if impl == "reference":
        pytest.skip("plain torch code")
    from smoothloss import backends

    seen: list[StatisticsGradients] = []
    kernels = backends.kernels(impl)
    original = kernels.token_statistics_backward

    def recorded(grads: StatisticsGradients, *rest: object) -> None:
        seen.append(grads)
        original(grads, *rest)

    monkeypatch.setattr(kernels, "token_statistics_backward", recorded)
    logits, indices, _, _ = make_inputs(4, 50, 4)
    statistics = F.token_statistics(logits.requires_grad_(), indices, impl=impl)
    for name in DIFFERENTIABLE:
        torch.autograd.grad(getattr(statistics, name).sum(), logits, retain_graph=True)
        assert [field for field, grad in seen.pop()._asdict().items() if grad is not None] == [name]
    assert not statistics.argmax.requires_grad


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "columns of a wider tensor": lambda x: torch.cat((x, x, x), 1)[:, x.shape[1] : 2 * x.shape[1]],
    "every second column": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "transposed": lambda x: x.t().contiguous().t(),
    "expanded": lambda x: x[:1].expand(x.shape),
    "overlapping": lambda x: x.flatten().unfold(0, x.shape[1], 1)[: x.shape[0]],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_layout_is_of_no_account(impl: str, dtype: torch.dtype, layout: str) -> None:
    if unavailable(impl, "cpu", dtype):
        pytest.skip("not in this dtype")
    logits, indices, weights, _ = make_inputs(4, 53, 3, dtype=dtype)
    grads, results = random_gradients(indices, weights.dtype), []
    for lay_out in (LAYOUTS[layout], lambda x: LAYOUTS[layout](x).clone(memory_format=torch.contiguous_format)):
        leaf = logits.clone().requires_grad_()
        spread = indices.repeat_interleave(2, 1)[:, ::2]
        statistics = F.token_statistics(lay_out(leaf * 1), spread, impl=impl)
        results.append((*statistics, pulled(statistics, leaf, grads)))
    torch.testing.assert_close(results[0], results[1])


def test_shapes_of_positions(impl: str) -> None:
    logits, indices, _, _ = make_inputs(6, 20, 3)
    flat = F.token_statistics(logits, indices, impl=impl)
    for shape in ((2, 3), (1, 6), (3, 1, 2)):
        shaped = F.token_statistics(logits.reshape(*shape, 20), indices.reshape(*shape, 3), impl=impl)
        assert shaped.log_prob.shape == (*shape, 3)
        for mine, theirs in zip(shaped, flat, strict=True):
            assert torch.equal(mine.reshape(theirs.shape), theirs)
    one = F.token_statistics(logits[2], indices[2], impl=impl)
    assert [value.shape for value in one] == [(3,), (), (), (), ()]
    assert torch.equal(one.log_prob, flat.log_prob[2])


@pytest.mark.parametrize("name", slow_but(("softcap",), OPTIONS))
def test_gradcheck(impl: str, name: str) -> None:
    logits, indices, _, _ = make_inputs(5, 13, 6, dtype=torch.float64, ignored=0.0)
    function = lambda z: tuple(F.token_statistics(z, indices, impl=impl, **keywords(OPTIONS[name]))[:4])  # noqa: E731
    assert torch.autograd.gradcheck(function, logits.requires_grad_(), check_batched_grad=True)
    if impl == "reference":
        assert torch.autograd.gradgradcheck(function, logits)


def test_double_backward_of_kernels_is_refused(impl: str) -> None:
    if impl == "reference":
        pytest.skip("it has one")
    logits, indices, _, _ = make_inputs(5, 13, 6)
    statistics = F.token_statistics(logits.requires_grad_(), indices, impl=impl)
    (grad,) = torch.autograd.grad(statistics.entropy.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        grad.sum().backward()


def test_a_second_backward_through_a_retained_graph(impl: str) -> None:
    logits, indices, _, _ = make_inputs(5, 13, 6)
    statistics = F.token_statistics(logits.requires_grad_(), indices, impl=impl)
    total = statistics.entropy.sum() + statistics.log_prob.sum()
    first = torch.autograd.grad(total, logits, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(total, logits)[0])


def test_torch_func(impl: str) -> None:
    logits, indices, _, _ = make_inputs(4, 7, 3, dtype=torch.float64, ignored=0.0)
    indices = indices.long()
    grads = random_gradients(indices, torch.float64)
    function = lambda z: tuple(F.token_statistics(z, indices, impl=impl)[:4])  # noqa: E731
    expected = run(logits, indices, RowOptions(), grads, impl)[1]
    _, pull = torch.func.vjp(function, logits)
    torch.testing.assert_close(pull(tuple(grads))[0], expected)
    jacobian = torch.func.jacrev(function)(logits)
    exact = torch.func.jacfwd(lambda z: tuple(F.token_statistics(z, indices, impl="reference")[:4]))(logits)
    torch.testing.assert_close(jacobian, exact)


@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_forward_mode_and_vmap_take_the_reference(impl: str) -> None:
    logits, indices, _, _ = make_inputs(4, 7, 3, dtype=torch.float64, ignored=0.0)
    function = lambda z: F.token_statistics(z, indices, impl=impl)[:4]  # noqa: E731
    _, tangents = torch.func.jvp(function, (logits,), (torch.ones_like(logits),))
    for name, tangent in zip(DIFFERENTIABLE, tangents, strict=True):
        expected = torch.ones_like(tangent) if name == "logsumexp" else torch.zeros_like(tangent)
        torch.testing.assert_close(tangent, expected)
    batch = torch.stack((logits, -logits))
    torch.testing.assert_close(
        torch.func.vmap(function)(batch), tuple(map(torch.stack, zip(*map(function, batch), strict=True)))
    )
    mapped = torch.func.vmap(lambda z, i: F.token_statistics(z, i, impl=impl))(batch, indices.expand(2, 4, 3))
    torch.testing.assert_close(tuple(mapped[:4]), torch.func.vmap(function)(batch))
    per_sample = torch.func.vmap(torch.func.grad(lambda z: function(z)[2].sum()))(batch)
    torch.testing.assert_close(per_sample[1], torch.func.grad(lambda z: function(z)[2].sum())(-logits))


def test_compiled_whole(impl: str) -> None:
    logits, indices, _, _ = make_inputs(4, 7, 3, dtype=torch.float32, ignored=0.0)

    def loss(z: Tensor) -> Tensor:
        statistics = F.token_statistics(z, indices, logit_scale=0.7, impl=impl)
        return statistics.log_prob.sum() - 0.1 * statistics.entropy.sum() + statistics.log_rest.exp().sum()

    results = []
    for function in (torch.compile(loss, fullgraph=True, backend="aot_eager"), loss):
        leaf = logits.clone().requires_grad_()
        value = function(leaf)
        results.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    torch.testing.assert_close(results[0], results[1])


def test_exported_with_a_dynamic_batch(impl: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, z: Tensor, i: Tensor) -> tuple[Tensor, ...]:
            return tuple(F.token_statistics(z, i, impl=impl))

    logits, indices, _, _ = make_inputs(4, 7, 3)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Module(), (logits, indices), dynamic_shapes=({0: batch}, {0: batch}))
    more, slots, _, _ = make_inputs(9, 7, 3)
    torch.testing.assert_close(program.module()(more, slots), tuple(F.token_statistics(more, slots, impl=impl)))


def test_opcheck(impl: str) -> None:
    if impl == "reference":
        pytest.skip("the reference is plain torch code, no operator")
    logits, indices, weights, _ = make_inputs(5, 13, 6)
    ops = torch.ops.smoothloss
    arguments = (logits.requires_grad_(), indices, 1.3, 4.0, impl)
    torch.library.opcheck(ops.token_statistics, arguments)
    saved = ops.token_statistics(*arguments)[-1].detach()
    for used in itertools.product((True, False), repeat=4):
        grads = [
            grad if use else None for grad, use in zip(random_gradients(indices, weights.dtype), used, strict=True)
        ]
        if any(used):
            torch.library.opcheck(
                ops.token_statistics_backward, (*grads, logits.detach(), indices, saved, 1.3, 4.0, impl),
                test_utils=("test_schema", "test_faketensor"),
            )  # fmt: skip


@pytest.mark.parametrize("compiled", [False, True])
def test_an_index_out_of_range_is_named(impl: str, compiled: bool) -> None:
    if impl == "triton":
        pytest.skip("an empty slot")
    logits, indices = torch.zeros(2, 3, 7), torch.zeros(2, 3, 2, dtype=torch.int64)
    indices[1, 2, 1] = 7
    function = lambda z: F.token_statistics(z, indices, impl=impl).log_prob  # noqa: E731
    if compiled:
        function = torch.compile(function, fullgraph=True, backend="aot_eager")
    place = r"indices\[5, 1\]" if compiled else r"indices\[1, 2, 1\]"
    with pytest.raises(IndexError, match=place + ": got 7, expected an index below 7"):
        function(logits)


def test_autocast_casts_nothing(impl: str) -> None:
    logits, indices, _, _ = make_inputs(4, 53, 3)
    expected = F.token_statistics(logits, indices, impl=impl)
    with torch.autocast("cpu", torch.bfloat16):
        actual = F.token_statistics(logits, indices, impl=impl)
    assert all(map(torch.equal, actual, expected))


def test_arguments_that_are_wrong() -> None:
    logits, indices = torch.zeros(2, 3, 7), torch.zeros(2, 3, 2, dtype=torch.int64)
    for error, message, call in (
        (TypeError, "input: got list", lambda: F.token_statistics([1.0], indices)),
        (TypeError, "input: got torch.int64", lambda: F.token_statistics(indices, indices)),
        (TypeError, "indices: got torch.float32", lambda: F.token_statistics(logits, logits)),
        (ValueError, r"indices: got .*, expected \(2, 3, S\)", lambda: F.token_statistics(logits, indices[0])),
        (ValueError, "logit_scale: got 0", lambda: F.token_statistics(logits, indices, logit_scale=0)),
        (ValueError, "softcap: got -1", lambda: F.token_statistics(logits, indices, softcap=-1)),
        (ValueError, "impl: got 'best'", lambda: F.token_statistics(logits, indices, impl="best")),
        (ValueError, r"linear_weight: got shape", lambda: F.linear_token_statistics(logits, logits[0, :, :3], indices)),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()


def test_it_is_public() -> None:
    assert smoothloss.TokenStatistics is F.TokenStatistics is TokenStatistics
    assert TokenStatistics._fields == (*DIFFERENTIABLE, "argmax")
    assert not hasattr(F, "logsumexp_and_select")
