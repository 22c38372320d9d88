"""Torch's own ways of calling a function: layouts, transforms, fake tensors, tracers, export, autocast, its OpInfo."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import smoothloss.functional as F
from smoothloss import distillation, targets
from smoothloss.backends import unavailable
from smoothloss.testing import make_sequences, make_table

theirs = torch.nn.functional
N, V, D = 4, 7, 3
Y = torch.tensor([1, 0, -100, 6])
B, T, L = 2, 2, 3
TABLE, EXACT, SEQUENCES = make_table(V, k=3), make_table(V, k=3, tail="exact"), make_sequences(B, T, V, L)
INDICES = torch.tensor([[1, 1, -1], [0, 5, 2], [-1, -1, -1], [6, 3, 3]])
WEIGHTS = torch.rand(INDICES.shape, generator=torch.Generator().manual_seed(4))

# torch's tracers still script methods and instantiate autograd functions.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script"),
]


def labels(logits: Tensor, **more: Any) -> Tensor:
    return F.cross_entropy(logits, Y.to(logits.device), **more)


def entries(logits: Tensor, **more: Any) -> Tensor:
    return F.sparse_cross_entropy(logits, INDICES.to(logits.device), WEIGHTS.to(logits.device), **more)


def tok(logits: Tensor, **more: Any) -> Tensor:
    table = TABLE.to(logits.device)
    return F.cross_entropy(logits, Y.to(logits.device), table=table, alpha=0.3, **more)


def exact(logits: Tensor, **more: Any) -> Tensor:
    table = EXACT.to(logits.device)
    return F.cross_entropy(logits, Y.to(logits.device), table=table, alpha=0.3, **more)


def lazy(logits: Tensor, **more: Any) -> Tensor:
    y, samples, omega = (tensor.to(logits.device) for tensor in SEQUENCES)
    loss = F.lazy_sequence_cross_entropy(logits.reshape(B, T, V), y, samples, omega, alpha=0.6, **more)
    return loss.reshape(N) if more.get("reduction") == "none" else loss


def linear(hidden: Tensor, weight: Tensor, **more: Any) -> Tensor:
    return F.linear_cross_entropy(hidden, weight, Y.to(hidden.device), **more)


def on_logits(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda hidden, weight, **more: loss(hidden @ weight.t(), **more)


LOSSES = {"labels": labels, "entries": entries, "tok": tok, "exact": exact, "lazy": lazy}
CASES = {**{name: on_logits(loss) for name, loss in LOSSES.items()}, "linear": linear}
REDUCTIONS = ["mean", "none"]


def make_layer(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64)
    return hidden.to(dtype), torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype)


def gradients(loss: Callable[..., Tensor], hidden: Tensor, weight: Tensor, **more: Any) -> tuple[Tensor, ...]:
    leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    return torch.autograd.grad(loss(*leaves, **more).sum(), leaves)


# ---- layouts


# How logits (N, V) come out of a leaf that holds them.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda x: x * 1,
    "columns of a wider tensor": lambda x: torch.cat((x, x, x), 1)[:, V : 2 * V],
    "rows of a longer tensor": lambda x: torch.cat((x, x))[N:],
    "every second column": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "transposed": lambda x: x.t().contiguous().t(),
}


@given(
    layout=st.sampled_from(sorted(LAYOUTS)), inplace=st.booleans(), name=st.sampled_from(list(LOSSES)),
    reduction=st.sampled_from(REDUCTIONS), dtype=st.sampled_from([torch.float32, torch.float64]),
    options=st.fixed_dictionaries(
        {}, optional={"label_smoothing": st.just(0.1), "entropy": st.just(0.2), "softcap": st.just(5.0)}
    ),
)  # fmt: skip
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_layout_of_logits_is_of_no_account(
    impl: str, layout: str, inplace: bool, name: str, reduction: str, dtype: torch.dtype, options: dict[str, float]
) -> None:
    leaf = torch.randn(N, V, generator=torch.Generator().manual_seed(1), dtype=dtype)
    view = LAYOUTS[layout]
    results = []
    for lay_out, given_inplace in ((view, inplace), (lambda x: x * 1, False)):
        x = leaf.clone().requires_grad_()
        loss = LOSSES[name](lay_out(x), reduction=reduction, impl=impl, inplace=given_inplace, **options)
        results.append((loss.detach(), torch.autograd.grad(loss.sum(), x)[0]))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("name", LOSSES)
def test_expanded_and_overlapping_logits(impl: str, name: str) -> None:
    for make in (lambda x: x[:V].expand(N, V), lambda x: x.as_strided((N, V), (1, 1)), lambda x: x.unfold(0, V, 1)[:N]):
        results = []
        for inplace in (True, False):
            x = torch.linspace(-1, 1, N + V, dtype=torch.float64).requires_grad_()
            logits = make(x * 1)
            loss = LOSSES[name](logits if inplace else logits.clone(), impl=impl, inplace=inplace)
            results.append((loss.detach(), torch.autograd.grad(loss, x)[0]))
        torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("part", ["rows", "columns"])
def test_inplace_writes_over_nothing_but_logits_that_own_their_memory(impl: str, part: str) -> None:
    whole = torch.randn(2 * N, 2 * V)
    before, x = whole.clone(), whole.requires_grad_()
    labels(x[:N] if part == "rows" else x[:N, :V], inplace=True, impl=impl).backward()
    assert torch.equal(whole, before)


# ---- torch.func


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", CASES)
def test_torch_func(impl: str, name: str, reduction: str) -> None:
    loss, layer = functools.partial(CASES[name], reduction=reduction), make_layer()
    total = lambda *leaves, **more: loss(*leaves, **more).sum()  # noqa: E731
    expected = gradients(loss, *layer, impl="reference")
    both = (0, 1)
    torch.testing.assert_close(torch.func.grad(functools.partial(total, impl=impl), both)(*layer), expected)
    value, pull = torch.func.vjp(functools.partial(loss, impl=impl), *layer)
    torch.testing.assert_close(pull(torch.ones_like(value)), expected)
    jacobian = torch.func.jacrev(functools.partial(loss, impl=impl), both)(*layer)
    reference = torch.func.jacfwd(functools.partial(loss, impl="reference"), both)(*layer)
    torch.testing.assert_close(jacobian, reference)
    leaves = [tensor.clone().requires_grad_() for tensor in layer]
    value = loss(*leaves, impl=impl)
    basis = torch.eye(value.numel(), dtype=value.dtype).reshape(-1, *value.shape)
    batched = torch.autograd.grad(value, leaves, basis, is_grads_batched=True)
    torch.testing.assert_close(batched, tuple(j.reshape(-1, *j.shape[value.dim() :]) for j in reference))


@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("name", CASES)
def test_forward_mode_vmap_and_hessians_take_the_reference(impl: str, name: str) -> None:
    loss, layer = functools.partial(CASES[name], impl=impl), make_layer()
    tangents = tuple(map(torch.ones_like, layer))
    _, forward = torch.func.jvp(loss, layer, tangents)
    expected = sum(g.sum() for g in gradients(loss, *layer))
    torch.testing.assert_close(forward, expected)
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(*pair) for pair in zip(layer, tangents, strict=True)]
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(loss(*duals)).tangent, expected)
    batch = torch.stack((layer[0], -layer[0]))
    mapped = torch.func.vmap(loss, (0, None))(batch, layer[1])
    torch.testing.assert_close(mapped, torch.stack([loss(one, layer[1]) for one in batch]))
    per_sample = torch.func.vmap(torch.func.grad(loss, 1), (0, None))(batch, layer[1])
    torch.testing.assert_close(per_sample, torch.stack([gradients(loss, one, layer[1])[1] for one in batch]))
    hessian = torch.func.hessian(loss)(*layer)
    assert hessian.shape == (N, D, N, D) and hessian.abs().sum() > 0


@pytest.mark.parametrize("impl", ["native"])
@pytest.mark.parametrize("name", CASES)
def test_kernels_have_a_rule_for_vmap(impl: str, name: str) -> None:
    if unavailable(impl, "cpu", torch.float64):
        pytest.skip("no kernels")
    loss, (hidden, weight) = functools.partial(CASES[name], impl=impl), make_layer()
    batch = torch.stack((hidden, -hidden))
    mapped = torch.func.vmap(loss, (0, None))(batch, weight)
    torch.testing.assert_close(mapped, torch.stack([loss(one, weight) for one in batch]))


def test_functional_call(impl: str) -> None:
    class Model(torch.nn.Linear):
        def forward(self, hidden: Tensor) -> Tensor:
            return F.linear_cross_entropy(hidden, self.weight, Y, linear_bias=self.bias, impl=impl)

    model, hidden = Model(D, V), torch.randn(N, D)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    ours = torch.func.grad(lambda p: torch.func.functional_call(model, p, hidden))(parameters)
    model(hidden).backward()
    for name, value in model.named_parameters():
        torch.testing.assert_close(ours[name], value.grad)


# ---- fake tensors, tracers, export, compile


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", CASES)
def test_fake_and_meta_tensors(impl: str, name: str, reduction: str) -> None:
    hidden, weight = make_layer(torch.float32)
    real = CASES[name](hidden, weight, reduction=reduction)
    if impl != "triton":
        meta = [tensor.to("meta").requires_grad_() for tensor in (hidden, weight)]
        loss = CASES[name](*meta, reduction=reduction)
        assert (loss.device.type, loss.shape, loss.dtype) == ("meta", real.shape, real.dtype)
        loss.sum().backward()
        assert meta[1].grad is not None and meta[1].grad.shape == weight.shape
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = [mode.from_tensor(tensor).requires_grad_() for tensor in (hidden, weight)]
        loss = CASES[name](*fake, reduction=reduction, impl=impl)
        loss.sum().backward()
    assert (loss.shape, loss.dtype) == (real.shape, real.dtype)
    assert fake[1].grad.shape == weight.shape


@pytest.mark.parametrize("name", CASES)
def test_make_fx(impl: str, name: str) -> None:
    if impl == "triton":
        pytest.skip("the interpreter is not traced")
    layer = make_layer(torch.float32)
    run = functools.partial(gradients, functools.partial(CASES[name], impl=impl))
    for mode in ("real", "fake"):
        traced = make_fx(run, tracing_mode=mode, _allow_non_fake_inputs=True)(*layer)
        torch.testing.assert_close(traced(*layer), run(*layer))


class Model(torch.nn.Module):
    def __init__(self, is_linear: bool, impl: str) -> None:
        super().__init__()
        self.classifier, self.is_linear, self.impl = torch.nn.Linear(D, V), is_linear, impl

    def forward(self, hidden: Tensor, y: Tensor) -> Tensor:
        if self.is_linear:
            bias = self.classifier.bias
            return F.linear_cross_entropy(hidden, self.classifier.weight, y, linear_bias=bias, impl=self.impl)
        return F.cross_entropy(self.classifier(hidden), y, label_smoothing=0.1, impl=self.impl)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("is_linear", [False, True])
def test_export_with_a_dynamic_batch(impl: str, is_linear: bool, strict: bool) -> None:
    if impl == "triton":
        pytest.skip("the interpreter is not traced")
    model, batch = Model(is_linear, impl), torch.export.Dim("batch")
    arguments = torch.randn(N, D), Y
    exported = torch.export.export(model, arguments, dynamic_shapes=({0: batch}, {0: batch}), strict=strict).module()
    for rows in (2, N, 9):
        again = torch.randn(rows, D), torch.arange(rows) % V
        torch.testing.assert_close(exported(*again), model(*again))


def statistics(logits: Tensor, y: Tensor, **more: Any) -> Tensor:
    found = F.token_statistics(logits, y.clamp(min=0).unsqueeze(-1), **more)
    return (found.entropy - found.log_prob.squeeze(-1) + found.log_rest).mean()


def two_positions(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, labels and samples of sequences of length 2."""
    y = torch.stack((y, y), -1)
    return torch.stack((logits, -logits), 1), y, torch.stack((y, y.flip(-1)))


def sequences(logits: Tensor, y: Tensor, **more: Any) -> Tensor:
    logits, y, samples = two_positions(logits, y)
    return F.sequence_cross_entropy(torch.stack((logits, logits, logits)), y, samples, alpha=0.3, **more)


# Logits (N, V) and class numbers (N,), N unknown.
OF_ANY_BATCH: dict[str, Callable[..., Tensor]] = {
    "entries": lambda z, y, **o: F.sparse_cross_entropy(z, y.unsqueeze(-1), z.detach()[..., :1].exp(), kl=True, **o),
    "weight": lambda z, y, **o: F.cross_entropy(z, y, weight=torch.ones(V), label_smoothing=0.1, **o),
    "tok": lambda z, y, **o: F.cross_entropy(z, y, table=TABLE, alpha=0.3, **o),
    "exact": lambda z, y, **o: F.cross_entropy(z, y, table=EXACT, alpha=0.3, **o),
    "exact kl": lambda z, y, **o: F.cross_entropy(z, y, table=EXACT, alpha=0.3, kl=True, **o),
    "lazy": lambda z, y, **o: F.lazy_sequence_cross_entropy(
        *two_positions(z, y), alpha=0.3, table=TABLE, token_alpha=0.2, **o
    ),
    "sequences": sequences,
    "statistics": statistics,
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # of torch 2.6
@pytest.mark.filterwarnings("ignore:(?s).*does not reference an nn.Module:UserWarning")  # of torch 2.6
@pytest.mark.parametrize("name", OF_ANY_BATCH)
def test_every_loss_is_exported_with_a_dynamic_batch(impl: str, name: str) -> None:
    if impl == "triton":
        pytest.skip("the interpreter is not traced")

    class OneLoss(torch.nn.Module):
        def forward(self, logits: Tensor, y: Tensor) -> Tensor:
            return OF_ANY_BATCH[name](logits, y, impl=impl)

    model, batch = OneLoss(), torch.export.Dim("batch")
    arguments, shapes = (torch.randn(N, V), Y), ({0: batch}, {0: batch})
    exported = torch.export.export(model, arguments, dynamic_shapes=shapes, strict=False).module()
    for rows in (2, N, 9):
        again = torch.randn(rows, V), torch.arange(rows) % V
        torch.testing.assert_close(exported(*again), model(*again))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["labels", "lazy", "linear"])
def test_compiled_code_says_which_index_is_out_of_range(impl: str, name: str) -> None:
    if impl == "triton":
        pytest.skip("the interpreter is not compiled")
    torch.compiler.reset()
    hidden, weight = make_layer(torch.float32)

    def function(y: Tensor, samples: Tensor) -> Tensor:
        if name == "linear":
            return F.linear_cross_entropy(hidden, weight, y.flatten(), impl=impl)
        logits = (hidden @ weight.t()).reshape(B, T, V)
        if name == "labels":
            return F.cross_entropy(logits, y, impl=impl)
        return F.lazy_sequence_cross_entropy(logits, y, samples, alpha=0.5, impl=impl)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    y, samples = torch.zeros(B, T, dtype=torch.long), torch.ones(L, B, T, dtype=torch.long)
    torch.testing.assert_close(compiled(y, samples), function(y, samples))
    for wrong in (-1, -7, V):
        bad = y.clone()
        bad[1, 1] = wrong
        cases = [(bad, samples)] + ([(y, samples.index_fill(2, torch.tensor(1), wrong))] if name == "lazy" else [])
        for arguments in cases:
            for run in (function, compiled):
                with pytest.raises(IndexError, match=f"got {wrong}|negative class number"):
                    run(*arguments)


def test_a_gradient_of_torch_func_inside_of_compiled_code() -> None:
    torch.compiler.reset()
    logits, y = torch.randn(N, V), Y
    function = torch.func.grad(lambda z: F.cross_entropy(z, y))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits), function(logits))


# ---- autocast, DTensor


@pytest.mark.parametrize("dtypes", [(torch.float64,) * 2, (torch.float32,) * 2, (torch.bfloat16, torch.float32)])
def test_autocast_casts_as_it_does_for_linear(impl: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    if unavailable(impl, "cpu", torch.bfloat16):
        pytest.skip("no bfloat16 here")
    hidden, weight = (tensor.to(dtype) for tensor, dtype in zip(make_layer(), dtypes, strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        logits = theirs.linear(hidden, weight)
        ours = F.linear_cross_entropy(hidden, weight, Y, impl=impl)
    wide = logits.dtype if logits.dtype == torch.float64 else torch.float32
    assert ours.dtype == wide
    rounded = [tensor if tensor.dtype == torch.float64 else tensor.bfloat16() for tensor in (hidden, weight)]
    torch.testing.assert_close(ours, F.linear_cross_entropy(*rounded, Y, impl=impl))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kl", [False, True])
def test_autocast_changes_nothing_within_a_loss(impl: str, name: str, kl: bool) -> None:
    logits = torch.randn(N, V)
    expected = LOSSES[name](logits, kl=kl, impl=impl)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(LOSSES[name](logits, kl=kl, impl=impl), expected)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        *({"reduction": reduction, "memory": memory} for reduction in ("mean", "none") for memory in ("fast", "low")),
        {"label_smoothing": 0.1, "entropy": 0.1, "reduction": "none", "chunk_bytes": 4 * 300 * 50},
        {"tail": "compensated"},
    ],
)
def test_autocast_changes_nothing_within_a_backward(options: dict[str, Any], batched: bool) -> None:
    """Not even of those that come in several at a time, which go through torch's own operators."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, D, generator=generator).bfloat16().requires_grad_() for n in (300, 50))
    target = torch.arange(300) % 10  # names few enough classes for a tail

    def run() -> tuple[Tensor, ...]:
        loss = F.linear_cross_entropy(hidden, weight, target, **options)
        shape = (2, *loss.shape) if batched else loss.shape
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=loss.dtype)
        return torch.autograd.grad(loss, (hidden, weight), grad, is_grads_batched=batched)

    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        for got, want in zip(run(), expected, strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("batched", [False, True])
def test_autocast_changes_nothing_within_the_backward_of_statistics(batched: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, D, generator=generator).bfloat16().requires_grad_() for n in (20, 50))

    def run() -> tuple[Tensor, ...]:
        found = F.linear_token_statistics(hidden, weight, torch.arange(20)[:, None])
        outputs = [found.log_prob, found.entropy, found.logsumexp]
        grads = [torch.ones((2, *each.shape) if batched else each.shape, dtype=each.dtype) for each in outputs]
        return torch.autograd.grad(outputs, (hidden, weight), grads, is_grads_batched=batched)

    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        for got, want in zip(run(), expected, strict=True):
            assert torch.equal(got, want)


@pytest.mark.filterwarnings("ignore:DTensor random operators may not:UserWarning")  # of torch 2.6
def test_a_dtensor_is_taken_or_told_what_to_do() -> None:
    distributed = pytest.importorskip("torch.distributed.tensor")
    if not torch.distributed.is_available():
        pytest.skip("no torch.distributed")
    import torch.distributed as dist

    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        rows, logits, weight = torch.randn(N, D), torch.randn(N, V), torch.randn(V, D)

        def distribute(tensor: Tensor, *placements: Any) -> Tensor:
            return distributed.distribute_tensor(tensor, mesh, placements)

        shard, replicate = distributed.Shard, distributed.Replicate()
        for placement in (replicate, shard(1)):
            torch.testing.assert_close(F.cross_entropy(distribute(logits, placement), Y), F.cross_entropy(logits, Y))
        for placement in (replicate, shard(0)):
            loss = F.linear_cross_entropy(distribute(rows, replicate), distribute(weight, placement), Y)
            torch.testing.assert_close(loss, F.linear_cross_entropy(rows, weight, Y))
        with pytest.raises(ValueError, match=r"^input: got a DTensor placed .*, expected replicated, or split along"):
            F.cross_entropy(distribute(logits, shard(0)), Y)
        with pytest.raises(ValueError, match=r"^linear_weight: got a DTensor placed .*, expected replicated, or split"):
            F.linear_cross_entropy(rows, distribute(weight, shard(1)), Y)
        with pytest.raises(ValueError, match=r"^group: got one beside input as a DTensor"):
            F.cross_entropy(distribute(logits, shard(1)), Y, group=dist.group.WORLD)
        with pytest.raises(
            TypeError, match=r"^target: got a DTensor, expected a torch.Tensor: pass target.full_tensor"
        ):
            F.cross_entropy(logits, distribute(Y, replicate))
        known = distillation.Teacher.from_logits(logits, 2)
        parts = [known.indices, known.log_probs, known.log_rest]
        split = [distribute(part, replicate) for part in parts]
        bias = distribute(torch.randn(V), replicate)
        for name, call in {
            "weight": lambda: F.cross_entropy(logits, Y, weight=bias),
            "linear_bias": lambda: F.linear_cross_entropy(rows, weight, Y, linear_bias=bias),
            "prior": lambda: F.cross_entropy(logits, Y, prior=bias.softmax(0), label_smoothing=0.1),
            "indices": lambda: F.token_statistics(logits, split[0]),
            "indices of a teacher": lambda: distillation.Teacher(split[0], *parts[1:]),
            "log_probs": lambda: distillation.Teacher(parts[0], split[1], parts[2]),
            "log_rest": lambda: distillation.Teacher(*parts[:2], split[2]),
            "weight of positions": lambda: distillation.loss(logits, known, weight=split[2].exp()),
        }.items():
            with pytest.raises(TypeError, match=rf"^{name.split()[0]}: got a DTensor, expected a torch.Tensor"):
                call()
        for nothing in (logits[:, :0], distribute(logits[:, :0], replicate)):
            with pytest.raises(ValueError, match=rf"^input: got shape \({N}, 0\), expected \(..., V\) with V >= 1"):
                F.cross_entropy(nothing, Y)
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="torch traces no more")
def test_a_loss_that_is_traced_is_the_loss_or_refused() -> None:
    """Not the number that it was for the tensors of the trace: a tracer sees nothing of what a kernel writes."""
    (hidden, weight), (other, _) = make_layer(), make_layer()
    other = -other
    calls = {**CASES, "statistics": lambda h, w: F.token_statistics(h @ w.t(), INDICES).entropy}
    for name, call in calls.items():
        try:
            traced = torch.jit.trace(call, (hidden, weight), check_trace=False)
        except RuntimeError as error:
            assert name == "linear" and "bool" in str(error)  # a tracer knows no lists of flags
            continue
        torch.testing.assert_close(traced(other, weight), call(other, weight), msg=name)


@pytest.mark.parametrize("name", ["labels", "entries", "linear"])
def test_float64_stays_float64_in_compiled_code(name: str) -> None:
    layer, weights = make_layer(), WEIGHTS.double()
    calls = {
        "labels": lambda h, w: F.cross_entropy(h @ w.t(), Y, label_smoothing=0.1),
        "entries": lambda h, w: F.sparse_cross_entropy(h @ w.t(), INDICES, weights, label_smoothing=0.1),
        "linear": lambda h, w: F.linear_cross_entropy(h, w, Y, label_smoothing=0.1),
    }
    compiled = torch.compile(calls[name], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*layer), calls[name](*layer), rtol=1e-14, atol=0.0)


# ---- class weights, and torch's own samples


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_class_weights_equal_torchs(impl: str, reduction: str, label_smoothing: float) -> None:
    weight = torch.rand(V, dtype=torch.float64)
    weight[0] = 0.0
    options = {"weight": weight, "label_smoothing": label_smoothing, "reduction": reduction}
    results = []
    for function, more in ((F.cross_entropy, {"impl": impl}), (theirs.cross_entropy, {})):
        logits = torch.randn(N, V, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
        loss = function(logits, Y, **options, **more)
        results.append((loss.detach(), torch.autograd.grad(loss.sum(), logits)[0]))
    torch.testing.assert_close(results[0], results[1])
    hidden, classifier = make_layer()
    linear_loss = F.linear_cross_entropy(hidden, classifier, Y, impl=impl, **options)
    torch.testing.assert_close(linear_loss, theirs.cross_entropy(hidden @ classifier.t(), Y, **options))


def test_class_weights_scale_every_entry_and_the_uniform_mass(impl: str) -> None:
    y, samples, omega = make_sequences(B, T, V, L)
    target = targets.lazy_sequence(y, samples, omega, alpha=0.5, table=make_table(V, k=3), token_alpha=0.3)
    weight, logits = torch.rand(V), torch.randn(B, T, V)
    for eps in (0.0, 0.1):
        q = target.dense(V)
        q = ((1 - eps) * q + eps * q.sum(-1, keepdim=True) / V) * weight
        loss = F.cross_entropy(logits, target, weight=weight, label_smoothing=eps, reduction="none", impl=impl)
        torch.testing.assert_close(loss, -(q * logits.log_softmax(-1)).sum(-1))


def opinfo_samples(dtype: torch.dtype, requires_grad: bool) -> list[tuple[Tensor, Tensor, dict[str, Any]]]:
    """Return torch's own samples of cross_entropy where the conventions are the same, with the classes put last."""
    pytest.importorskip("expecttest", reason="torch's samples need it")
    from torch.testing._internal.common_methods_invocations import op_db

    info = next(info for info in op_db if info.name == "nn.functional.cross_entropy")
    samples = []
    for sample in info.sample_inputs("cpu", dtype, requires_grad=requires_grad):
        y = sample.args[0] if sample.args else sample.kwargs["target"]
        if not y.dtype.is_floating_point:
            samples.append((sample.input, y, {k: v for k, v in sample.kwargs.items() if k != "target"}))
    assert len(samples) > 10
    return samples


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_own_samples(impl: str, dtype: torch.dtype) -> None:
    for given_logits, y, options in opinfo_samples(dtype, requires_grad=True):
        results = []
        for is_ours in (True, False):
            logits = given_logits.detach().clone().requires_grad_()
            if is_ours:
                last = logits.movedim(1, -1) if logits.dim() > 1 else logits
                loss = F.cross_entropy(last, y, impl=impl, **options)
            else:
                loss = theirs.cross_entropy(logits, y, **options)
            results.append((loss.detach(), torch.autograd.grad(loss.sum(), logits)[0]))
        torch.testing.assert_close(results[0], results[1], equal_nan=True)
