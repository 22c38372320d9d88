"""The Triton kernel of a draw, compiled ahead of time for GPUs that need not be here."""
# ruff: noqa: E402

from __future__ import annotations

import os

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
    pytest.skip("compiles ahead of time with Triton 3.3 or newer", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("TRITON_INTERPRET=1 interprets the kernels", allow_module_level=True)

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from smoothloss.sampling._hamming_triton import _draw_kernel

POINTERS = ("seed", "thresholds", "counts", "ranks", "set_tokens", "segments", "distances")


@pytest.mark.parametrize("capability", [80, 90, 100, 120])
@pytest.mark.parametrize("has_segments", [False, True])
@pytest.mark.parametrize("dtype", ["*i16", "*i32", "*i64"])
def test_it_compiles(capability: int, has_segments: bool, dtype: str) -> None:
    kinds = {
        **dict.fromkeys(POINTERS, "*i64"),
        **dict.fromkeys(("target", "tokens"), dtype),
        **dict.fromkeys(("set_stride", "row_width", "batch", "width"), "i32"),
        "segment_numbers": "*fp64" if has_segments else "*i64",
        "ratios": "*fp64",
        "HAS_SEGMENTS": "constexpr",
        "BLOCK": "constexpr",
    }
    signature = {name: kinds[name] for name in _draw_kernel.arg_names}
    source = ASTSource(_draw_kernel, signature, {"HAS_SEGMENTS": has_segments, "BLOCK": 256})
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    assert compiled.asm["cubin"]
