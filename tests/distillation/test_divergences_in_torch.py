"""Divergences in torch's own ways: dtypes, autocast, compilers, transforms; their memory; and what is refused."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from divergence_definitions import CELLS, divergence_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from smoothloss import distillation
from smoothloss.backends import unavailable
from smoothloss.distillation import Teacher
from smoothloss.testing import assert_error_budget, relative_error

# torch.func still scripts methods.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script")
cells = pytest.mark.parametrize(("divergence", "missing"), CELLS)
OVER_ALL = ("jensen_shannon", "uniform")
N, V, D, K = 5, 13, 4, 3


def teacher_of(dtype: torch.dtype = torch.float32) -> Teacher:
    """Return a teacher with an empty slot, and with a position that has none."""
    teacher = Teacher.from_logits(torch.randn(N, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64), K)
    indices = teacher.indices.clone()
    indices[1, 2], indices[3] = -1, -1
    assert teacher.log_rest is not None
    return Teacher(indices, teacher.log_probs.to(dtype), teacher.log_rest.to(dtype))


TEACHER = teacher_of()


def layer(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(rows, D, generator=generator, dtype=torch.float64) for rows in (N, V))
    return hidden.to(dtype), weight.to(dtype)


def on_hidden(hidden: Tensor, weight: Tensor, **options: Any) -> Tensor:
    return distillation.linear_loss(hidden, weight, TEACHER, **options)


def on_logits(hidden: Tensor, weight: Tensor, **options: Any) -> Tensor:
    return distillation.loss(hidden @ weight.t(), TEACHER, **options)


versions = pytest.mark.parametrize("version", [on_logits, on_hidden])


def gradients(loss: Callable[..., Tensor], *layer: Tensor) -> tuple[Tensor, ...]:
    leaves = tuple(tensor.clone().requires_grad_() for tensor in layer)
    return torch.autograd.grad(loss(*leaves).sum(), leaves)


# ---- dtypes


@pytest.mark.slow
@cells
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_error_is_at_most_twice_that_of_plain_pytorch(
    impl: str, divergence: str, missing: str, dtype: torch.dtype
) -> None:
    kind = "reference" if unavailable(impl, "cpu", dtype) else impl
    teacher = Teacher.from_logits(3 * torch.randn(64, 300, generator=torch.Generator().manual_seed(3)), 16)
    logits = (3 * torch.randn(64, 300, generator=torch.Generator().manual_seed(2))).to(dtype)
    leaf = logits.clone().requires_grad_()
    loss = distillation.loss(leaf, teacher, divergence=divergence, missing=missing, reduction="none", impl=kind)
    (grad,) = torch.autograd.grad(loss.sum(), leaf)
    assert loss.dtype == torch.float32 and grad.dtype == dtype
    eager, oracle = [], []
    for results, cast in ((eager, torch.float32), (oracle, torch.float64)):
        wide = logits.to(cast).requires_grad_()
        value = divergence_of(wide, teacher, divergence, missing)
        results += [value.detach(), torch.autograd.grad(value.sum(), wide)[0]]
    assert_error_budget(loss.detach(), eager[0], oracle[0])
    assert_error_budget(grad, eager[1].to(dtype), oracle[1])


@cells
@versions
def test_autocast(divergence: str, missing: str, version: Callable[..., Tensor]) -> None:
    options = {"divergence": divergence, "missing": missing}
    hidden, weight = layer(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = version(hidden, weight, **options)
        wide = version(hidden.double(), weight.double(), **options)
    assert (loss.dtype, wide.dtype) == (torch.float32, torch.float64)
    assert (loss - wide).abs() < 0.05
    torch.testing.assert_close(wide, version(hidden.double(), weight.double(), **options))
    with torch.autocast("cpu", torch.bfloat16):
        narrow = version(hidden.bfloat16(), weight.bfloat16(), **options)
    torch.testing.assert_close(loss, narrow)


@cells
@pytest.mark.parametrize("batched", [False, True])
def test_autocast_changes_nothing_within_a_backward(divergence: str, missing: str, batched: bool) -> None:
    leaves = [tensor.bfloat16().requires_grad_() for tensor in layer(torch.float32)]

    def run() -> tuple[Tensor, ...]:
        loss = distillation.linear_loss(*leaves, teacher_of(torch.float32), divergence=divergence, missing=missing)
        grad = torch.ones(2, dtype=loss.dtype) if batched else torch.ones((), dtype=loss.dtype)
        return torch.autograd.grad(loss, leaves, grad, is_grads_batched=batched)

    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        for got, want in zip(run(), expected, strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_teacher_of_any_dtype(dtype: torch.dtype) -> None:
    hidden, weight = layer()
    loss = distillation.loss(hidden @ weight.t(), teacher_of(dtype))
    assert loss.dtype == torch.float64
    assert relative_error(loss, distillation.loss(hidden @ weight.t(), teacher_of(torch.float64))) < 0.02


# ---- compilers and transforms


@pytest.fixture
def fresh_compiler() -> None:
    """Forget what was compiled: each of many cases counts towards the limit of one function."""
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "divergence", "missing"),
    [(on_logits, *cell) for cell in CELLS]
    + [(on_hidden, "forward_kl", "uniform"), (on_hidden, "reverse_kl", "bucket"), (on_hidden, *OVER_ALL)],
)
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_in_one_graph(version: Callable[..., Tensor], divergence: str, missing: str) -> None:
    loss = functools.partial(version, divergence=divergence, missing=missing, temperature=2.0, beta=0.3)
    expected = gradients(loss, *layer())
    actual = gradients(torch.compile(loss, fullgraph=True, backend="aot_eager"), *layer())
    torch.testing.assert_close(actual, expected)


@pytest.mark.slow
@versions
@pytest.mark.usefixtures("fresh_compiler")
def test_a_teacher_goes_into_compiled_code(version: Callable[..., Tensor]) -> None:
    name = "loss" if version is on_logits else "linear_loss"

    def loss(hidden: Tensor, weight: Tensor, teacher: Teacher) -> Tensor:
        inputs = (hidden @ weight.t(),) if name == "loss" else (hidden, weight)
        value: Tensor = getattr(distillation, name)(
            *inputs, teacher, divergence="reverse_kl", weight=hidden[:, 0].detach()
        )
        return value

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)
    for teacher in (teacher_of(), Teacher.from_logits(torch.randn(N, V), 2)):
        torch.testing.assert_close(compiled(*layer(), teacher), loss(*layer(), teacher))


@cells
@versions
def test_torch_func(divergence: str, missing: str, version: Callable[..., Tensor]) -> None:
    loss = functools.partial(version, divergence=divergence, missing=missing)
    expected = gradients(loss, *layer())
    torch.testing.assert_close(torch.func.grad(loss, (0, 1))(*layer()), expected)
    each = functools.partial(loss, reduction="none")
    jacobian = torch.func.jacrev(each, 0)(*layer())
    torch.testing.assert_close(jacobian, torch.func.jacfwd(functools.partial(each, impl="reference"), 0)(*layer()))
    hidden, weight = layer()
    batch = torch.stack((hidden, -hidden))
    for impl in ("auto", "reference"):
        mapped = torch.func.vmap(functools.partial(each, impl=impl), (0, None))(batch, weight)
        torch.testing.assert_close(mapped, torch.stack([each(one, weight) for one in batch]))
    assert torch.func.hessian(loss)(*layer()).abs().sum() > 0


def test_vmap_over_teachers() -> None:
    hidden, weight = layer()
    logits, teacher = hidden @ weight.t(), teacher_of(torch.float64)
    loss = lambda z, *parts: distillation.loss(z, Teacher(*parts), divergence="jensen_shannon")  # noqa: E731
    parts = [part.unflatten(0, (1, N)).expand(2, *part.shape) for part in (teacher.indices, teacher.log_probs)]
    rest = torch.stack((teacher.log_rest, teacher.log_rest))  # type: ignore[list-item]
    mapped = torch.func.vmap(loss)(torch.stack((logits, -logits)), *parts, rest)
    each = [distillation.loss(z, teacher, divergence="jensen_shannon") for z in (logits, -logits)]
    torch.testing.assert_close(mapped, torch.stack(each))


@cells
@versions
def test_fake_and_meta_tensors(divergence: str, missing: str, version: Callable[..., Tensor]) -> None:
    name = "loss" if version is on_logits else "linear_loss"
    shapes = ((N, V),) if name == "loss" else ((N, D), (V, D))
    function = functools.partial(getattr(distillation, name), divergence=divergence, missing=missing, reduction="none")
    with FakeTensorMode():
        teacher = Teacher(torch.zeros(N, K, dtype=torch.int64), torch.zeros(N, K), torch.zeros(N))
        loss = function(*[torch.zeros(shape, requires_grad=True) for shape in shapes], teacher)
        assert loss.shape == (N,)
        loss.sum().backward()
    on_meta = function(*[torch.zeros(shape, device="meta") for shape in shapes], teacher_of().to("meta"))
    assert on_meta.shape == (N,) and on_meta.is_meta


@cells
def test_the_layout_of_logits_is_of_no_account(divergence: str, missing: str) -> None:
    hidden, weight = layer()
    dense = (hidden @ weight.t()).contiguous()
    options = {"divergence": divergence, "missing": missing}
    expected = distillation.loss(dense, teacher_of(), **options)
    for laid_out in (
        dense.t().contiguous().t(),
        torch.cat((dense, dense), 1)[:, V:],
        dense.repeat_interleave(2, 1)[:, ::2],
    ):
        torch.testing.assert_close(distillation.loss(laid_out, teacher_of(), **options), expected)
    row = dense[:1].expand(N, V)
    torch.testing.assert_close(
        distillation.loss(row, teacher_of(), **options), distillation.loss(row.contiguous(), teacher_of(), **options)
    )


@cells
@pytest.mark.parametrize("offset", [1e4, 3e38])
def test_a_common_offset_of_the_logits_is_of_no_account(divergence: str, missing: str, offset: float) -> None:
    logits = torch.zeros(N, V)
    logits[:, ::2] = 1.0 if offset < 1e30 else torch.finfo(torch.float32).max - offset
    moved = logits + offset
    options = {"divergence": divergence, "missing": missing}
    expected = distillation.loss((moved - offset).double(), teacher_of(), **options)
    assert relative_error(distillation.loss(moved, teacher_of(), **options), expected) < 1e-5 or offset > 1e30
    assert distillation.loss(moved.double(), teacher_of(), **options).isfinite() or divergence != "jensen_shannon"


# ---- chunks


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_chunks_of_the_one_cell_that_is_defined_over_all_classes(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from smoothloss.distillation import _student as module

    options = {"divergence": "jensen_shannon", "missing": "uniform", "temperature": 2.0, "impl": "reference"}
    expected = [gradients(functools.partial(version, **options), *layer()) for version in (on_logits, on_hidden)]
    sizes = []
    original = module._by_chunks

    def counted(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        def counting(part: Tensor, *more: Tensor) -> Tensor:
            sizes.append(len(part))
            return function(part, *more)

        return original(counting, *arguments[:-1], rows)

    monkeypatch.setattr(module, "_by_chunks", counted)
    actual = [gradients(functools.partial(version, **options), *layer()) for version in (on_logits, on_hidden)]
    torch.testing.assert_close(actual, expected)
    assert max(sizes) <= rows and sum(sizes) >= 2 * N
    torch.autograd.gradgradcheck(
        lambda z: distillation.loss(z, teacher_of(), **options), (layer()[0] @ layer()[1].t()).requires_grad_()
    )


# ---- what is refused

WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "divergence": ({"divergence": "kl"}, ValueError, "divergence: got 'kl', expected one of 'forward_kl'"),
    "missing": ({"missing": "zero"}, ValueError, "missing: got 'zero', expected one of 'bucket'"),
    "beta below 0": ({"beta": -0.1}, ValueError, "beta: got -0.1, expected a number in"),
    "beta above 1": ({"beta": 1.1}, ValueError, "beta: got 1.1, expected a number in"),
    "temperature 0": ({"temperature": 0.0}, ValueError, r"temperature: got 0.0, expected a number in \[1e-10, 1e"),
    "temperature cold": ({"temperature": 1e-40}, ValueError, "temperature: got 1e-40, expected a number in"),
    "temperature hot": ({"temperature": 1e300}, ValueError, r"temperature: got 1e\+300, expected a number in"),
    "temperature inf": ({"temperature": float("inf")}, ValueError, "temperature: got inf"),
    "temperature a word": ({"temperature": "warm"}, TypeError, r"temperature: got 'warm' \(str\), expected a number"),
    "reduction": ({"reduction": "batchmean"}, ValueError, "reduction: got 'batchmean', expected one of"),
    "impl": ({"impl": "cuda"}, ValueError, "impl: got 'cuda', expected one of"),
    "softcap": ({"softcap": -1.0}, ValueError, "softcap: got -1.0"),
    "logit_scale": ({"logit_scale": 0}, ValueError, "logit_scale: got 0"),
    "weight a number": ({"weight": 2.0}, TypeError, "weight: got float, expected a torch.Tensor"),
    "weight of integers": ({"weight": torch.ones(N, dtype=torch.int64)}, TypeError, "weight: got torch.int64"),
    "weight of another shape": ({"weight": torch.ones(N, K)}, ValueError, r"weight: got shape \(5, 3\), expected \(5,"),
    "weight to learn": ({"weight": torch.ones(N, requires_grad=True)}, ValueError, "weight: got a tensor that req"),
    "weight elsewhere": ({"weight": torch.ones(N, device="meta")}, ValueError, "weight: got a tensor on meta"),
    "teacher": ({"teacher": torch.zeros(N, K)}, TypeError, "teacher: got Tensor, expected a smoothloss.distillation.T"),
    "teacher elsewhere": ({"teacher": teacher_of().to("meta")}, ValueError, "teacher: got a tensor on meta"),
    "too few positions": (
        {"teacher": Teacher(torch.zeros(2, K, dtype=torch.int32), torch.full((2, K), -9.0))}, ValueError,
        r"teacher: got indices of shape \(2, 3\), expected \(5, K\) beside input",
    ),
    "too many dimensions": (
        {"teacher": Teacher(torch.zeros(1, N, K, dtype=torch.int32), torch.full((1, N, K), -9.0))}, ValueError,
        r"teacher: got indices of shape \(1, 5, 3\), expected \(5, K\) beside input",
    ),
    "a teacher to learn": (
        {"teacher": Teacher(torch.zeros(N, 1, dtype=torch.int32), torch.zeros(N, 1, requires_grad=True))}, ValueError,
        r"teacher\.log_probs: got a tensor that requires grad",
    ),
    "a rest to learn": (
        {"teacher": Teacher(torch.zeros(N, 1, dtype=torch.int32), torch.full((N, 1), -9.0),
                            torch.zeros(N, requires_grad=True))},
        ValueError, r"teacher\.log_rest: got a tensor that requires grad",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
@versions
def test_what_is_wrong_is_named(name: str, version: Callable[..., Tensor]) -> None:
    change, error, message = WRONG[name]
    arguments = {"teacher": teacher_of(), **change}
    hidden, weight = layer()
    with pytest.raises(error, match=f"^{message}") as raised:
        if version is on_logits:
            distillation.loss(hidden @ weight.t(), **arguments)
        else:
            distillation.linear_loss(hidden, weight, **arguments)
    assert "\n" not in str(raised.value)


def test_what_is_wrong_with_a_layer_is_named() -> None:
    hidden, weight = layer()
    for arguments, more, message in (
        ((hidden, weight[:, :2]), {}, "linear_weight: got shape"),
        ((hidden, weight), {"linear_bias": torch.zeros(3)}, "linear_bias: got shape"),
        ((hidden, weight), {"chunk_bytes": 0}, "chunk_bytes: got 0"),
        ((hidden, weight), {"memory": "tiny"}, "memory: got 'tiny'"),
    ):
        for divergence, missing in CELLS:
            options = {"divergence": divergence, "missing": missing, **more}
            with pytest.raises(ValueError, match=message):
                distillation.linear_loss(*arguments, teacher_of(), **options)


def out_of_range() -> Teacher:
    indices = TEACHER.indices.clone()
    indices[2, 1] = V
    return Teacher(indices, TEACHER.log_probs, TEACHER.log_rest)


@cells
def test_a_class_that_there_is_not(divergence: str, missing: str) -> None:
    (hidden, weight), options = layer(), {"divergence": divergence, "missing": missing}
    message = "^" + re.escape("teacher.indices[2, 1]: got 13, expected an index below 13 (13 classes)") + "$"
    for impl in ("auto", "reference"):
        with pytest.raises(IndexError, match=message):
            distillation.loss(hidden @ weight.t(), out_of_range(), impl=impl, **options)
        with pytest.raises(IndexError, match=message):
            distillation.linear_loss(hidden, weight, out_of_range(), impl=impl, **options)


@pytest.mark.parametrize(("divergence", "missing"), [("forward_kl", "drop"), ("reverse_kl", "bucket"), OVER_ALL])
@pytest.mark.usefixtures("fresh_compiler")
def test_a_class_that_there_is_not_in_compiled_code(divergence: str, missing: str) -> None:
    hidden, weight = layer()
    loss = functools.partial(distillation.loss, divergence=divergence, missing=missing)
    with pytest.raises(IndexError, match=r"expected an index below 13|out of range"):
        torch.compile(loss, fullgraph=True, backend="aot_eager")(hidden @ weight.t(), out_of_range())


def test_numbers_of_numpy_are_numbers() -> None:
    hidden, weight = layer()
    options = {"divergence": "jensen_shannon", "beta": 0.25, "temperature": 2.0, "softcap": 5.0, "logit_scale": 0.5}
    expected = distillation.loss(hidden @ weight.t(), teacher_of(), **options)
    theirs = {name: np.float64(value) if isinstance(value, float) else value for name, value in options.items()}
    torch.testing.assert_close(distillation.loss(hidden @ weight.t(), teacher_of(), **theirs), expected)
