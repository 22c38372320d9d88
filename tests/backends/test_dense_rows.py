"""Dense rows that positions mix: the C++ kernels and the reference against the dense definition, and exact tails."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import smoothloss.functional as F
from smoothloss.backends import native, reference
from smoothloss.backends.common import RowOptions
from smoothloss.ops import cross_entropy, linear_layer
from smoothloss.testing import (
    Inputs,
    assert_error_budget,
    dense_loss,
    make_dense_rows,
    make_inputs,
    make_table,
    mixed_target,
    row_target,
)

OPTIONS = {
    "plain": RowOptions(),
    "label_smoothing": RowOptions(label_smoothing=0.1),
    "scale": RowOptions(logit_scale=1.7),
    "softcap": RowOptions(softcap=4.0),
    "all": RowOptions(0.1, 0.3, 0.01, 1.7, 4.0),
}
pytestmark = pytest.mark.usefixtures("poison")


def definition(
    inputs: Inputs, target: Tensor, options: RowOptions, grad: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    logits = inputs.logits.to(dtype).requires_grad_()
    loss = dense_loss(logits, target, options)
    return loss.detach(), torch.autograd.grad(loss, logits, grad.to(loss.dtype))[0]


@pytest.fixture(params=native.instruction_sets())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SMOOTHLOSS_ISA", request.param)
    return str(request.param)


# Less than a vector, vectors and a rest, one block, several blocks with a rest.
@pytest.mark.slow
@pytest.mark.parametrize(("v", "s", "u", "j"), [(7, 2, 2, 2), (45, 4, 3, 1), (1003, 0, 4, 3), (4500, 9, 5, 6)])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("isa")
def test_native_equals_the_dense_definition(dtype: torch.dtype, name: str, v: int, s: int, u: int, j: int) -> None:
    options = OPTIONS[name]
    inputs = make_inputs(23, v, s, dtype=dtype, seed=v + s, uniform=s == 9)
    dense = make_dense_rows(inputs, u, j)
    grad = torch.randn(23, generator=torch.Generator().manual_seed(3)).to(inputs.weights.dtype)
    target = mixed_target(inputs, dense)
    truth = definition(inputs, target, options, grad, torch.float64)
    yardstick = definition(inputs, target, options, grad, dtype)
    rows = row_target(inputs, dense)
    loss, statistics, mass, _ = native.forward(inputs.logits, rows, options, "none")
    torch.testing.assert_close(mass.double(), target.sum(-1), rtol=1e-5, atol=1e-6)
    out = torch.full_like(inputs.logits, torch.nan)
    native.backward(grad, None, inputs.logits, statistics, rows, options, out)
    over = inputs.logits.clone()
    native.backward(grad, None, over, statistics, rows, options, over)
    assert torch.equal(out, over)
    assert_error_budget(loss, yardstick[0], truth[0])
    assert_error_budget(out, yardstick[1], truth[1])
    ones = torch.ones_like(grad)
    one = torch.full_like(inputs.logits, torch.nan)
    (loss, *_), _ = native.forward_backward(inputs.logits, rows, options, one, "none")
    truth, yardstick = (definition(inputs, target, options, ones, kind) for kind in (torch.float64, dtype))
    assert_error_budget(loss, yardstick[0], truth[0])
    assert_error_budget(one, yardstick[1], truth[1])


@pytest.mark.parametrize("name", OPTIONS)
def test_the_reference_equals_the_dense_definition(name: str) -> None:
    inputs = make_inputs(9, 33, 4, dtype=torch.float64, uniform=True)
    dense = make_dense_rows(inputs, 5, 3)
    loss = reference.forward(inputs.logits, row_target(inputs, dense), OPTIONS[name], "none").loss
    torch.testing.assert_close(loss, dense_loss(inputs.logits, mixed_target(inputs, dense), OPTIONS[name]))


def test_what_has_no_probability_has_no_influence() -> None:
    inputs = make_inputs(3, 40, 0)
    inputs.logits[:, 7] = -torch.inf
    dense = make_dense_rows(inputs, 2, 2)
    dense.values[:, 7] = 0
    dense.rows[0] = -1  # a row without mass
    rows = row_target(inputs, dense)
    loss, statistics, *_ = native.forward(inputs.logits, rows, RowOptions(), "none")
    out = torch.full_like(inputs.logits, torch.nan)
    native.backward(torch.ones(1), torch.tensor(0.5), inputs.logits, statistics, rows, RowOptions(), out)
    assert loss.isfinite().all()
    assert out.isfinite().all()
    assert loss[0] == 0
    assert not out[0].any()
    full = torch.full_like(out, torch.nan)
    native.forward_backward(inputs.logits, rows, RowOptions(), full, "none")
    torch.testing.assert_close(out, full / 2)


@pytest.mark.parametrize("memory", ["fast", "low"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_exact_tails_in_chunks_equal_the_reference(
    reduction: str, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However small the budget for dense rows, and whatever the dtype, forward and backward."""
    num_tokens = 90
    table = make_table(num_tokens, tail="exact")
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(37, 12, generator=generator)
    weight = torch.randn(num_tokens, 12, generator=generator)
    target = torch.randint(num_tokens, (37,), generator=generator)
    target[5] = -100
    monkeypatch.setitem(linear_layer.DEFAULT_CHUNK_BYTES, "cpu", 5 * num_tokens * 4)
    monkeypatch.setitem(cross_entropy.SOURCE_BYTES, "cpu", 5 * num_tokens * 4)

    def run(impl: str) -> list[Tensor]:
        results = []
        leaves = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        options = {"table": table, "alpha": 0.4, "label_smoothing": 0.1, "reduction": reduction, "impl": impl}
        for linear in (True, False):
            if linear:
                loss = F.linear_cross_entropy(*leaves, target, memory=memory, **options)
            else:
                loss = F.cross_entropy(torch.nn.functional.linear(*leaves), target, **options)
            results += [loss.detach(), *torch.autograd.grad(loss.sum(), leaves)]
        return results

    for ours, theirs in zip(run("native"), run("reference"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
