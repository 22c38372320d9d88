"""Jensen-Shannon with the teacher's rest spread evenly: native kernels and the CUDA emulation, and the calls above."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jensen_shannon_cases import OPTIONS, SHAPES, check, check_shift, check_tail, make_case, run

from smoothloss import distillation
from smoothloss.backends import native, unavailable
from smoothloss.distillation import Teacher

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
needs_native = pytest.mark.skipif(
    unavailable("native", "cpu", torch.float32) is not None, reason="the C++ kernels are not built"
)


@needs_native
@given(
    shape=st.sampled_from(SHAPES), dtype=st.sampled_from(DTYPES), name=st.sampled_from(sorted(OPTIONS)),
    beta=st.sampled_from([0.02, 0.5, 0.9]), inplace=st.booleans(), spread=st.sampled_from([0.0, 3.0, 30.0]),
    seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_native_kernels_are_their_definition(
    shape: tuple[int, int], dtype: torch.dtype, name: str, beta: float, inplace: bool, spread: float, seed: int
) -> None:
    check(native, *shape, dtype, name, beta=beta, inplace=inplace, spread=spread, seed=seed)


@needs_native
@pytest.mark.parametrize("isa", native.instruction_sets())
def test_every_instruction_set(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMOOTHLOSS_ISA", isa)
    for dtype in DTYPES:
        check(native, 2049, 64, dtype, "softcap")
    check_shift(native, torch.float32)
    check_tail(native, torch.float32)
    check_tail(native, torch.float64)


@pytest.mark.usefixtures("native_on_emulated_cuda")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.sampled_from(SHAPES), dtype=st.sampled_from([*DTYPES, torch.float16]),
    name=st.sampled_from(sorted(OPTIONS)), inplace=st.booleans(), seed=st.integers(0, 1000),
)  # fmt: skip
def test_cuda_kernels_are_their_definition(
    shape: tuple[int, int], dtype: torch.dtype, name: str, inplace: bool, seed: int
) -> None:
    check(native, *shape, dtype, name, beta=0.3, inplace=inplace, seed=seed)


@pytest.mark.usefixtures("native_on_emulated_cuda")
def test_cuda_kernels_keep_a_small_tail() -> None:
    check_shift(native, torch.float32)
    check_tail(native, torch.float32)
    check_tail(native, torch.float64)


@needs_native
def test_the_same_bits_every_time() -> None:
    logits, teacher = make_case(9, 3000, 40, torch.float32)
    grad = torch.ones(9)
    first, second = (run(native, logits, teacher, 0.5, OPTIONS["plain"], grad, inplace=False) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def make_problem(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Teacher]:
    generator = torch.Generator().manual_seed(4)
    shapes = ((3, 6, 5), (70, 5), (70,))
    hidden, weight, bias = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes)
    full = Teacher.from_logits(2 * torch.randn(3, 6, 70, generator=generator), 9)
    indices = full.indices.clone()
    indices[0, 0] = -1
    indices[1, :, 3] = -1
    return hidden, weight, bias, Teacher(indices, full.log_probs, full.log_rest)


@needs_native
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "softcap": 4.0, "beta": 0.2}])
def test_hidden_states_have_the_loss_and_gradients_of_their_logits(reduction: str, options: dict[str, Any]) -> None:
    hidden, weight, bias, teacher = make_problem()
    how: dict[str, Any] = {"divergence": "jensen_shannon", "missing": "uniform", "reduction": reduction, **options}
    leaves = (hidden, weight, bias)

    def answers(loss: torch.Tensor) -> tuple[torch.Tensor, ...]:
        incoming = torch.linspace(0.5, 2, loss.numel(), dtype=loss.dtype).view(loss.shape)
        return loss, *torch.autograd.grad(loss, leaves, incoming)

    logits = torch.nn.functional.linear(hidden, weight, bias)
    expected = answers(distillation.loss(logits, teacher, impl="reference", **how))
    chunks = 3 * 70 * 8  # a few rows at a time
    actual = answers(
        distillation.linear_loss(hidden, weight, teacher, linear_bias=bias, chunk_bytes=chunks, impl="native", **how)
    )
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    narrow = tuple(leaf.detach().bfloat16().requires_grad_() for leaf in leaves)
    loss = distillation.linear_loss(narrow[0], narrow[1], teacher, linear_bias=narrow[2], impl="native", **how)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected[0], rtol=0.1, atol=0.02)


@needs_native
def test_positions_without_a_teacher_may_hold_anything() -> None:
    hidden, weight, _, teacher = make_problem()
    spoiled = hidden.detach().clone()
    spoiled[0, 0] = torch.nan
    spoiled.requires_grad_()
    loss = distillation.linear_loss(spoiled, weight, teacher, divergence="jensen_shannon", missing="uniform")
    gradients = torch.autograd.grad(loss, (spoiled, weight))
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0][0, 0] == 0).all()


@needs_native
def test_under_a_compiler_a_transform_and_twice() -> None:
    hidden, weight, bias, teacher = make_problem()
    how: dict[str, Any] = {"divergence": "jensen_shannon", "missing": "uniform", "impl": "native"}

    def loss(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return distillation.linear_loss(hidden, weight, teacher, linear_bias=bias.detach(), **how)

    expected = torch.autograd.grad(loss(hidden, weight), (hidden, weight))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(hidden, weight), (hidden, weight)), expected)
    torch.testing.assert_close(torch.func.grad(loss, (0, 1))(hidden.detach(), weight.detach()), expected)
    gradient = torch.autograd.grad(loss(hidden, weight), hidden, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="double backward"):
        gradient.sum().backward()
    losses = distillation.linear_loss(hidden, weight, teacher, reduction="none", **how)
    several = torch.eye(losses.numel(), dtype=losses.dtype).view(-1, *losses.shape)[3:6]
    batched = torch.autograd.grad(losses, weight, several, is_grads_batched=True, retain_graph=True)[0]
    singly = torch.stack([torch.autograd.grad(losses, weight, one, retain_graph=True)[0] for one in several])
    torch.testing.assert_close(batched, singly)
