"""Calls every native CUDA kernel at tiny shapes, for compute-sanitizer to watch.

    compute-sanitizer --tool memcheck --error-exitcode 9 python -m benchmarks.sanitize_cuda

Results are held against the reference too, so that a kernel that wrote nothing would be seen.
"""

from __future__ import annotations

import itertools

import torch

import smoothloss.functional as F
from smoothloss.ops.dispatch import unavailable
from smoothloss.testing import make_inputs

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = ((3, 7, 1), (5, 1003, 21), (4, 9800, 126))  # N, V, S
OPTIONS = ({}, {"label_smoothing": 0.1, "entropy": 0.3, "z_loss": 0.01, "logit_scale": 1.7, "softcap": 30.0})


def losses(n: int, v: int, s: int, dtype: torch.dtype, options: dict[str, float], impl: str) -> list[torch.Tensor]:
    """Return losses and gradients of all ops of one implementation."""
    inputs = make_inputs(n, v, s, dtype=dtype, device="cuda", uniform=bool(options))
    target = inputs.indices, inputs.weights
    results = []
    for reduction, inplace in itertools.product(("mean", "none"), (False, True)):
        leaf = inputs.logits.clone().requires_grad_()
        common = {"uniform": inputs.uniform, "reduction": reduction, "impl": impl, **options}
        loss = F.sparse_cross_entropy(leaf * 1, *target, inplace=inplace, **common)
        results += [loss, *torch.autograd.grad(loss.sum(), leaf)]
    hidden = torch.linspace(-1, 1, n * 16, device="cuda").view(n, 16).to(dtype).requires_grad_()
    weight = torch.linspace(-1, 1, v * 16, device="cuda").view(v, 16).to(dtype).requires_grad_()
    loss = F.linear_sparse_cross_entropy(hidden, weight, *target, impl=impl, **options)
    results += [loss, *torch.autograd.grad(loss, (hidden, weight))]
    leaf = inputs.logits.clone().requires_grad_()
    pair = F.logsumexp_and_select(leaf, inputs.indices, impl=impl)
    return [*results, *pair, *torch.autograd.grad(pair[0].sum() + pair[1].sum(), leaf)]


def main() -> int:
    """Run all cases; return 1 where a result is off, 2 where the kernels cannot run."""
    reason = unavailable("native", "cuda", torch.float32)
    if reason is not None:
        print(reason)
        return 2
    off = 0
    for (n, v, s), dtype, options in itertools.product(SIZES, DTYPES, OPTIONS):
        actual, expected = (losses(n, v, s, dtype, options, impl) for impl in ("native", "reference"))
        for one, other in zip(actual, expected, strict=True):
            wide = one.double(), other.double()
            scale = wide[1].norm().clamp(min=1e-3)
            off += not bool((wide[0] - wide[1]).norm() <= 0.02 * scale)
    print(f"{len(SIZES) * len(DTYPES) * len(OPTIONS)} cases, {off} results off")
    return int(off > 0)


if __name__ == "__main__":
    raise SystemExit(main())
