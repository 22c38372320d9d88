"""The CUDA kernels where no GPU is: compiled for every architecture, and their source run on the host.

`cuda_emulation` makes fibers of a block's threads, so that indexing, barriers, merging and the order of reads and
writes are those of the kernels. What it cannot show: the memory model beyond barriers, and the GPU's own arithmetic.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from smoothloss.backends import native, reference
from smoothloss.backends.common import Candidates, DenseRows, RowOptions, RowTarget, TableRows
from smoothloss.testing import Inputs, assert_error_budget, make_inputs, relative_error, row_target

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
# Of the kernels that ship. To compile for all of them takes minutes: one speaks for the others, the first that has
# clusters, unless SMOOTHLOSS_EXHAUSTIVE=1.
ARCHITECTURES = (75, 80, 90, 100, 120) if os.environ.get("SMOOTHLOSS_EXHAUSTIVE") == "1" else (90,)
OPTIONS = {
    "plain": RowOptions(),
    "general": RowOptions(label_smoothing=0.1, entropy=0.3, z_loss=0.01, logit_scale=0.7),
    "softcap": RowOptions(label_smoothing=0.1, entropy=0.3, z_loss=0.01, logit_scale=0.7, softcap=4.0),
}
# Types of the logits and of the gradient.
TYPES = {
    "float32": (torch.float32, torch.float32),
    "float64": (torch.float64, torch.float64),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
    "float32-bfloat16": (torch.float32, torch.bfloat16),
}
# What the emulation passes for: a GPU without clusters, one with, and one with so little shared memory that short rows
# take clusters of many blocks.
PLAIN_GPU, CLUSTERS, MANY_CLUSTERS = 0, 1, 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc here")
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_no_kernel_spills(source: Path, tmp_path: Path) -> None:
    known = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    lowest = {"rewards": 75, "forward_backward_cluster": 90}.get(source.stem, 80)
    chosen = [each for each in ARCHITECTURES if each >= lowest and f"compute_{each}\n" in known]
    targets = [f"-gencode=arch=compute_{each},code=sm_{each}" for each in chosen]
    command = ["nvcc", "-std=c++17", "-O3", "-I", ROOT / "csrc", "-DSMOOTHLOSS_HAS_CLUSTERS", "--threads=2"]
    flags = ["-Wno-deprecated-gpu-targets", "-Xptxas=-v", "-c", source, "-o", tmp_path / "kernels.o"]
    report = subprocess.run([*command, *targets, *flags], capture_output=True, text=True, check=True).stderr
    compiled = re.findall(
        r"Compiling entry function '(\w+)' for 'sm_(\d+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        report,
        re.DOTALL,
    )
    assert {int(architecture) for _, architecture, *_ in compiled} == set(chosen)
    assert [kernel for kernel in compiled if kernel[2:] != ("0", "0", "0")] == []


@pytest.fixture
def kernels(native_on_emulated_cuda: Any) -> Any:
    return native_on_emulated_cuda


# ---- calling the kernels


def poisoned(count: int, dtype: torch.dtype) -> Tensor:
    return torch.full((count,), float("nan"), dtype=dtype)


def two_steps(
    inputs: Inputs, options: RowOptions, grad: Tensor, out: Tensor, dense: DenseRows | None = None,
    scale: Tensor | None = None,
) -> Tensor:  # fmt: skip
    target = row_target(inputs, dense)
    loss, statistics, mass, _ = native.forward(inputs.logits, target, options, "none")
    native.backward(grad, scale, inputs.logits, statistics, target, options, out)
    assert statistics is not None and mass is not None
    assert not mass.isnan().any()
    return loss


def one_step(
    kernels: Any, inputs: Inputs, options: RowOptions, out: Tensor, dense: DenseRows | None = None,
    device: int = PLAIN_GPU,
) -> Tensor:  # fmt: skip
    kernels.device = device
    (loss, _, mass, _), _ = native.forward_backward(inputs.logits, row_target(inputs, dense), options, out, "none")
    kernels.device = PLAIN_GPU
    assert mass is not None and not mass.isnan().any()
    return loss


# ---- what they should return


class Expected(NamedTuple):
    loss: Tensor
    grad: Tensor


def solve(
    inputs: Inputs, options: RowOptions, grad: Tensor, dtype: torch.dtype, dense: DenseRows | None = None
) -> Expected:
    logits = inputs.logits.to(dtype).requires_grad_()
    uniform = None if inputs.uniform is None else inputs.uniform.to(dtype)
    if dense is not None:
        dense = DenseRows(dense.values.to(dtype), dense.rows, dense.weights.to(dtype))
    target = RowTarget(inputs.indices, inputs.weights.to(dtype), uniform, dense)
    loss = reference.forward(logits, target, options, "none").loss
    gradient = torch.autograd.grad(loss, logits, grad.to(dtype).expand(len(loss)), allow_unused=True)[0]
    return Expected(loss.detach(), torch.zeros_like(logits) if gradient is None else gradient)


def assert_solved(
    loss: Tensor, d_logits: Tensor, inputs: Inputs, options: RowOptions, grad: Tensor, dense: DenseRows | None = None
) -> None:
    """Hold results against float64; eager float32, rounded as the result is, says how far off they may be."""
    oracle = solve(inputs, options, grad, torch.float64, dense)
    eager = solve(inputs, options, grad, inputs.weights.dtype, dense)
    if loss.dtype == torch.float64:
        torch.testing.assert_close(loss, oracle.loss, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(d_logits, oracle.grad, rtol=1e-11, atol=1e-12)
        return
    if d_logits.shape[1] == 1:  # p = 1: next to nothing is left of the target, and that is its rounding
        torch.testing.assert_close(d_logits.double(), oracle.grad, rtol=torch.finfo(d_logits.dtype).eps, atol=2e-6)
        return
    assert_close(loss, eager.loss, oracle.loss)
    assert_close(d_logits, eager.grad.to(d_logits.dtype), oracle.grad)


def assert_close(actual: Tensor, eager: Tensor, oracle: Tensor) -> None:
    """Assert the error budget; two units of float32 are granted, since of so few rows eager is often right by luck."""
    if not relative_error(actual, oracle) <= 2 * torch.finfo(torch.float32).eps:
        assert_error_budget(actual, eager, oracle)


def random_grad(inputs: Inputs) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(len(inputs.logits), generator=generator).to(inputs.weights.dtype)


def dense_rows(inputs: Inputs, slots: int = 3) -> DenseRows:
    """Return rows of which one position takes some twice, one none, and one a row beyond the last."""
    generator = torch.Generator().manual_seed(11)
    count, (rows, classes) = 4, inputs.logits.shape
    values = torch.rand(count, classes, generator=generator, dtype=torch.float64)
    values[:, ::3] = 0.0
    values[:, -1] += 0.01
    which = torch.randint(-1, count + 1, (rows, slots), generator=generator, dtype=torch.int32)
    weights = torch.rand(rows, slots, generator=generator, dtype=torch.float64)
    dtype = inputs.weights.dtype
    return DenseRows((values / values.sum(-1, keepdim=True)).to(dtype), which, weights.to(dtype))


ONE = torch.ones(1)


# ---- the row kernels


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("classes", [1, 7, 100, 1003, 9800])
@pytest.mark.parametrize("types", TYPES)
def test_rows(kernels: Any, types: str, classes: int, name: str) -> None:
    dtype, out_dtype = TYPES[types]
    rows = 4 if classes > 1000 else 16
    inputs = make_inputs(rows, classes, 21, dtype=dtype, uniform=name != "plain", seed=classes)
    grad = random_grad(inputs)
    out = torch.full_like(inputs.logits, float("nan"), dtype=out_dtype)
    assert_solved(two_steps(inputs, OPTIONS[name], grad, out), out, inputs, OPTIONS[name], grad)
    for device in (PLAIN_GPU, CLUSTERS, MANY_CLUSTERS):
        out.fill_(float("nan"))
        loss = one_step(kernels, inputs, OPTIONS[name], out, device=device)
        assert_solved(loss, out, inputs, OPTIONS[name], ONE)


@pytest.mark.parametrize("classes", [7, 1003, 9800])
@pytest.mark.usefixtures("order")
def test_rows_in_place_and_misaligned(kernels: Any, classes: int) -> None:
    options = OPTIONS["general"]
    for dtype, offset in itertools.product((torch.float32, torch.bfloat16), (0, 3)):
        inputs = make_inputs(3, classes, 40, dtype=dtype, uniform=True, seed=1, ignored=0.3)
        grad, scale = random_grad(inputs)[:1], torch.tensor([0.25])
        for device, steps in ((PLAIN_GPU, 2), (PLAIN_GPU, 1), (CLUSTERS, 1), (MANY_CLUSTERS, 1)):
            buffer = torch.zeros(3, classes + 5, dtype=dtype)
            logits = buffer[:, offset : offset + classes]
            logits.copy_(inputs.logits)
            moved = inputs._replace(logits=logits)
            if steps == 2:
                loss = two_steps(moved, options, grad, logits, scale=scale)
            else:
                loss = one_step(kernels, moved, options, logits, device=device)
            assert_solved(loss, logits, inputs, options, grad * scale if steps == 2 else ONE)
            buffer[:, offset : offset + classes] = 0
            assert not buffer.any(), "written beyond the row"


def test_rows_aligned_unlike(kernels: Any) -> None:
    inputs = make_inputs(3, 1003, 21, seed=2)
    for stride, offset, device in itertools.product((1003, 1009), (0, 1), (PLAIN_GPU, CLUSTERS)):
        out = torch.full((3, stride + 1), float("nan"))[:, offset : offset + 1003]
        loss = one_step(kernels, inputs, OPTIONS["plain"], out, device=device)
        assert_solved(loss, out, inputs, OPTIONS["plain"], ONE)


@pytest.mark.parametrize("name", ["plain", "softcap"])
@pytest.mark.parametrize("classes", [1003, 9800])
@pytest.mark.usefixtures("order")
def test_many_entries(kernels: Any, classes: int, name: str) -> None:
    for dtype, slots in ((torch.float32, 3600), (torch.float64, 2100), (torch.bfloat16, 3413)):
        inputs = make_inputs(2, classes, slots, dtype=dtype, seed=3, ignored=0.0)
        for rows in (None, dense_rows(inputs)):
            grad = random_grad(inputs)
            in_place = inputs._replace(logits=inputs.logits.clone())
            loss = two_steps(in_place, OPTIONS[name], grad, in_place.logits, rows)
            assert_solved(loss, in_place.logits, inputs, OPTIONS[name], grad, rows)
            in_place = inputs._replace(logits=inputs.logits.clone())
            loss = one_step(kernels, in_place, OPTIONS[name], in_place.logits, rows)
            assert_solved(loss, in_place.logits, inputs, OPTIONS[name], ONE, rows)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("classes", [1, 100, 1003, 9800])
@pytest.mark.parametrize("types", TYPES)
def test_dense_rows(kernels: Any, types: str, classes: int, name: str) -> None:
    dtype, out_dtype = TYPES[types]
    for slots in (0, 21):
        inputs = make_inputs(6, classes, slots, dtype=dtype, uniform=True, seed=4, ignored=0.5)
        rows, grad = dense_rows(inputs), random_grad(inputs)
        rows.rows[0] = -1
        out = torch.full_like(inputs.logits, float("nan"), dtype=out_dtype)
        loss = two_steps(inputs, OPTIONS[name], grad, out, rows)
        assert_solved(loss, out, inputs, OPTIONS[name], grad, rows)
        out.fill_(float("nan"))
        loss = one_step(kernels, inputs, OPTIONS[name], out, rows, CLUSTERS)
        assert_solved(loss, out, inputs, OPTIONS[name], ONE, rows)


def test_what_has_no_weight_has_no_influence(kernels: Any) -> None:
    inputs = make_inputs(4, 1003, 5, seed=5, ignored=0.0)
    rows = dense_rows(inputs)
    inputs.logits[:, ::3] = -torch.inf  # where the rows are 0
    inputs.logits[1, :500] = -torch.inf
    rows.values[:, :500], rows.values[:, ::3] = 0.0, 0.0
    rows.values.div_(rows.values.sum(-1, keepdim=True))
    inputs.indices[:, 0], inputs.weights[:, 0] = 3, 0.0
    inputs.indices[:, 1:] = 1000
    inputs.logits[2], inputs.indices[2], rows.rows[2] = torch.nan, -1, -1
    for dense in (None, rows):
        out = torch.full_like(inputs.logits, float("nan"))
        loss = two_steps(inputs, OPTIONS["plain"], torch.ones(4), out, dense)
        assert_solved(loss, out, inputs, OPTIONS["plain"], ONE, dense)
        for device in (PLAIN_GPU, CLUSTERS, MANY_CLUSTERS):
            out.fill_(float("nan"))
            loss = one_step(kernels, inputs, OPTIONS["plain"], out, dense, device)
            assert_solved(loss, out, inputs, OPTIONS["plain"], ONE, dense)


@pytest.mark.parametrize("device", [PLAIN_GPU, CLUSTERS, MANY_CLUSTERS])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_labels_equal_entries_of_weight_one(kernels: Any, dtype: torch.dtype, name: str, device: int) -> None:
    for ignored, logits_dtype in ((-100, torch.float32), (3, torch.bfloat16)):
        inputs = make_inputs(4, 203, 1, dtype=logits_dtype, uniform=name != "plain", empty=0.0, ignored=0.0)
        labels = inputs.indices[:, 0].to(dtype)
        labels[2], labels[3] = ignored, 202
        entries = inputs._replace(
            indices=labels.masked_fill(labels == ignored, -1).int()[:, None], weights=torch.ones_like(inputs.weights)
        )
        target, grad = RowTarget(labels, None, inputs.uniform, None, ignored), random_grad(inputs)
        expected, out = torch.full_like(inputs.logits, torch.nan), torch.full_like(inputs.logits, torch.nan)
        loss = two_steps(entries, OPTIONS[name], grad, expected)
        actual, statistics, *_ = native.forward(inputs.logits, target, OPTIONS[name], "none")
        native.backward(grad, None, inputs.logits, statistics, target, OPTIONS[name], out)
        assert torch.equal(actual, loss) and torch.equal(out, expected)
        loss = one_step(kernels, entries, OPTIONS[name], expected, device=device)
        kernels.device = device
        (actual, *_), _ = native.forward_backward(inputs.logits, target, OPTIONS[name], out, "none")
        assert torch.equal(actual, loss) and torch.equal(out, expected)


@pytest.mark.parametrize("name", ["plain", "general"])
def test_a_large_common_offset_changes_nothing(kernels: Any, name: str) -> None:
    options = OPTIONS[name]._replace(z_loss=0.0, logit_scale=1.0)
    inputs = make_inputs(4, 203, 3, uniform=name != "plain", ignored=0.0)
    inputs.logits.copy_((inputs.logits * 2).round())
    grad, results = random_grad(inputs), []
    for offset in (0.0, 2.0**20, -(2.0**20)):
        moved = inputs._replace(logits=inputs.logits + offset)
        outs = [torch.full_like(inputs.logits, torch.nan) for _ in range(2)]
        results.append([two_steps(moved, options, grad, outs[0]), one_step(kernels, moved, options, outs[1]), *outs])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-6)
    equal = []
    for offset in (0.0, torch.finfo(torch.float32).min, -2e38, 1e15):
        moved, out = inputs._replace(logits=torch.full_like(inputs.logits, offset)), torch.zeros_like(inputs.logits)
        equal.append((two_steps(moved, options, grad, out), out))
    for result in equal[1:]:
        assert all(map(torch.equal, result, equal[0]))


@pytest.mark.parametrize("step", [0.1, 0.3, 1.0])
def test_a_long_row_loses_nothing_to_its_running_sum(kernels: Any, step: float) -> None:
    """A thread adds up 500 equal exponentials here, all rounded alike; the error of the sum is that of the gradient."""
    inputs = make_inputs(2, 128256, 3, dtype=torch.float32)
    inputs.logits.zero_()
    inputs.logits[:, :1024] = step  # the maximum of every thread
    grad, out = torch.ones(()), torch.empty_like(inputs.logits)
    expected = solve(inputs, RowOptions(), grad, torch.float64).grad
    others = torch.ones(128256, dtype=torch.bool).index_fill(0, inputs.indices.flatten().long().clamp(min=0), False)
    two_steps(inputs, RowOptions(), grad, out)
    assert relative_error(out[:, others], expected[:, others]) < 4 * torch.finfo(torch.float32).eps
    one_step(kernels, inputs, RowOptions(), out.zero_())
    assert relative_error(out[:, others], expected[:, others]) < 4 * torch.finfo(torch.float32).eps


# ---- the smoothed target, the mean and the scaled copy


@pytest.mark.parametrize("neighbours", [None, 0, 7, 64])
@pytest.mark.parametrize("candidates", [1, 5, 40])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_smoothed_target(kernels: Any, dtype: torch.dtype, candidates: int, neighbours: int | None) -> None:
    generator = torch.Generator().manual_seed(candidates)
    batch, length, tokens = 3, 5, 30
    tokens_drawn = torch.randint(-2, tokens + 2, (candidates, batch, length), generator=generator).to(dtype)
    tokens_drawn[0, 1, 2:] = -100
    weights = torch.rand(candidates, batch, generator=generator)
    table = None
    if neighbours is not None:
        indices = torch.randint(-1, tokens, (tokens, neighbours), generator=generator, dtype=torch.int32)
        table = TableRows(
            indices, torch.rand(indices.shape, generator=generator), torch.rand(tokens, generator=generator)
        )
    samples = tokens_drawn[1:] if candidates > 1 else None
    omegas = [weights[1:], weights[1:].double()] if candidates > 1 else [None]
    for own, omega in (*((weights[0], omega) for omega in omegas), (None, None)):
        drawn = Candidates(tokens_drawn[0], samples, own, omega, 0.6, -100)
        made, expected = native.smoothed_target(drawn, table, 0.3), reference.smoothed_target(drawn, table, 0.3)
        assert torch.equal(made[0], expected[0])
        torch.testing.assert_close(made[1], expected[1])
        assert (made[2] is None) == (table is None)
        if made[2] is not None:
            torch.testing.assert_close(made[2], expected[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [0, 1, 5, 1024, 5000])
@pytest.mark.usefixtures("order", "kernels")
def test_reduce(rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(rows)
    losses, mass = (torch.rand(rows, generator=generator, dtype=dtype) for _ in range(2))
    for ignored in (0.0, 0.4, 1.0):
        mass = mass.masked_fill(torch.rand(rows, generator=generator) < ignored, 0.0)
        loss, scale = native.reduce(losses, mass, "mean")
        count = mass.count_nonzero()
        torch.testing.assert_close(loss, (losses.double().sum() / count).to(dtype), equal_nan=True)
        torch.testing.assert_close(scale, (1 / count.clamp(min=1).double()).to(dtype))
        total, one = native.reduce(losses, mass, "sum")
        torch.testing.assert_close(total, losses.double().sum().to(dtype))
        assert one == 1


@pytest.mark.parametrize(
    ("dtype", "out_dtype"),
    [
        (torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float32, torch.float16),
        (torch.float64, torch.float64),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 1027, 4096, 9001])
@pytest.mark.usefixtures("order")
def test_scaled_copy(emulated_cuda: ModuleType, size: int, dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    values = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=dtype)
    factor, out = torch.tensor(0.37, dtype=dtype), torch.full((size + 1,), torch.nan, dtype=out_dtype)
    codes = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
    emulated_cuda.scaled_copy(
        values.data_ptr(), codes[dtype], size, factor.data_ptr(), out.data_ptr(), codes[out_dtype], PLAIN_GPU, 0
    )
    assert torch.equal(out[:size], (values * factor).to(out_dtype))
    assert out[size].isnan()


def test_scaled_copy_says_what_it_cannot_take(emulated_cuda: ModuleType) -> None:
    values, factor, out = torch.zeros(8), torch.ones(()), torch.zeros(8)
    with pytest.raises(ValueError, match="multiples of 16"):
        emulated_cuda.scaled_copy(values.data_ptr() + 4, 0, 4, factor.data_ptr(), out.data_ptr(), 0, PLAIN_GPU, 0)
    with pytest.raises(ValueError, match="null pointer"):
        emulated_cuda.scaled_copy(values.data_ptr(), 0, 4, 0, out.data_ptr(), 0, PLAIN_GPU, 0)
