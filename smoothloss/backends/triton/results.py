"""What is done with results, in Triton: averaging the losses of all rows, and scaling a gradient as it is rounded."""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows"])
def _reduce_kernel(
    loss,  # (N,)
    mass,  # (N,)
    loss_out,  # ()
    scale_out,  # ()
    num_rows,
    BLOCK: tl.constexpr,
    IS_MEAN: tl.constexpr,
):
    # "mean" or "sum", and the factor of its gradient. One program, so that the order of the sum is fixed.
    total = tl.zeros((BLOCK,), tl.float64)
    count = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, num_rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        inside = row < num_rows
        total += tl.load(loss + row, mask=inside, other=0.0).to(tl.float64)
        count += (tl.load(mass + row, mask=inside, other=0.0) != 0).to(tl.int32)
    result, factor = tl.sum(total, 0), 1.0
    if IS_MEAN:  # nothing to average: 0 / 0 = nan
        rows = tl.sum(count, 0).to(tl.float64)
        result, factor = result / rows, 1.0 / tl.maximum(rows, 1.0)
    tl.store(loss_out, result.to(loss_out.dtype.element_ty))
    tl.store(scale_out, factor.to(scale_out.dtype.element_ty) if IS_MEAN else 1.0)


@triton.jit
def _scaled_copy_kernel(
    values,  # (size,)
    factor,  # ()
    out,  # (size,)
    size,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    scaled = tl.load(values + place, mask=inside, other=0.0) * tl.load(factor)
    if out.dtype.element_ty != tl.float64:
        scaled = scaled.to(tl.float32)  # not every version converts float64 to bfloat16 directly
    tl.store(out + place, scaled.to(out.dtype.element_ty), mask=inside)
