"""What stands at an ignored position, however it came to be ignored, reaches neither the loss nor any gradient."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import smoothloss.functional as F
from smoothloss import targets
from smoothloss.backends import unavailable
from smoothloss.targets import Target
from smoothloss.testing import make_sequences, make_table

B, T, V, L, D = 2, 3, 40, 2, 5
TABLE, EXACT = make_table(V, k=4), make_table(V, k=4, tail="exact")
Y, SAMPLES, OMEGA = make_sequences(B, T, V, L)
Y = Y.clamp(min=1)  # every position counts until it is ignored here, and class 0 is free to be the ignored one
INDICES = torch.stack((Y, (Y + 3) % V, Y), -1)
WEIGHTS = torch.rand(B, T, 3, generator=torch.Generator().manual_seed(2)) + 0.1


class Ignoring(NamedTuple):
    """A target of positions of which those of a mask are ignored; more arguments of the loss; its positions' shape."""

    make: Callable[[Tensor], tuple[Tensor | Target, dict[str, Any]]]
    shape: tuple[int, ...] = (B, T)


def entries(indices: Tensor, weights: Tensor, uniform: Tensor | None = None) -> tuple[Target, dict[str, Any]]:
    return targets.entries(indices, weights, uniform), {}


def emptied(mask: Tensor) -> Tensor:
    return INDICES.masked_fill(mask.unsqueeze(-1), -1)


def exact_sequences(mask: Tensor, table: Any = None) -> tuple[Target, dict[str, Any]]:
    y, samples = Y.masked_fill(mask[0], -100), SAMPLES.masked_fill(mask[1:], -100)
    return targets.sequence(y, samples, OMEGA, alpha=0.6, table=table, token_alpha=0.3 if table else 0.0), {}


def without_weight(mask: Tensor) -> tuple[Target, dict[str, Any]]:
    """The samples whose mask begins with True have no weight."""
    omega = OMEGA.masked_fill(mask[1:, :, 0], 0.0)
    return targets.sequence(Y, SAMPLES, omega, alpha=0.6), {}


def lazy(mask: Tensor, table: Any = None) -> tuple[Target, dict[str, Any]]:
    y = Y.masked_fill(mask, -100)
    return targets.lazy_sequence(y, SAMPLES, OMEGA, alpha=0.6, table=table, token_alpha=0.3 if table else 0.0), {}


def mixed(mask: Tensor) -> tuple[Target, dict[str, Any]]:
    return 0.5 * targets.labels(Y.masked_fill(mask, -100)) + 0.5 * targets.entries(emptied(mask), WEIGHTS), {}


def top_k(mask: Tensor) -> tuple[Target, dict[str, Any]]:
    log_probs = WEIGHTS.log_softmax(-1).masked_fill(mask.unsqueeze(-1), torch.nan)
    return targets.top_k(emptied(mask), log_probs, missing="drop"), {}


def class_without_weight(mask: Tensor) -> tuple[Tensor, dict[str, Any]]:
    return Y.masked_fill(mask, 0), {"weight": torch.linspace(0, 1, V)}


WAYS = {
    "ignore_index": Ignoring(lambda mask: (Y.masked_fill(mask, -100), {})),
    "another ignore_index": Ignoring(lambda mask: (Y.masked_fill(mask, 0), {"ignore_index": 0})),
    "int32": Ignoring(lambda mask: (Y.masked_fill(mask, -7).int(), {"ignore_index": -7})),
    "similar tokens": Ignoring(lambda mask: (Y.masked_fill(mask, -100), {"table": TABLE, "alpha": 0.3})),
    "exact tail": Ignoring(lambda mask: (Y.masked_fill(mask, -100), {"table": EXACT, "alpha": 0.3})),
    "no mass": Ignoring(lambda mask: entries(INDICES, WEIGHTS.masked_fill(mask.unsqueeze(-1), 0.0))),
    "empty slots": Ignoring(lambda mask: entries(emptied(mask), WEIGHTS)),
    "no uniform mass": Ignoring(
        lambda mask: entries(emptied(mask), WEIGHTS, torch.full((B, T), 0.2).masked_fill(mask, 0.0))
    ),
    "top k": Ignoring(top_k),
    "mixed": Ignoring(mixed),
    "lazy": Ignoring(lazy),
    "lazy, similar tokens": Ignoring(lambda mask: lazy(mask, TABLE)),
    "lazy, exact tail": Ignoring(lambda mask: lazy(mask, EXACT)),
    "sequences": Ignoring(exact_sequences, (L + 1, B, T)),
    "sequences, similar tokens": Ignoring(lambda mask: exact_sequences(mask, TABLE), (L + 1, B, T)),
    "sequences without weight": Ignoring(without_weight, (L + 1, B, T)),
    "class without weight": Ignoring(class_without_weight),
    "class without weight, ignored too": Ignoring(
        lambda mask: (Y.masked_fill(mask, -100), {"weight": torch.linspace(0, 1, V)})
    ),
}
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "label_smoothing": st.just(0.1), "entropy": st.just(0.2), "z_loss": st.just(0.01),
        "logit_scale": st.just(1.5), "softcap": st.just(5.0), "kl": st.just(True),
    },
)  # fmt: skip
BAD = st.sampled_from([math.nan, math.inf, -math.inf])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float64])
# Triton's interpreter computes what a masked lane would, in numpy, which warns of log(0); and it takes its time.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
draws = settings(
    max_examples=1 if INTERPRETED else 12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def make(way: str, data: st.DataObject) -> tuple[Tensor, Tensor | Target, dict[str, Any]]:
    """Draw the ignored positions and the options; return the mask, the target and the options."""
    ignoring, options = WAYS[way], data.draw(OPTIONS)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=18, max_size=18)))
    mask = mask[: math.prod(ignoring.shape)].view(ignoring.shape)
    target, more = ignoring.make(mask)
    if way == "sequences without weight":
        mask = torch.cat((torch.zeros_like(mask[:1]), mask[1:, :, :1].expand(-1, -1, T)))
    if "weight" in more:
        options.pop("kl", None)
        if way == "class without weight":  # smoothed labels would give it mass
            options.pop("label_smoothing", None)
    return mask, target, options | more


def run(
    loss: Callable[..., Tensor], leaves: list[Tensor], target: Tensor | Target, grad: Tensor, **more: Any
) -> tuple[Tensor, ...]:
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    value = loss(*leaves, target, **more)
    return value.detach(), *torch.autograd.grad(value, leaves, grad.to(value.dtype).expand_as(value))


def check(
    loss: Callable[..., Tensor], leaves: list[Tensor], mask: Tensor, bad: float, target: Tensor | Target, **more: Any
) -> None:
    """Compare with zeros at the ignored positions; `bad` comes down from above there as well."""
    clean, ignored = leaves[0], mask.unsqueeze(-1)
    grad = torch.randn(mask.shape) if more["reduction"] == "none" else torch.tensor(1.7)
    spoilt = grad.masked_fill(mask, bad) if more["reduction"] == "none" else grad
    actual = run(loss, [clean.masked_fill(ignored, bad), *leaves[1:]], target, spoilt, **more)
    expected = run(loss, [clean.masked_fill(ignored, 0.0), *leaves[1:]], target, grad, **more)
    is_empty = bool(mask.all()) and more["reduction"] == "mean"  # nan, as torch's
    assert is_empty or all(result.isfinite().all() for result in expected)
    torch.testing.assert_close(actual, expected, equal_nan=is_empty)
    if not is_empty:
        assert not actual[1][mask].any()


@pytest.fixture(autouse=True)
def once(impl: str) -> None:
    """Let the process of the interpreter run what is the interpreter's."""
    if INTERPRETED and impl != "triton":
        pytest.skip("runs in the other process")


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@given(
    data=st.data(), bad=BAD, dtype=DTYPES, reduction=st.sampled_from(["mean", "sum", "none"]),
    memory=st.sampled_from(["fast", "low"]), chunk_rows=st.sampled_from([1, 2, 100]), has_bias=st.booleans(),
)  # fmt: skip
@draws
@pytest.mark.usefixtures("poison")
def test_hidden_states(
    impl: str, way: str, data: st.DataObject, bad: float, dtype: torch.dtype, reduction: str, memory: str,
    chunk_rows: int, has_bias: bool,
) -> None:  # fmt: skip
    if unavailable(impl, "cpu", dtype):
        dtype = torch.float32
    mask, target, options = make(way, data)
    generator = torch.Generator().manual_seed(0)
    shapes = [(*mask.shape, D), (V, D), *([(V,)] if has_bias else [])]
    leaves = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]

    def loss(hidden: Tensor, classifier: Tensor, *rest: Any, **more: Any) -> Tensor:
        bias, target = rest if has_bias else (None, *rest)
        return F.linear_cross_entropy(hidden, classifier, target, linear_bias=bias, **more)

    chunk_bytes = chunk_rows * V * (8 if dtype == torch.float64 else 4)
    how = {"reduction": reduction, "memory": memory, "chunk_bytes": chunk_bytes, "impl": impl}
    check(loss, leaves, mask, bad, target, **how, **options)


@pytest.mark.parametrize("way", WAYS)
@given(data=st.data(), bad=BAD, dtype=DTYPES, reduction=st.sampled_from(["mean", "sum", "none"]), inplace=st.booleans())
@draws
@pytest.mark.usefixtures("poison")
def test_logits(
    impl: str, way: str, data: st.DataObject, bad: float, dtype: torch.dtype, reduction: str, inplace: bool
) -> None:
    if unavailable(impl, "cpu", dtype):
        dtype = torch.float32
    mask, target, options = make(way, data)
    logits = torch.randn(*mask.shape, V, generator=torch.Generator().manual_seed(0)).to(dtype)

    def loss(logits: Tensor, target: Tensor | Target, **more: Any) -> Tensor:
        return F.cross_entropy(logits * 1, target, inplace=inplace, **more)

    check(loss, [logits], mask, bad, target, reduction=reduction, impl=impl, **options)
