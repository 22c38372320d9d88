"""Classes split over processes: each ends with what one process gets of all. As a script, one of the processes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import smoothloss.functional as F
from smoothloss import distillation
from smoothloss.backends.common import StatisticsGradients
from smoothloss.testing import Inputs, make_inputs, make_sequences, make_table, relative_error

pytestmark = pytest.mark.slow  # the comparison takes a minute; test_slices.py and test_far_slices.py are quick

SIZES = {2: [(40, 61), (101, 0)], 4: [(0, 37, 53, 11), (25, 25, 25, 26)]}
PRIOR = torch.arange(101).sub(30).clamp(min=0).div(70 * 71 / 2)  # nothing for the first classes
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "entropy and z-loss": {"entropy": 0.3, "z_loss": 0.1},
    "all": {"logit_scale": 0.5, "softcap": 5.0, "label_smoothing": 0.2, "entropy": 0.1, "z_loss": 0.01},
    "kl": {"kl": True, "label_smoothing": 0.1},
    "prior": {"prior": PRIOR, "label_smoothing": 0.3, "logit_scale": 0.5},
    "prior and kl": {"prior": PRIOR, "kl": True, "label_smoothing": 0.3},
}
HIDDEN = 11


def _differentiated(
    function: Callable[..., Tensor], tensors: list[Tensor | None], grad: Tensor | None
) -> list[Tensor | None]:
    leaves = [None if tensor is None else tensor.clone().requires_grad_() for tensor in tensors]
    loss = function(*leaves)
    loss.backward(torch.ones_like(loss) if grad is None else grad.to(loss.dtype).expand(loss.shape))
    return [loss.detach(), *(None if leaf is None else leaf.grad for leaf in leaves)]


class Comparison:
    """How far from float64 on one process, in units of what the reference errs there in this dtype (at least eps)."""

    def __init__(self, group: Any, sizes: tuple[int, ...]) -> None:
        start = sum(sizes[: dist.get_rank(group)])
        self.group, self.sizes, self.own = group, sizes, slice(start, start + sizes[dist.get_rank(group)])
        self.errors: dict[str, float] = {}

    def see(
        self, name: str, found: list[Tensor | None], wanted: list[Tensor | None], eager: list[Tensor | None],
        parts: list[bool],
    ) -> None:  # fmt: skip
        for value, expected, usual, is_part in zip(found, wanted, eager, parts, strict=True):
            if value is None or expected is None or usual is None:
                continue
            if not value.dtype.is_floating_point:
                assert torch.equal(value, expected), name
                continue
            error = (value.double() - (expected[..., self.own] if is_part else expected)).square().sum()
            if is_part:  # of all slices together: one of them may be too small to tell
                dist.all_reduce(error, group=self.group)
            least = 1e-13 if value.dtype == torch.float64 else torch.finfo(value.dtype).eps
            ratio = error.sqrt().item() / expected.norm().item() / max(relative_error(usual, expected), least)
            self.errors[name] = max(self.errors.get(name, 0.0), ratio if ratio < float("inf") else float("inf"))


def _sparse(see: Comparison, dtype: torch.dtype, impl: str) -> None:
    """Entries with uniform mass, empty slots and ignored rows, with every option and reduction, both ways."""
    classes = 101
    for (name, options), (reduction, uniform) in itertools.product(OPTIONS.items(), (("mean", False), ("none", True))):
        problem = make_inputs(23, classes, 7, dtype=torch.float64, uniform=uniform)
        target = {"uniform": problem.uniform, "reduction": reduction, **options}
        generator = torch.Generator().manual_seed(1)
        hidden, weight = (torch.randn(n, HIDDEN, generator=generator, dtype=torch.float64) for n in (23, classes))
        bias, grad = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (classes, 23))
        grad = grad if reduction == "none" else grad[0]
        logits = problem.logits.to(dtype)
        tensors = [tensor.to(dtype) for tensor in (hidden, weight, bias)]
        for linear in (False, True):
            whole, split = _calls(problem, see.group, impl, linear, target)
            given = tensors if linear else [logits]
            own = [tensors[0], tensors[1][see.own], tensors[2][see.own]] if linear else [logits[:, see.own]]
            expected = _differentiated(whole, [tensor.double() for tensor in given], grad)
            eager, found = _differentiated(whole, given, grad), _differentiated(split, own, grad)
            if linear:
                for results in (expected, eager, found):
                    results[2] = results[2].t()  # type: ignore[union-attr]
            parts = [False, False, True, True] if linear else [False, True]
            see.see(
                f"{'linear' if linear else 'logits'}: {name}, {str(dtype)[6:]}, {impl}", found, expected, eager, parts
            )


def _calls(
    problem: Inputs, group: Any, impl: str, linear: bool, options: dict[str, Any]
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Return the loss on one process by the reference, and the loss on several."""

    def whole(z: Tensor, *layer: Tensor) -> Tensor:
        z = torch.nn.functional.linear(z, *layer) if layer else z
        return F.sparse_cross_entropy(z, problem.indices, problem.weights, impl="reference", **options)

    def split(z: Tensor, *layer: Tensor) -> Tensor:
        if not linear:
            return F.sparse_cross_entropy(z, problem.indices, problem.weights, impl=impl, group=group, **options)
        how = {"linear_bias": layer[1], "chunk_bytes": 4096, "impl": impl, "group": group}
        return F.linear_sparse_cross_entropy(z, layer[0], problem.indices, problem.weights, **how, **options)

    return whole, split


def _named(see: Comparison, dtype: torch.dtype, impl: str) -> None:
    """The losses by their names, with class numbers and tables over all classes."""
    classes, how = 101, {"impl": impl, "group": see.group}
    table = make_table(classes)
    target, samples, sample_weights = make_sequences(3, 5, classes, 2)
    logits = (torch.randn(3, 5, classes, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 3).to(dtype)
    weight = torch.rand(classes, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    calls: dict[str, Callable[..., Tensor]] = {
        "labels": lambda z, **how: F.cross_entropy(z, target, **how),
        "class weights": lambda z, **how: F.cross_entropy(z, target, weight=weight, **how),
        "class weights and smoothing": lambda z, **how: F.cross_entropy(
            z, target, weight=weight, label_smoothing=0.2, **how
        ),
        "class weights and prior": lambda z, **how: F.cross_entropy(
            z, target, weight=weight, label_smoothing=0.2, prior=PRIOR, reduction="sum", **how
        ),
        "Tok": lambda z, **how: F.cross_entropy(z, target, table=table, alpha=0.4, **how),
        "lazy Tok-Seq": lambda z, **how: F.lazy_sequence_cross_entropy(
            z, target, samples, sample_weights, alpha=0.4, table=table, token_alpha=0.3, **how
        ),
    }
    for name, call in calls.items():
        expected = _differentiated(lambda z, call=call: call(z, impl="reference"), [logits.double()], None)
        eager = _differentiated(lambda z, call=call: call(z, impl="reference"), [logits], None)
        found = _differentiated(lambda z, call=call: call(z, **how), [logits[..., see.own]], None)
        see.see(f"{name}: {str(dtype)[6:]}, {impl}", found, expected, eager, [False, True])


def _statistics(see: Comparison, dtype: torch.dtype, impl: str) -> None:
    """All that token statistics return, and the gradients of any of them."""
    classes, rows, slots = 101, 23, 7
    generator = torch.Generator().manual_seed(8)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    logits, hidden, weight, bias = draw(rows, classes) * 3, draw(rows, HIDDEN), draw(classes, HIDDEN), draw(classes)
    indices = torch.randint(-1, classes, (rows, slots), generator=generator)
    indices[:, 1] = indices[:, 0]
    indices[3] = -1
    grads = StatisticsGradients(draw(rows, slots), draw(rows), draw(rows), draw(rows))
    for used in ("log_prob", "log_rest", "entropy", "logsumexp", "all"):
        for linear in (False, True):
            how = {"softcap": 6.0, "logit_scale": 0.7} if used == "all" else {}

            def run(tensors: list[Tensor], how: dict[str, Any] = how, used: str = used, **more: Any) -> list[Any]:
                leaves = [tensor.clone().requires_grad_() for tensor in tensors]
                if len(tensors) == 1:
                    found = F.token_statistics(leaves[0], indices, **how, **more)
                elif "group" in more:
                    more["chunk_bytes"] = 4096
                    found = F.linear_token_statistics(*leaves[:2], indices, linear_bias=leaves[2], **how, **more)
                else:
                    found = F.token_statistics(torch.nn.functional.linear(*leaves), indices, **how, **more)
                names = grads._fields if used == "all" else (used,)
                outputs = [getattr(found, name) for name in names]
                torch.autograd.backward(outputs, [getattr(grads, name).to(outputs[0].dtype) for name in names])
                results = [leaf.grad for leaf in leaves]
                if len(results) == 3:
                    results[1] = results[1].t()  # type: ignore[union-attr]
                return [*(value.detach() for value in found), *results]

            given = [tensor.to(dtype) for tensor in ((hidden, weight, bias) if linear else (logits,))]
            own = [given[0], given[1][see.own], given[2][see.own]] if linear else [given[0][:, see.own]]
            expected, eager = (run(part, impl="reference") for part in ([t.double() for t in given], given))
            found = run(own, impl=impl, group=see.group)
            parts = [False] * 5 + ([False, True, True] if linear else [True])
            kind = f"{'linear ' if linear else ''}statistics"
            see.see(f"{kind}: {used}, {str(dtype)[6:]}, {impl}", found, expected, eager, parts)


def _divergences(see: Comparison, dtype: torch.dtype, impl: str) -> None:
    """Every divergence with every treatment of the missing mass, of ragged teachers and positions without one."""
    classes, rows, slots = 101, 23, 7
    generator = torch.Generator().manual_seed(9)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((rows, HIDDEN), (classes, HIDDEN), (classes,))
    )
    indices = torch.randint(-2, classes, (rows, slots), generator=generator)
    indices[3] = -1
    log_q = torch.randn(rows, slots + 1, generator=generator, dtype=torch.float64).mul(3).log_softmax(-1)
    teacher = distillation.Teacher(indices, log_q[:, :slots], log_q[:, slots])
    weights, grad = (torch.rand(rows, generator=generator, dtype=torch.float64) for _ in range(2))
    # The mean of a truncated divergence may be next to nothing, and its rounding then anything in relation to it.
    reduction, grad = ("mean", grad[0]) if dtype == torch.float64 else ("none", grad)
    kinds = get_args(distillation.options.Divergence), get_args(distillation.options.Missing)
    prior = torch.rand(classes, generator=generator, dtype=torch.float64).softmax(-1)
    cells = [*((*cell, None) for cell in itertools.product(*kinds)), ("forward_kl", "uniform", prior)]
    for (divergence, missing, spread_by), linear in itertools.product(cells, (False, True)):
        options = {"divergence": divergence, "missing": missing, "temperature": 1.5, "weight": weights, "beta": 0.3}
        options["prior"] = spread_by
        options["reduction"] = reduction
        no_kernel = (divergence, missing) == ("jensen_shannon", "uniform")
        how = {"impl": "auto" if no_kernel else impl, "group": see.group}

        def whole(z: Tensor, *layer: Tensor, options: dict[str, Any] = options) -> Tensor:
            z = torch.nn.functional.linear(z, *layer) if layer else z
            return distillation.loss(z, teacher, impl="reference", **options)

        def split(z: Tensor, *layer: Tensor, options: dict[str, Any] = options, how: dict[str, Any] = how) -> Tensor:
            if not layer:
                return distillation.loss(z, teacher, **options, **how)
            how = {**how, "linear_bias": layer[1], "chunk_bytes": 4096}
            return distillation.linear_loss(z, layer[0], teacher, **options, **how)

        logits = torch.nn.functional.linear(hidden, weight, bias)
        given = [tensor.to(dtype) for tensor in ((hidden, weight, bias) if linear else (logits,))]
        own = [given[0], given[1][see.own], given[2][see.own]] if linear else [given[0][:, see.own]]
        expected = _differentiated(whole, [tensor.double() for tensor in given], grad)
        eager, found = _differentiated(whole, given, grad), _differentiated(split, own, grad)
        if linear:
            for results in (expected, eager, found):
                results[2] = results[2].t()  # type: ignore[union-attr]
        parts = [False, False, True, True] if linear else [False, True]
        kind = f"{'linear ' if linear else ''}{divergence}, {missing}{'' if spread_by is None else ' by a prior'}"
        see.see(f"{kind}: {str(dtype)[6:]}, {impl}", found, expected, eager, parts)


def _others(see: Comparison) -> dict[str, Any]:
    """What is no comparison of numbers."""
    group, seen = see.group, {}
    classes, target = 101, torch.tensor([3, 100, -100, 57])
    logits = torch.randn(4, classes, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    logits[2] = torch.nan
    own = logits[:, see.own].clone().requires_grad_()

    calls: list[str] = []
    real = {name: getattr(dist, name) for name in ("all_reduce", "all_gather")}

    def counted(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return real[name](*arguments, **options)

        return call

    for name in real:
        setattr(dist, name, counted(name))
    loss = F.cross_entropy(own, target, label_smoothing=0.1, group=group)
    seen["collectives of a forward"] = len(calls)
    loss.backward()
    seen["collectives of a backward from logits"] = len(calls) - seen["collectives of a forward"]
    hidden = torch.randn(4, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    weight = torch.randn(classes, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(6))[see.own]
    linear = F.linear_cross_entropy(hidden, weight, target, group=group)
    calls.clear()
    linear.backward()
    seen["collectives of a backward from hidden states"] = len(calls)
    for name, function in real.items():
        setattr(dist, name, function)

    if 0 not in [*see.sizes]:
        seen["as DTensors"] = _as_dtensors(see, logits, target, hidden, weight, [loss.detach(), linear.detach()])

    assert own.grad is not None
    total = own.grad.sum(-1)
    dist.all_reduce(total, group=group)
    seen["sum of a row's gradient"] = total.abs().max().item()
    seen["ignored row"] = own.grad[2].abs().sum().item()
    bits = [torch.empty_like(loss) for _ in range(dist.get_world_size(group))]
    dist.all_gather(bits, loss.detach(), group=group)
    seen["same bits"] = all(torch.equal(other, loss.detach()) for other in bits)
    exact = make_table(classes, tail="exact")
    for name, call in {
        "exact tail": lambda: F.cross_entropy(own, target, table=exact, alpha=0.5, group=group),
        "beyond": lambda: F.cross_entropy(own, torch.full((4,), classes), group=group),
        "twice": lambda: torch.autograd.grad(
            F.cross_entropy(own, target, group=group), own, create_graph=True
        )[0].sum().backward(),
    }.items():  # fmt: skip
        try:
            call()
        except (ValueError, IndexError, RuntimeError) as error:
            seen[name] = f"{type(error).__name__}: {error}"
    return seen


def _as_dtensors(
    see: Comparison, logits: Tensor, target: Tensor, hidden: Tensor, weight: Tensor, expected: list[Tensor]
) -> bool:
    """Return whether DTensors say the same as a group; they are cut as torch cuts, so that sizes are its own."""
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    split = distribute_tensor(logits, mesh, [Shard(-1)]).requires_grad_()
    whole = logits.clone().requires_grad_()
    loss = F.cross_entropy(split, target, label_smoothing=0.1)
    (loss + F.cross_entropy(whole, target, label_smoothing=0.1)).backward()
    assert split.grad is not None
    assert whole.grad is not None
    # Not how it is placed: of a leaf whose columns are cut unevenly torch 2.6 replicates it, whatever is computed.
    torch.testing.assert_close(split.grad.full_tensor(), whole.grad, rtol=1e-12, atol=1e-13)
    rows = DTensor.from_local(weight, mesh, [Shard(0)], shape=torch.Size((101, HIDDEN)), stride=(HIDDEN, 1))
    linear = F.linear_cross_entropy(DTensor.from_local(hidden.detach(), mesh, [Replicate()]), rows, target)
    return bool(torch.allclose(loss, expected[0]) and torch.allclose(linear, expected[1]))


def _one_process(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=world)
    results: dict[str, Any] = {}
    for sizes in SIZES[world]:
        see = Comparison(dist.group.WORLD, sizes)
        implementations = ("reference", "native") if world == 2 else ("native",)
        for dtype, impl in itertools.product((torch.float64, torch.float32), implementations):
            _sparse(see, dtype, impl)
            _named(see, dtype, impl)
            _statistics(see, dtype, impl)
            _divergences(see, dtype, impl)
        results[str(sizes)] = {"errors": see.errors, "others": _others(see)}
    (folder / f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4], ids="{} processes".format)
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """Return what each process says, for each way of cutting."""
    from waiting import outputs  # not on the path of the script

    folder, world = tmp_path_factory.mktemp("processes"), request.param
    command = [sys.executable, __file__]
    processes = [
        subprocess.Popen([*command, str(rank), str(world), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(world)
    ]
    errors = [said for _, said in outputs(processes)]
    assert not any(process.returncode for process in processes), "\n".join(errors)
    files = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]
    yield [result for file in files for result in file.values()]


def test_every_process_ends_with_what_one_process_gets(seen: list[dict[str, Any]]) -> None:
    for result in seen:
        assert len(result["errors"]) > 40
        for name, error in result["errors"].items():
            assert error <= 2, name


def test_two_collectives_forward_and_one_back(seen: list[dict[str, Any]]) -> None:
    for result in seen:
        others = result["others"]
        assert others["collectives of a forward"] == 2
        assert others["collectives of a backward from logits"] == 0
        assert others["collectives of a backward from hidden states"] == 1


def test_the_gradient_of_a_row_adds_up_to_nothing(seen: list[dict[str, Any]]) -> None:
    assert all(result["others"]["sum of a row's gradient"] < 1e-12 for result in seen)


def test_an_ignored_row_has_no_gradient_and_all_have_the_same_loss(seen: list[dict[str, Any]]) -> None:
    for result in seen:
        assert result["others"]["ignored row"] == 0
        assert result["others"]["same bits"]


def test_dtensors_say_it_without_a_group(seen: list[dict[str, Any]]) -> None:
    said = [result["others"]["as DTensors"] for result in seen if "as DTensors" in result["others"]]
    assert said
    assert all(said)


def test_what_cannot_be_says_why(seen: list[dict[str, Any]]) -> None:
    for result in seen:
        assert (
            "ValueError: table, weight: got a table with an exact tail together with group"
            in result["others"]["exact tail"]
        )
        assert "IndexError: target[0]: got 101" in result["others"]["beyond"]
        assert "double backward" in result["others"]["twice"]


if __name__ == "__main__":
    _one_process(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
