"""The linear op that leaves improbable classes out of its products: what it errs, and when it leaves out none.

In a process with ``TRITON_INTERPRET=1`` all goes the way of a GPU: how many columns are kept is not known to the host,
and the products with them are Triton's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from product_ways import multiplying
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import smoothloss.functional as F
from smoothloss import SimilarityTable, nn, targets
from smoothloss.backends import unavailable
from smoothloss.backends.common import RowOptions
from smoothloss.ops import compensated, compensated_columns, linear_layer, linear_passes
from smoothloss.ops.compensated import LEAST_ROWS, ROUNDING, CompensatedSums
from smoothloss.ops.compensated_columns import Parts
from smoothloss.ops.target import FlatTarget
from smoothloss.targets import Target
from smoothloss.testing import assert_error_budget

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if IS_INTERPRETED and (reason := unavailable("triton", "cpu", torch.float32)):
    pytest.skip(reason, allow_module_level=True)

N, V, D = 300, 2000, 16
Layer = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def way() -> Iterator[None]:
    """Go the way of a GPU where Triton is interpreted."""
    with pytest.MonkeyPatch.context() as patch:
        if IS_INTERPRETED:
            patch.setattr(compensated, "is_on_device", lambda inputs: True)
            patch.setattr(linear_layer, "has_fast_gemm", lambda *_: False)
        yield


class HostColumns:
    """What Triton's `KeptColumns` computes, in float32, for operands of 16 bits."""

    def __init__(self, matrix: Tensor, kept: Tensor, size: Tensor, most: int) -> None:
        assert size == matrix.shape[1] or size <= most
        self.kept = kept[: int(size)].long()
        self.columns = matrix[:, self.kept].float()

    def add_rows(self, total: Tensor, weight: Tensor) -> None:
        total += self.columns @ weight[self.kept].float()

    def add_to_rows(self, total: Tensor, inputs: Tensor) -> None:
        total.index_add_(0, self.kept, self.columns.t() @ inputs.float())


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Go the way of a GPU with bfloat16 operands, whose products are widened as torch's are there."""

    products = pytest.importorskip("smoothloss.backends.triton.products", reason="triton is not installed")
    with pytest.MonkeyPatch.context() as patch, multiplying("widened"):
        patch.setattr(compensated, "is_on_device", lambda inputs: True)
        patch.setattr(products, "KeptColumns", HostColumns)
        yield


@pytest.fixture(params=[False, True], ids=["wide", "narrow"])
def narrow(request: pytest.FixtureRequest) -> bool:
    """Return whether the products have operands of 16 bits, which the interpreter cannot multiply."""
    if request.param and IS_INTERPRETED:
        pytest.skip("the interpreter has no bfloat16")
    return bool(request.param)


def make_layer(seed: int = 0, rows: int = N) -> Layer:
    """Return hidden states, weight and bias of classes as frequent as words are."""
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(rows, D, generator=generator), torch.randn(V, D, generator=generator) / 4
    bias = -1.7 * torch.arange(1, V + 1).log()
    return hidden.bfloat16(), weight.bfloat16(), bias[torch.randperm(V, generator=generator)].bfloat16()


def labels_of(layer: Layer, seed: int = 0) -> Tensor:
    """Draw labels from the model's own distribution."""
    hidden, weight, bias = (tensor.float() for tensor in layer)
    shares = torch.softmax(hidden.nan_to_num() @ weight.t() + bias, -1)
    return torch.multinomial(shares, 1, generator=torch.Generator().manual_seed(seed))[:, 0]


@contextmanager
def recorded(narrow: bool | None = None) -> Iterator[list[int]]:
    """Record the columns kept of each chunk; `narrow` says whether the products have operands of 16 bits."""
    kept: list[int] = []

    class Recording(CompensatedSums):
        def add_chunk(self, rows: slice | None, d_logits: Tensor) -> None:
            super().add_chunk(rows, d_logits)
            kept.append(int(self.columns_kept[-1]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_passes, "CompensatedSums", Recording)
        if narrow is not None:
            patch.setattr("smoothloss.ops.linear_layer.has_fast_gemm", lambda *_: narrow)
        yield kept


def gradients(layer: Layer, target: Tensor | Target, **options: Any) -> tuple[Tensor, ...]:
    """Return the loss and the gradients of hidden states, weight and bias."""
    hidden, weight, bias = (tensor.clone().requires_grad_() for tensor in layer)
    loss = F.linear_cross_entropy(hidden, weight, target, linear_bias=bias, **options)
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight, bias))


def check(layer: Layer, target: Tensor | Target, tolerance: float, narrow: bool | None, **options: Any) -> list[int]:
    """Compare with float64: not more than dense errs, and twice the tolerance. Return the columns kept."""
    wide = tuple(tensor.double() for tensor in layer)
    exact = gradients(wide, target, **options)  # type: ignore[arg-type]
    with recorded(narrow):
        dense = gradients(layer, target, **options)
    with recorded(narrow) as kept:
        ours = gradients(layer, target, tail="compensated", tail_tolerance=tolerance, **options)
    assert torch.equal(ours[0], dense[0])
    assert_error_budget(ours[3], dense[3], exact[3])
    for got, usual, expected in zip(ours[1:3], dense[1:3], exact[1:3], strict=True):
        norm = float(expected.norm())
        allowed = float((usual.double() - expected).norm()) + 2 * tolerance * ROUNDING * norm
        assert float((got.double() - expected).norm()) <= allowed
    return kept


def cases(layer: Layer) -> dict[str, tuple[Tensor | Target, dict[str, Any]]]:
    """Return targets and options that leave something out."""
    labels, prior = labels_of(layer), layer[2].float().softmax(0)
    frequent, generator = layer[2].float().topk(100).indices, torch.Generator().manual_seed(1)
    indices = frequent[torch.randint(0, 100, (N, 3), generator=generator)]
    entries = targets.entries(indices, torch.rand(N, 3, generator=generator), torch.rand(N, generator=generator))
    return {
        "labels": (labels, {}),
        "smoothed": (labels, {"label_smoothing": 0.1}),
        "prior": (labels, {"label_smoothing": 0.1, "prior": prior}),
        "entries": (entries, {}),
        "weighted": (labels, {"weight": prior * V, "label_smoothing": 0.1}),
        "z_loss": (labels, {"z_loss": 1e-2}),
        "softcap": (labels, {"softcap": 20.0}),
        "scaled": (labels, {"logit_scale": 1.5, "label_smoothing": 0.2, "reduction": "sum"}),
    }


@pytest.mark.parametrize("name", cases(make_layer()))
@pytest.mark.usefixtures("poison")
def test_errs_within_the_tolerance(name: str, narrow: bool) -> None:
    layer = make_layer()
    target, options = cases(layer)[name]
    (kept,) = check(layer, target, 1.0, narrow, **options)
    assert kept <= V / 2


@pytest.mark.parametrize("name", cases(make_layer()))
@pytest.mark.skipif(IS_INTERPRETED, reason="the interpreter has no bfloat16")
@pytest.mark.usefixtures("poison")
def test_errs_within_the_tolerance_as_on_a_gpu(name: str) -> None:
    layer = make_layer()
    target, options = cases(layer)[name]
    with as_on_a_gpu():
        (kept,) = check(layer, target, 1.0, None, **options)
    assert kept <= V / 2


class Reading(TorchDispatchMode):
    """Refuses what waits for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").split(".")[0]
        assert name not in ("_local_scalar_dense", "nonzero", "is_nonzero", "unique", "masked_select", "equal")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", cases(make_layer()))
def test_a_gpu_is_not_waited_for(name: str) -> None:
    layer = make_layer()
    target, options = cases(layer)[name]
    hidden, weight, bias = (tensor.clone().requires_grad_() for tensor in layer)
    with pytest.MonkeyPatch.context() as patch, as_on_a_gpu() if not IS_INTERPRETED else nullcontext():
        for method in ("__init__", "add_rows", "add_to_rows"):  # which wait for nothing either
            patch.setattr("smoothloss.backends.triton.products.KeptColumns." + method, lambda *_: None)
        loss = F.linear_cross_entropy(hidden, weight, target, linear_bias=bias, tail="compensated", **options)
        with Reading():
            loss.backward()
            F.linear_cross_entropy(hidden, weight, target, linear_bias=bias, tail="compensated", **options)


@pytest.mark.usefixtures("poison")
def test_in_chunks(narrow: bool) -> None:
    layer = make_layer(rows=3 * LEAST_ROWS - 100)
    labels = labels_of(layer)
    labels[::7] = -100
    # Four rows of gradients in 16 bits stand beside one of logits.
    chunk_bytes = LEAST_ROWS // 4 * V * (4 + 4 * 2) if narrow else LEAST_ROWS * V * 4
    kept = check(layer, labels, 1.0, narrow, chunk_bytes=chunk_bytes)
    assert len(kept) == 3
    assert max(kept[:2]) <= V / 2
    assert kept[2] == V  # too few rows


def test_what_rows_of_one_kind_leave_out_is_put_back() -> None:
    """Of rows that are equal nothing is lost, where leaving out alone errs in every row to the same side."""
    kinds = make_layer(rows=8)
    layer = (kinds[0].repeat_interleave(LEAST_ROWS // 8, 0), *kinds[1:])
    call = (FlatTarget(labels_of(layer), ignore_index=-100), RowOptions(), "sum", 1 << 30, [True] * 3, "native")

    class Filtered(CompensatedSums):
        def _parts(self, rows: slice | None, d_logits: Tensor) -> Parts | None:
            parts = super()._parts(rows, d_logits)
            assert parts is not None
            return parts._replace(shares=torch.zeros_like(parts.shares))

    errors = []
    for kind in (CompensatedSums, Filtered):
        with recorded(narrow=False), pytest.MonkeyPatch.context() as patch:
            dense = linear_passes.fused(*layer, *call)[2:4]
            patch.setattr(linear_passes, "CompensatedSums", kind)
            ours = linear_passes.fused(*layer, *call, tail=1.0)[2:4]
        errors.append([float((got - want).norm() / want.norm()) for got, want in zip(ours, dense, strict=True)])
    for ours, theirs in zip(*errors, strict=True):
        assert ours < 1e-5
        assert theirs > 100 * ours


@pytest.mark.parametrize("way", ["as it is", "GPU"])
def test_of_any_shape_and_of_what_is_not_finite(way: str) -> None:
    """What is NaN is where it is without the option, and few classes, rows or dimensions are no special case."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return 3 * torch.randn(shape, generator=generator).bfloat16()

    layers: list[Layer] = [
        (drawn(rows, width), drawn(classes, width), drawn(classes))
        for rows in (0, 1, LEAST_ROWS) for classes in (1, 2, 3, 40) for width in (1, 2)
    ]  # fmt: skip
    whole = make_layer()
    for value in (torch.nan, torch.inf):
        for place in range(3):
            spoiled = [tensor.clone() for tensor in whole]
            spoiled[place][3] = value
            layers.append((spoiled[0], spoiled[1], spoiled[2]))
    with as_on_a_gpu() if way == "GPU" and not IS_INTERPRETED else nullcontext():
        for layer in layers:
            labels = torch.arange(len(layer[0])) % len(layer[1])
            dense = gradients(layer, labels, label_smoothing=0.1)
            ours = gradients(layer, labels, label_smoothing=0.1, tail="compensated")
            for got, want in zip(ours, dense, strict=True):
                scale = float(want.float().nan_to_num(0, 0, 0).norm()) if want.numel() else 0.0
                torch.testing.assert_close(got, want, rtol=0, atol=0.01 * scale, equal_nan=True)


def test_nothing_left_out_is_dense() -> None:
    layer = make_layer()
    everywhere = targets.entries(torch.arange(N * 8).view(N, 8) % V, torch.rand(N, 8))
    for target, tolerance in ((labels_of(layer), 1e-7), (everywhere, 1e3)):
        with recorded() as kept:
            ours = gradients(layer, target, tail="compensated", tail_tolerance=tolerance, chunk_bytes=1 << 30)
        assert kept == [V]
        for got, expected in zip(ours, gradients(layer, target, chunk_bytes=1 << 30), strict=True):
            if IS_INTERPRETED:  # the sums have an order of their own
                torch.testing.assert_close(got, expected)
            else:
                assert torch.equal(got, expected)


def test_the_same_bits_every_time() -> None:
    layer = make_layer()
    labels = labels_of(layer)
    torch.manual_seed(1)
    first = gradients(layer, labels, tail="compensated")
    state = torch.get_rng_state()
    second = gradients(layer, labels, tail="compensated")
    assert torch.equal(torch.get_rng_state(), state)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("setting", ["default device", "default dtype", "deterministic", "autocast"])
def test_what_is_set_for_all_of_torch_changes_nothing(setting: str) -> None:
    layer = make_layer()
    labels = labels_of(layer)
    expected = gradients(layer, labels, tail="compensated")
    compensated_columns._drawn_signs.cache_clear()
    compensated_columns._numbers.cache_clear()
    with contextlib.ExitStack() as stack:
        if setting == "default device":
            stack.enter_context(torch.device("meta"))
        elif setting == "autocast":
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        elif setting == "default dtype":
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float64)
        else:
            stack.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
            torch.use_deterministic_algorithms(True)
        found = gradients(layer, labels, tail="compensated")
    for got, want in zip(found, expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_a_frozen_part_changes_nothing(frozen: int) -> None:
    layer = make_layer()
    labels = labels_of(layer)
    whole = gradients(layer, labels, tail="compensated", label_smoothing=0.1)[1:]
    leaves = [tensor.clone().requires_grad_(place != frozen) for place, tensor in enumerate(layer)]
    hidden, weight, bias = leaves
    how: dict[str, Any] = {"tail": "compensated", "label_smoothing": 0.1}
    F.linear_cross_entropy(hidden, weight, labels, linear_bias=bias, **how).backward()
    for place, (leaf, expected) in enumerate(zip(leaves, whole, strict=True)):
        assert leaf.grad is None if place == frozen else torch.equal(leaf.grad, expected)


def test_padded_states_may_be_anything() -> None:
    layer = make_layer()
    labels = labels_of(layer)
    labels[::3] = -100
    padded = layer[0].masked_fill((labels == -100)[:, None], torch.nan)
    with recorded() as kept:
        ours = gradients((padded, *layer[1:]), labels, tail="compensated", label_smoothing=0.1)
    assert kept[0] <= V / 2
    assert not ours[1][labels == -100].any()
    for got, expected in zip(ours, gradients(layer, labels, tail="compensated", label_smoothing=0.1), strict=True):
        torch.testing.assert_close(got, expected)


def test_tables_and_samples() -> None:
    """A lazy sequence loss with a table goes the same way; a table with an exact tail leaves nothing out."""
    layer = make_layer()
    words = layer[2].float().topk(60).indices
    target = words[torch.randint(0, 60, (N // 10, 10), generator=torch.Generator().manual_seed(2))]
    samples = target.roll(1, 0).unsqueeze(0)
    vectors = torch.randn(V, 8, generator=torch.Generator().manual_seed(3))
    others = sorted(set(range(V)) - set(words.tolist()))
    for tail, leaves_out in (("uniform", True), ("renormalize", True), ("exact", False)):
        table = SimilarityTable.from_embeddings(vectors, k=3, tau=0.3, exclude=others, tail=tail)
        soft = targets.lazy_sequence(target, samples, alpha=0.3, table=table, token_alpha=0.2)
        (kept,) = check((layer[0].view(*target.shape, D), *layer[1:]), soft, 1.0, False)
        assert (kept <= V / 2) == leaves_out


def test_compiled_and_transformed() -> None:
    layer = make_layer()
    labels = labels_of(layer)

    def loss(hidden: Tensor, weight: Tensor) -> Tensor:
        return F.linear_cross_entropy(
            hidden, weight, labels, linear_bias=layer[2], tail="compensated", label_smoothing=0.1
        )

    expected = torch.autograd.grad(loss(*(leaves := [tensor.clone().requires_grad_() for tensor in layer[:2]])), leaves)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    with recorded() as kept:
        found = torch.autograd.grad(compiled(*leaves), leaves)
        transformed = torch.func.grad(loss, argnums=(0, 1))(*layer[:2])
    assert len(kept) == 2
    assert max(kept) <= V / 2
    for one, other, third in zip(found, transformed, expected, strict=True):
        torch.testing.assert_close(one, third)
        torch.testing.assert_close(other, third)


def test_without_gradients_it_is_the_loss() -> None:
    layer = make_layer()
    labels = labels_of(layer)
    ours = F.linear_cross_entropy(layer[0], layer[1], labels, tail="compensated")
    assert torch.equal(ours, F.linear_cross_entropy(layer[0], layer[1], labels))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "name": ({"tail": "short"}, "tail: got 'short', expected one of 'exact', 'compensated'"),
    "tolerance": ({"tail_tolerance": 0.0}, "tail_tolerance: got 0.0, expected a finite number > 0"),
    "rows": ({"reduction": "none"}, "reduction: got 'none' with tail='compensated', expected 'mean' or 'sum'"),
    "memory": ({"memory": "low"}, "memory: got 'low' with tail='compensated', expected 'fast'"),
    "entropy": ({"entropy": 0.1}, "entropy: got 0.1 with tail='compensated', expected 0"),
    "reference": ({"impl": "reference"}, "impl: got 'reference' with tail='compensated', expected another one"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused(name: str) -> None:
    hidden, weight, _ = make_layer()
    options, message = REFUSED[name]
    options = {"tail": "compensated", **options}
    for call in (
        lambda: F.linear_cross_entropy(hidden, weight, torch.zeros(N, dtype=torch.int64), **options),
        lambda: nn.LinearCrossEntropyLoss(**options),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value) == message


def test_where_it_does_not_run() -> None:
    hidden, weight, _ = make_layer()
    labels = torch.zeros(N, dtype=torch.int64)
    how: dict[str, Any] = {"tail": "compensated"}
    with pytest.raises(ValueError, match=r"tail: got 'compensated' for an input of torch.float32, expected torch.bf"):
        F.linear_cross_entropy(hidden.float(), weight.float(), labels, **how)
    with pytest.raises(ValueError, match="got 'compensated' for an input on meta, expected one on the CPU or CUDA"):
        F.linear_cross_entropy(hidden.to("meta"), weight.to("meta"), labels.to("meta"), **how)
    with pytest.raises(ValueError, match="tail: got 'compensated' where the reference runs, expected 'exact'"):
        torch.func.vmap(lambda states: F.linear_cross_entropy(states, weight, labels, **how))(hidden[None])
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'tail'"):
        F.cross_entropy(hidden, labels, **how)


# ---- inputs made to break it


@st.composite
def problems(draw: st.DrawFn) -> tuple[Layer, Tensor | Target, dict[str, Any]]:
    """Draw rows that share a tail, rows that hide one, and options that change signs and sizes."""
    layer = make_layer(draw(st.integers(0, 99)), draw(st.integers(LEAST_ROWS, 2 * LEAST_ROWS)))
    hidden, weight, bias = layer
    kind = draw(
        st.sampled_from(["as it is", "uniform", "one keeps everything", "targets", "kinds", "aligned", "equal"])
    )
    labels = labels_of(layer)
    if kind == "uniform":
        hidden, bias = torch.zeros_like(hidden), torch.zeros_like(bias)
    elif kind == "one keeps everything":
        hidden, weight = hidden.clone(), weight.clone()
        hidden[0] = 0
        hidden[1:, 0], weight[:, 0] = 16, bias
        bias = torch.zeros_like(bias)
    elif kind == "targets":  # all mass on them
        labels, weight = labels % D, weight.clone()
        weight[:D] = 8 * torch.eye(D, dtype=weight.dtype)
        hidden = 8 * torch.nn.functional.one_hot(labels, D).to(hidden.dtype)
    elif kind == "kinds":  # rows of a few kinds, each with a tail of its own
        hidden = hidden[torch.arange(len(hidden)) % draw(st.integers(1, 50))]
    elif kind == "aligned":  # the tail lies in the direction of large rows of the weight
        weight = weight * (8 * torch.rand(V, 1, generator=torch.Generator().manual_seed(5)) ** 8).bfloat16()
    elif kind == "equal":
        hidden = hidden[:1].expand(len(hidden), D).contiguous()
    labels[torch.rand(len(labels), generator=torch.Generator().manual_seed(6)) < draw(st.sampled_from([0, 0.3]))] = -100
    options = {
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
        "z_loss": draw(st.sampled_from([0.0, 1e-3, 1e3])),
        "softcap": draw(st.sampled_from([None, 5.0])),
        "logit_scale": draw(st.sampled_from([1.0, 0.1, 3.0])),
    }
    if draw(st.booleans()):
        options["prior"] = layer[2].float().masked_fill(torch.arange(V) % 3 == 0, -torch.inf).softmax(0)
    return (hidden, weight, bias), labels, options


@settings(max_examples=20 if IS_INTERPRETED else 60, deadline=None)
@given(problems(), st.sampled_from([0.3, 1.0, 3.0]), st.sampled_from(["wide", "narrow", "GPU"]))
def test_no_input_breaks_the_bound(
    problem: tuple[Layer, Tensor | Target, dict[str, Any]], tolerance: float, way: str
) -> None:
    layer, target, options = problem
    with as_on_a_gpu() if way == "GPU" and not IS_INTERPRETED else nullcontext():
        check(layer, target, tolerance, None if way == "GPU" else way == "narrow" and not IS_INTERPRETED, **options)
