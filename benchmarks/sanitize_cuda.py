"""Calls every native CUDA kernel at tiny shapes, for compute-sanitizer to watch.

    compute-sanitizer --tool memcheck --error-exitcode 9 python -m benchmarks.sanitize_cuda

Results are held against the reference too, so that a kernel that wrote nothing would be seen; it runs on the CPU, so
that the tool has few kernels of others to watch.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import torch

import smoothloss.functional as F
from smoothloss.backends import unavailable
from smoothloss.rewards import Cider, References, bleu_statistics, edit_distance, hamming, rouge_l, sentence_bleu
from smoothloss.sampling import (
    BatchPool,
    EditSampler,
    HammingSampler,
    ReferencePool,
    Sampler,
    SimilarPool,
    VocabularyPool,
    importance_weights,
)
from smoothloss.similarity import TailMode
from smoothloss.testing import make_inputs, make_sequences, make_table

DEVICES = {"native": "cuda", "reference": "cpu"}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = ((3, 7, 1), (5, 1003, 21), (4, 9800, 126))  # N, V, S
TAILS: tuple[TailMode, ...] = ("uniform", "exact")
OPTIONS = ({}, {"label_smoothing": 0.1, "entropy": 0.3, "z_loss": 0.01, "logit_scale": 1.7, "softcap": 30.0})


def losses(n: int, v: int, s: int, dtype: torch.dtype, options: dict[str, float], impl: str) -> list[torch.Tensor]:
    """Return losses and gradients of all ops of one implementation."""
    inputs = make_inputs(n, v, s, dtype=dtype, device=DEVICES[impl], uniform=bool(options))
    target = inputs.indices, inputs.weights
    results = []
    for reduction, inplace in itertools.product(("mean", "none"), (False, True)):
        leaf = inputs.logits.clone().requires_grad_()
        common = {"uniform": inputs.uniform, "reduction": reduction, "impl": impl, **options}
        loss = F.sparse_cross_entropy(leaf * 1, *target, inplace=inplace, **common)
        results += [loss, *torch.autograd.grad(loss.sum(), leaf)]
    hidden = torch.linspace(-1, 1, n * 16).view(n, 16).to(DEVICES[impl], dtype).requires_grad_()
    weight = torch.linspace(-1, 1, v * 16).view(v, 16).to(DEVICES[impl], dtype).requires_grad_()
    loss = F.linear_sparse_cross_entropy(hidden, weight, *target, impl=impl, **options)
    results += [loss, *torch.autograd.grad(loss, (hidden, weight))]
    leaf = inputs.logits.clone().requires_grad_()
    transform = {name: value for name, value in options.items() if name in ("logit_scale", "softcap")}
    statistics = F.token_statistics(leaf, inputs.indices, impl=impl, **transform)
    total = sum((value.sum() for value in statistics[:4]), start=leaf.new_zeros(()))
    return [*results, *statistics, *torch.autograd.grad(total, leaf)]


def sequence_losses(v: int, tail: TailMode, dtype: torch.dtype, impl: str) -> list[torch.Tensor]:
    """Return loss and gradient of lazy Tok-Seq, on logits: the kernels that build targets and mix dense rows."""
    table = make_table(v, tail=tail).to(DEVICES[impl])
    target, samples, weights = (tensor.to(DEVICES[impl]) for tensor in make_sequences(2, 5, v, 3))
    logits = torch.linspace(-3, 3, target.numel() * v).view(*target.shape, v)
    logits = logits.to(DEVICES[impl], dtype).requires_grad_()
    smoothing = {"alpha": 0.4, "table": table, "token_alpha": 0.3}
    loss = F.lazy_sequence_cross_entropy(logits, target, samples, weights, impl=impl, **smoothing)
    return [loss, *torch.autograd.grad(loss, logits)]


def rewards(width: int, dtype: torch.dtype, impl: str) -> list[torch.Tensor]:
    """Return every reward of candidates up to `width` long; what is computed on the CPU is the reference."""
    generator, device = torch.Generator().manual_seed(width), DEVICES[impl]
    tokens, given = torch.randint(9, (2, 3, 7, width), generator=generator)
    lengths = torch.randint(width + 1, (3, 7), generator=generator).to(device)
    packed = References([[row[:n] for n in (0, width // 2, width)][: b % 4] for b, row in enumerate(given[0].tolist())])
    functions = (
        functools.partial(sentence_bleu, n=4), functools.partial(sentence_bleu, n=8, smoothing="coco"), bleu_statistics,
        rouge_l, hamming, edit_distance, Cider(packed), Cider(packed, variant="cider"),
    )  # fmt: skip
    references = packed.to(device)
    return [function(tokens.to(device, dtype), lengths, references) for function in functions]


def draws(width: int, impl: str) -> list[torch.Tensor]:
    """Return samples from every pool by either distance, drawn from one seed, and their importance weights."""
    device = DEVICES[impl]
    target = torch.randint(3, 40, (6, width), generator=torch.Generator().manual_seed(width)).to(device)
    lengths = torch.arange(6, device=device).clamp(max=width)
    pools = (VocabularyPool(40, (0, 1)), BatchPool((0, 1)), ReferencePool((0, 1)))
    samplers: list[Sampler] = [HammingSampler(0.4, pool) for pool in (*pools, SimilarPool(make_table(40)))]
    samplers += [EditSampler(0.4, pool) for pool in pools]
    results: list[torch.Tensor] = []
    for sampler in samplers:
        generator = torch.Generator().manual_seed(7)  # of the CPU for either device: one seed
        samples = sampler(target, lengths, 3, generator, target)
        results += [*samples]
        for normalize in ("samples", "batch"):
            scores = -samples.distance.double()
            results.append(importance_weights(scores, samples.log_prob, tau=0.5, clip=-1.0, normalize=normalize))
    return results


def off(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> int:
    """Return how many results are further from the reference than half precision explains."""
    count = 0
    for one, other in zip(actual, expected, strict=True):
        scale = other.double().norm().clamp(min=1e-3)
        count += not bool((one.cpu().double() - other.double()).norm() <= 0.02 * scale)
    return count


def main() -> int:
    """Run all cases; return 1 where a result is off, 2 where the kernels cannot run."""
    reason = unavailable("native", "cuda", torch.float32)
    if reason is not None:
        print(reason)
        return 2
    cases: list[tuple[Callable[..., list[torch.Tensor]], tuple[object, ...]]] = [
        (losses, (*size, dtype, options)) for size, dtype, options in itertools.product(SIZES, DTYPES, OPTIONS)
    ]
    cases += [(sequence_losses, case) for case in itertools.product((11, 1003), TAILS, DTYPES)]
    cases += [(draws, case) for case in ((1,), (33,), (400,))]
    cases += [(rewards, case) for case in itertools.product((1, 31, 100), (torch.int32, torch.int64))]
    wrong = [off(*(function(*case, impl) for impl in ("native", "reference"))) for function, case in cases]
    print(f"{len(cases)} cases, {sum(wrong)} results off")
    return int(any(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
