"""The Triton kernels compiled ahead of time for GPUs that need not be here: every configuration that ships, no spills.

The launchers themselves say what they would launch: their kernels are replaced by recorders.
"""
# ruff: noqa: E402

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
from quick import slow_but

triton = pytest.importorskip("triton", reason="triton is not installed")
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
    pytest.skip("compiles ahead of time with Triton 3.3 or newer", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 interprets the kernels", allow_module_level=True)

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from smoothloss.backends import triton as triton_kernels
from smoothloss.backends.common import (
    SAVED_JENSEN_SHANNON,
    SAVED_STATISTICS,
    Candidates,
    DenseRows,
    RowOptions,
    RowTarget,
    StatisticsGradients,
    TableRows,
)
from smoothloss.backends.triton import products
from smoothloss.backends.triton.config import (
    CONFIGS,
    DENSE_CONFIGS,
    ENTRY_BLOCKS,
    STATISTICS_CONFIGS,
    TARGET_BLOCKS,
    UNITS,
    RowConfig,
)
from smoothloss.sampling import (
    BatchPool,
    EditSampler,
    HammingSampler,
    SimilarPool,
    VocabularyPool,
    _edit_triton,
    _hamming_triton,
)
from smoothloss.similarity import SimilarityTable

ARCHITECTURES = (80, 90, 100, 120)
PLAIN = RowOptions()
SPREAD = RowOptions(label_smoothing=0.1)
ALL = RowOptions(label_smoothing=0.1, entropy=0.3, z_loss=0.01, logit_scale=1.7, softcap=30.0)
KERNELS = (
    "_sparse_cross_entropy_forward_kernel",
    "_sparse_cross_entropy_backward_kernel",
    "_token_statistics_forward_kernel",
    "_token_statistics_backward_kernel",
    "_jensen_shannon_forward_kernel",
    "_jensen_shannon_backward_kernel",
    "_smoothed_target_kernel",
    "_reduce_kernel",
    "_scaled_copy_kernel",
)
# What the launchers can be asked for, each with the dtypes of the logits and of the gradient.
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
SAME = ((F16, F16), (BF16, BF16), (F32, F32), (F64, F64))
WIDE = ((BF16, BF16), (F32, F32), (F64, F64))  # float16 is loaded and stored like bfloat16
CALLS = {
    "forward": SAME,
    "forward_labels": SAME,
    "forward_dense": SAME,
    "forward_prior": SAME,
    "backward": SAME,
    "backward_labels": SAME,
    "backward_dense": SAME,
    "backward_prior": SAME,
    "backward_with_mass": SAME,
    "backward_with_scale": SAME,
    "forward_backward": (*SAME, (F32, BF16), (F32, F16)),
    "forward_backward_dense": (*SAME, (F32, BF16), (F32, F16)),
    "forward_backward_prior": (*SAME, (F32, BF16), (F32, F16)),
    "forward_backward_row_loop": (*SAME, (F32, BF16), (F32, F16)),
    "forward_backward_dense_row_loop": (*SAME, (F32, BF16), (F32, F16)),
    "statistics_forward": WIDE,
    "statistics_backward": (*WIDE, (F32, BF16)),
    **{f"statistics_backward_of_{name}": ((BF16, BF16), (F64, F64)) for name in StatisticsGradients._fields},
    "jensen_shannon_forward": WIDE,
    "jensen_shannon_backward": (*WIDE, (F32, BF16)),
}
# The options that each is compiled with, where these are not both: loops over rows where they need the most registers.
ALL_OPTIONS = {
    "forward_prior": (ALL,),
    "backward_prior": (ALL,),
    "forward_backward_prior": (ALL,),
    "backward_with_mass": (PLAIN,),
    "backward_with_scale": (PLAIN,),
    "forward_backward_row_loop": (SPREAD, ALL),  # in blocks of different sizes
    "forward_backward_dense_row_loop": (ALL,),
    **{f"statistics_backward_of_{name}": (PLAIN,) for name in StatisticsGradients._fields},
}
# One width for each configuration, in units of 8 and not; numbers of entries for each block, and beyond the largest.
WIDTHS = {F32: (1000, 1003, 9800, 9801, 128256, 50257), F64: (9800, 9801)}
ENTRIES = (1, 21, 126, 200)
POINTERS = {F16: "*fp16", BF16: "*bf16", F32: "*fp32", F64: "*fp64"}
POINTERS |= {torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64"}


class Launch(NamedTuple):
    kernel: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


class Recorder:
    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert len(grid) == 1
        return lambda *arguments, **keywords: self.launches.append(Launch(self.kernel, arguments, keywords))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """Return the list to which the launchers' kernels add what they are asked for."""
    recorded: list[Launch] = []
    for name in KERNELS:
        monkeypatch.setattr(triton_kernels, name, Recorder(getattr(triton_kernels, name), recorded))
    return recorded


def call(
    name: str, dtype: torch.dtype, out_dtype: torch.dtype, v: int, s: int, options: RowOptions, rows: int = 2
) -> None:
    """Call a launcher with the smallest inputs of that kind; the uniform mass comes with the options."""
    accumulator = F64 if dtype == F64 else F32
    logits = torch.zeros(rows, v, dtype=dtype)
    out = logits if out_dtype == dtype else torch.empty(rows, v, dtype=out_dtype)
    indices = torch.zeros(rows, s, dtype=torch.int32)
    weights = torch.zeros(rows, s, dtype=accumulator)
    per_row = torch.zeros(rows, dtype=accumulator)
    if name == "statistics_forward":
        triton_kernels.token_statistics(logits, indices, options)
        return
    if name.startswith("statistics_backward"):
        grads = {"log_prob": weights, "log_rest": per_row, "entropy": per_row, "logsumexp": per_row}
        used = [grad if "_of_" not in name or name.endswith(kind) else None for kind, grad in grads.items()]
        saved = torch.zeros(rows, SAVED_STATISTICS, dtype=accumulator)
        triton_kernels.token_statistics_backward(StatisticsGradients(*used), logits, indices, saved, options, out)
        return
    if name.startswith("jensen_shannon"):
        teacher, saved = (
            RowTarget(indices, weights, per_row),
            torch.zeros(rows, SAVED_JENSEN_SHANNON, dtype=accumulator),
        )
        if name.endswith("forward"):
            triton_kernels.jensen_shannon(logits, teacher, 0.5, options)
        else:
            triton_kernels.jensen_shannon_backward(per_row, logits, teacher, saved, 0.5, options, out)
        return
    uniform = None if options == PLAIN else per_row
    dense = DenseRows(weights.new_zeros(1, v), indices[:, :1], weights[:, :1]) if "dense" in name else None
    prior = weights.new_zeros(v) if "prior" in name else None
    target = RowTarget(indices, weights, uniform, dense, prior=prior)
    if name.endswith("labels"):
        target = RowTarget(torch.zeros(rows, dtype=torch.int64), None, uniform, None, -100)
    if name.startswith("forward_backward"):
        programs = (lambda *_: 1) if "row_loop" in name else triton_kernels.row_programs
        with patch.object(triton_kernels, "row_programs", programs):
            triton_kernels.forward_backward(logits, target, options, out, "none")
    elif name.startswith("forward"):
        triton_kernels.forward(logits, target, options, "none")
    else:
        mass, scale = (per_row if what in name else None for what in ("with_mass", "with_scale"))
        statistics = torch.zeros(rows, 3, dtype=accumulator)
        triton_kernels.backward(per_row, scale, logits, statistics, target, options, out, mass)


def source(launch: Launch) -> tuple[ASTSource, dict[str, Any]]:
    """Return what Triton would compile for a launch, and its options."""
    names = launch.kernel.arg_names
    options = {key: value for key, value in launch.keywords.items() if key not in names}
    constants = {key: value for key, value in launch.keywords.items() if key in names}
    assert all(name.isupper() for name in constants)
    arguments = dict(zip(names, launch.arguments, strict=False))
    types = {torch.Tensor: lambda value: POINTERS[value.dtype], int: lambda _: "i32", float: lambda _: "fp32"}
    signature = {
        name: "constexpr" if name in constants else types[type(arguments[name])](arguments[name]) for name in names
    }
    aligned = [i for i, name in enumerate(names) if signature[name].startswith("*")]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    return ASTSource(launch.kernel, signature, constexprs=constants, attrs=attributes), options


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Return registers and bytes of stack of a kernel, as the driver would reserve them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    report = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert found, report
    return {"registers": int(found[1]), "stack": int(found[2])}


def resident(launch: Launch) -> int:
    """Return how many programs the configuration of a launch counts on a multiprocessor."""
    dtype = F64 if launch.keywords["ACCUMULATOR"] == triton_kernels.tl.float64 else F32
    has_dense = launch.keywords["HAS_DENSE"] or launch.keywords["HAS_PRIOR"]
    configs = (DENSE_CONFIGS if has_dense else CONFIGS)[dtype]
    chosen = (launch.keywords["num_warps"], launch.keywords["BLOCK"])
    # A loop over rows may have taken smaller blocks than its configuration.
    return max(config.resident for config in configs if config.num_warps == chosen[0] and config.block >= chosen[1])


def compile_all(launches: list[Launch], architecture: int, folder: Path) -> None:
    """Compile each launch and assert that none needs stack, nor more registers than a program may have."""
    assert launches
    worst = 0
    for launch in launches:
        what, options = source(launch)
        binary = triton.compile(what, target=GPUTarget("cuda", architecture, 32), options=options)
        used = resources(binary.asm["cubin"], folder)
        assert used["stack"] == 0, (launch.kernel.__name__, launch.keywords, used)
        threads = 32 * options.get("num_warps", 4)
        assert used["registers"] * threads <= 65536
        if launch.keywords.get("HAS_GRADIENT"):  # the kernel that reads a row twice
            assert 65536 // (used["registers"] * threads) <= resident(launch), (launch.keywords, used)
        worst = max(worst, used["registers"])
    print(f"sm_{architecture}: {len(launches)} cubins, no stack, at most {worst} registers a thread")


# A loop over rows adds little to what the same kernel is without, and fewer gradients take away: one architecture
# stands for the others. `make quick` compiles one kernel of each family, and again only after a change in it: Triton
# keeps what it has compiled.
VARIANTS = ("row_loop", "_of_")
IN_QUICK = [(90, name) for name in ("forward_backward", "statistics_backward", "jensen_shannon_backward")]
COMPILED = [
    (arch, name)
    for arch in ARCHITECTURES
    for name in CALLS
    if arch == 90 or not any(variant in name for variant in VARIANTS)
]


@pytest.mark.parametrize(("architecture", "name"), slow_but(IN_QUICK, COMPILED))
def test_compiles_without_stack(architecture: int, name: str, launches: list[Launch], tmp_path: Path) -> None:
    # All options need the most registers, and the most time to compile: one architecture stands for the others.
    options, entries = (ALL, 126) if architecture == 90 and "_with_" not in name else (PLAIN, 21)
    for dtype, out_dtype in CALLS[name]:
        call(name, dtype, out_dtype, 9800, entries, options)
    compile_all(launches, architecture, tmp_path)


@pytest.mark.parametrize("architecture", slow_but((90,), ARCHITECTURES))
def test_targets_and_mean_compile_without_stack(architecture: int, launches: list[Launch], tmp_path: Path) -> None:
    for dtype in (torch.int32, torch.int64):
        for k in (1, 20, 200):  # one for each number of slots that a program fills at a time
            target, samples = torch.zeros(2, 3, dtype=dtype), torch.zeros(4, 2, 3, dtype=dtype)
            own, omega = torch.zeros(2), torch.zeros(4, 2)
            indices, similar, tail = torch.zeros(9, k, dtype=torch.int32), torch.zeros(9, k), torch.zeros(9)
            triton_kernels.smoothed_target(
                Candidates(target, samples, None, omega), TableRows(indices, similar, tail), 0.1
            )
            triton_kernels.smoothed_target(Candidates(target, samples), TableRows(indices, similar, None), 0.1)
            triton_kernels.smoothed_target(Candidates(target, None, own), TableRows(indices, similar, tail), 0.1)
            triton_kernels.smoothed_target(Candidates(target, samples, own, omega), None, 0.1)
    assert {launch.keywords["BLOCK_S"] for launch in launches} == {block for block, _ in TARGET_BLOCKS}
    for accumulator in (F32, F64):
        for reduction in ("mean", "sum"):
            triton_kernels.reduce(torch.zeros(3, dtype=accumulator), torch.zeros(3, dtype=accumulator), reduction)
        for out_dtype in (F32, BF16, F16) if accumulator == F32 else (F64,):
            triton_kernels.scaled_copy(torch.zeros(3, dtype=accumulator), torch.ones((), dtype=accumulator), out_dtype)
    compile_all(launches, architecture, tmp_path)


@pytest.mark.parametrize("architecture", slow_but((90,), ARCHITECTURES))
def test_draws_compile_without_stack(architecture: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorded: list[Launch] = []
    for module, name in (
        (_hamming_triton, "_draw_kernel"), (_edit_triton, "_draw_kernel"), (_edit_triton, "_prior_kernel"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, Recorder(getattr(module, name), recorded))
    monkeypatch.setattr(_hamming_triton, "unavailable", lambda sentences: None)
    table = SimilarityTable.from_embeddings(torch.randn(40, 4), k=5, tau=0.4)
    for dtype, width in ((torch.int16, 16), (torch.int32, 70), (torch.int64, 500)):
        target = torch.zeros(2, width, dtype=dtype)
        for pool in (BatchPool(), VocabularyPool(40), SimilarPool(table)):
            HammingSampler(0.3, pool, impl="triton")(target, None, 3)
        for max_insertions in (1, 4):
            EditSampler(0.3, BatchPool(), max_insertions=max_insertions, impl="triton")(target, None, 3)
    compile_all(recorded, architecture, tmp_path)


def product_launches(monkeypatch: pytest.MonkeyPatch, rows: int, classes: int, width: int) -> list[Launch]:
    recorded: list[Launch] = []
    with monkeypatch.context() as patch:
        for name in ("_copy_columns_kernel", "_add_rows_kernel", "_add_to_rows_kernel"):
            patch.setattr(products, name, Recorder(getattr(products, name), recorded))
        matrix, kept = torch.zeros(rows, classes, dtype=BF16), torch.zeros(classes, dtype=torch.int32)
        columns = products.KeptColumns(matrix, kept, torch.zeros((), dtype=torch.int64), classes // 2)
        columns.add_rows(torch.zeros(rows, width), torch.zeros(classes, width, dtype=BF16))
        columns.add_to_rows(torch.zeros(classes, width), torch.zeros(rows, width, dtype=BF16))
    return recorded


@pytest.mark.parametrize("architecture", slow_but((90,), ARCHITECTURES))
def test_products_compile_without_stack(architecture: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On tensor cores, fed by copies of 16 bytes, with no more shared memory than consumers' GPUs have."""
    recorded = product_launches(monkeypatch, 4, 96, 16)
    compile_all(recorded, architecture, tmp_path)
    for launch in recorded[1:]:
        what, options = source(launch)
        binary = triton.compile(what, target=GPUTarget("cuda", architecture, 32), options=options)
        assert binary.metadata.shared <= 99 << 10
        ptx = binary.asm["ptx"]
        assert any(name in ptx for name in ("mma.sync", "wgmma.mma_async", "tcgen05.mma"))
        assert ptx.count("cp.async.cg.shared.global") >= 12  # which is always 16 bytes


def test_sizes_of_products_are_no_reason_to_compile_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for launch, other in zip(
        product_launches(monkeypatch, 4, 96, 16), product_launches(monkeypatch, 1, 16, 8), strict=True
    ):
        assert launch.keywords == other.keywords
        numbers = [
            name for name, value in zip(launch.kernel.arg_names, launch.arguments, strict=False)
            if not isinstance(value, torch.Tensor)
        ]  # fmt: skip
        assert set(numbers) <= free_arguments(launch.kernel)


def test_the_prior_of_edits_rounds_as_its_definition_does(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: list[Launch] = []
    for name in ("_draw_kernel", "_prior_kernel"):
        monkeypatch.setattr(_edit_triton, name, Recorder(getattr(_edit_triton, name), recorded))
    monkeypatch.setattr(_hamming_triton, "unavailable", lambda sentences: None)
    EditSampler(0.3, BatchPool(), impl="triton")(torch.zeros(2, 9, dtype=torch.int64), None, 3)
    what, options = source(recorded[0])
    ptx = triton.compile(what, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    divisions = re.findall(r"div\S*f64", ptx)  # the logarithm has others of its own
    assert set(divisions) == {"div.rn.f64"}


@pytest.fixture
def throwaway_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Keep a gigabyte of kernels that nobody will run out of the user's cache."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    yield
    for path in sorted((tmp_path / "cache").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.slow
@pytest.mark.skipif(
    "SMOOTHLOSS_AOT_ALL" not in os.environ, reason="half an hour of compilation: SMOOTHLOSS_AOT_ALL=1 runs it"
)
@pytest.mark.usefixtures("throwaway_cache")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_everything_that_ships_compiles_without_stack(
    architecture: int, name: str, launches: list[Launch], tmp_path: Path
) -> None:
    for dtype, out_dtype in CALLS[name]:
        for v in WIDTHS[F64 if dtype == F64 else F32]:
            for s in ENTRIES:
                for options in ALL_OPTIONS.get(name, (PLAIN, ALL)):
                    call(name, dtype, out_dtype, v, s, options)
    unique = {repr((source(launch)[0].hash(), launch.keywords["num_warps"])): launch for launch in launches}
    compile_all(list(unique.values()), architecture, tmp_path)


@pytest.mark.parametrize(
    ("name", "configs"),
    [
        ("backward", CONFIGS),
        ("backward_dense", DENSE_CONFIGS),
        ("statistics_forward", STATISTICS_CONFIGS),
        ("statistics_backward", CONFIGS),
    ],
)
def test_the_widths_and_entries_tested_reach_every_configuration(
    name: str, configs: dict[torch.dtype, tuple[RowConfig, ...]], launches: list[Launch]
) -> None:
    for dtype in (F32, F64):
        for v in WIDTHS[dtype]:
            for s in ENTRIES:
                call(name, dtype, dtype, v, s, PLAIN)
    keywords = [launch.keywords for launch in launches]
    reached = {(str(k["ACCUMULATOR"]), k["BLOCK"], k["num_warps"], k["UNIT"], k["BLOCK_S"]) for k in keywords}
    shipped = {
        (str(triton_kernels._ACCUMULATORS[dtype]), config.block, config.num_warps, unit, block)
        for dtype, widths in configs.items()
        for config in widths
        for unit in UNITS
        for block in ENTRY_BLOCKS
    }
    assert reached == shipped
    assert {k["HAS_MANY_ENTRIES"] for k in keywords} == {False, True}


def free_arguments(kernel: Any) -> set[str]:
    return {parameter.name for parameter in kernel.params if parameter.do_not_specialize}


@pytest.mark.parametrize("name", CALLS)
def test_numbers_that_vary_are_no_reason_to_compile_again(name: str, launches: list[Launch]) -> None:
    other = RowOptions(label_smoothing=0.2, entropy=0.7, z_loss=0.0, logit_scale=1.0, softcap=50.0)
    call(name, F32, F32, 9800, 21, ALL)
    call(name, F32, F32, 9808, 22, other, rows=16)
    call(name, F32, F32, 16384, 32, other, rows=2 if "row_loop" in name else 1)
    first, *rest = launches
    free = free_arguments(first.kernel)
    for launch in rest:
        assert launch.keywords == first.keywords
        for parameter, one, two in zip(first.kernel.params, first.arguments, launch.arguments, strict=False):
            assert type(one) is type(two)
            assert isinstance(one, torch.Tensor) or parameter.name in free, "specialised on its value"


def test_sizes_of_targets_are_no_reason_to_compile_again(launches: list[Launch]) -> None:
    for j, k, b, t, alpha in ((3, 16, 16, 1, 0.5), (2, 20, 1, 5, 0.1)):
        table = TableRows(torch.zeros(16, k, dtype=torch.int32), torch.zeros(16, k), torch.zeros(16))
        candidates = Candidates(torch.zeros(b, t).long(), torch.zeros(j, b, t).long(), None, torch.zeros(j, b), alpha)
        triton_kernels.smoothed_target(candidates, table, alpha)
    triton_kernels.reduce(torch.zeros(16), torch.zeros(16), "mean")
    assert launches[0].keywords == launches[1].keywords
    for launch in launches:
        numbers = {
            name for name, value in zip(launch.kernel.arg_names, launch.arguments, strict=False)
            if not isinstance(value, torch.Tensor)
        }  # fmt: skip
        assert numbers
        assert numbers <= free_arguments(launch.kernel)


def test_rows_that_are_no_multiple_of_16_are_read_by_16_bytes(launches: list[Launch]) -> None:
    call("forward_backward", BF16, BF16, 9800, 21, PLAIN)
    what, options = source(launches[0])
    ptx = triton.compile(what, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    assert "ld.global.v4.b32" in ptx
    assert "st.global.v4.b32" in ptx


def test_explains_why_it_cannot_run_here() -> None:
    assert "CUDA" in str(triton_kernels.unavailable("cpu", F32))
    assert "int64" in str(triton_kernels.unavailable("cuda", torch.int64))
