"""The kernel that averages the losses of all rows in Triton: one program, so that the order of the sum is fixed."""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows"])
def _mean_kernel(
    loss,  # (N,)
    mass,  # (N,)
    mean_out,  # ()
    scale_out,  # ()
    num_rows,
    BLOCK: tl.constexpr,
):
    total = tl.zeros((BLOCK,), tl.float64)
    count = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, num_rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        inside = row < num_rows
        total += tl.load(loss + row, mask=inside, other=0.0).to(tl.float64)
        count += (tl.load(mass + row, mask=inside, other=0.0) != 0).to(tl.int32)
    rows = tl.sum(count, 0).to(tl.float64)
    tl.store(mean_out, (tl.sum(total, 0) / rows).to(mean_out.dtype.element_ty))  # nothing to average: 0 / 0 = nan
    tl.store(scale_out, (1.0 / tl.maximum(rows, 1.0)).to(scale_out.dtype.element_ty))
