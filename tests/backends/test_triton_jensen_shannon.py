"""The Jensen-Shannon divergence of the Triton kernels, in Triton's interpreter, against its definition in float64.

Needs a process of its own: ``TRITON_INTERPRET=1`` counts when triton is imported. `make test` starts one.
"""
# ruff: noqa: E402

from __future__ import annotations

import os

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1", allow_module_level=True)
triton = pytest.importorskip("triton", reason="triton is not installed")
np = pytest.importorskip("numpy")
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
    pytest.skip("this Triton's interpreter does not run loops with numpy 2.4 or newer", allow_module_level=True)

from jensen_shannon_cases import OPTIONS, SHAPES, check, check_shift, check_tail

from smoothloss.backends import triton as triton_kernels

pytestmark = [
    pytest.mark.usefixtures("poison"),
    # The interpreter computes what a masked lane would, in numpy, which warns of log(0).
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("inplace", [False, True])
def test_kernels_are_their_definition(shape: tuple[int, int], inplace: bool) -> None:
    for number, name in enumerate(sorted(OPTIONS)):
        dtype = (torch.float32, torch.float64)[(number + inplace) % 2]
        check(triton_kernels, *shape, dtype, name, beta=0.3, inplace=inplace, seed=number)


def test_a_small_tail_is_kept_and_an_offset_changes_nothing() -> None:
    check_shift(triton_kernels, torch.float32)
    check_tail(triton_kernels, torch.float32)
    check_tail(triton_kernels, torch.float64)
