"""Products with columns that a device has chosen, in Triton's interpreter, against torch's with those columns.

Needs a process of its own: ``TRITON_INTERPRET=1`` counts when triton is imported. `make test` starts one.
"""
# ruff: noqa: E402

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a process with TRITON_INTERPRET=1", allow_module_level=True)
triton = pytest.importorskip("triton", reason="triton is not installed")
np = pytest.importorskip("numpy")
if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
    pytest.skip("this Triton's interpreter does not run loops with numpy 2.4 or newer", allow_module_level=True)

from smoothloss.backends.triton.products import PADDING, KeptColumns


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 150), classes=st.integers(2, 400), hidden=st.integers(1, 150), share=st.floats(0, 1),
    padding=st.integers(0, 9), seed=st.integers(0, 99), dtype=st.sampled_from([torch.float32, torch.float16]),
)  # fmt: skip
@pytest.mark.usefixtures("poison")
def test_products_of_small_integers_are_exact(
    rows: int, classes: int, hidden: int, share: float, padding: int, seed: int, dtype: torch.dtype
) -> None:
    """All columns, none, as many as there is room for, and any number below; what is beyond may be NaN.

    The interpreter multiplies float16, and bfloat16 it does not.
    """
    generator = torch.Generator().manual_seed(seed)
    most = max(1, classes // 2)
    size = classes if share > 0.9 else int(share / 0.9 * most)
    own = torch.randperm(classes, generator=generator)[:size].sort().values
    kept = torch.zeros(classes, dtype=torch.int32)
    kept[:size] = own

    def integers(*shape: int) -> torch.Tensor:
        return torch.randint(-4, 5, shape, generator=generator).float()

    matrix = integers(rows, classes + padding)[:, :classes]
    weight, inputs = integers(classes, hidden), integers(rows, hidden)
    others = torch.ones(classes, dtype=torch.bool).index_fill_(0, own, False)
    matrix[:, others] = torch.nan
    weight[others] = torch.nan
    columns = KeptColumns(matrix.to(dtype), kept, torch.tensor(size), most)

    of_rows, of_classes = integers(rows, hidden), integers(classes, hidden)
    expected_rows = of_rows + matrix[:, own] @ weight[own]
    expected_classes = of_classes.index_add(0, own, matrix[:, own].t() @ inputs)
    columns.add_rows(of_rows, weight.to(dtype))
    columns.add_to_rows(of_classes, inputs.to(dtype))
    assert torch.equal(of_rows, expected_rows)
    assert torch.equal(of_classes, expected_classes)


@pytest.mark.usefixtures("poison")
def test_a_copy_ends_in_zeros_and_no_more_is_written_than_is_read() -> None:
    matrix, size = torch.rand(5, 1000), 70
    kept = torch.arange(1000, dtype=torch.int32)
    copy = KeptColumns(matrix, kept, torch.tensor(size), 300).copy
    assert copy.shape == (5, 320)
    assert torch.equal(copy[:, :size], matrix[:, :size])
    assert not copy[:, size : 2 * PADDING].any()
    assert copy[:, 2 * PADDING :].isnan().all()
    assert KeptColumns(matrix, kept, torch.tensor(1000), 300).copy.isnan().all()
