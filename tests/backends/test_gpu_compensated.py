"""What only a GPU can show of ``tail="compensated"``: bfloat16 products in Triton, graphs, and that nobody waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import smoothloss.functional as F
from smoothloss.ops.compensated import ROUNDING, unavailable_on_cuda
from smoothloss.ops.linear_passes import CompensatedSums

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available"),
    pytest.mark.skipif(torch.cuda.is_available() and unavailable_on_cuda() is not None, reason="it does not run here"),
]

Problem = tuple[Tensor, Tensor, Tensor, Tensor]


def make_problem(rows: int, classes: int, width: int, seed: int = 0) -> Problem:
    """Return hidden states, weight, bias and labels of rows so certain that 5 to 20 % of the classes are kept."""
    generator = torch.Generator("cuda").manual_seed(seed)
    hidden, weight = (torch.randn(size, width, generator=generator, device="cuda") for size in (rows, classes))
    weight *= 3 * width**-0.5
    bias = -2 * torch.arange(1, classes + 1, device="cuda").log()
    labels = torch.multinomial(torch.addmm(bias, hidden, weight.t()).softmax(-1), 1, generator=generator)[:, 0]
    labels[::7] = -100
    return hidden.bfloat16(), weight.bfloat16(), bias.bfloat16(), labels


def gradients(problem: Problem, dtype: torch.dtype = torch.bfloat16, **options: Any) -> tuple[Tensor, ...]:
    hidden, weight, bias = (tensor.detach().to(dtype).requires_grad_() for tensor in problem[:3])
    loss = F.linear_cross_entropy(hidden, weight, problem[3], linear_bias=bias, **options)
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight, bias))


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return how many columns each chunk has kept."""
    found: list[Tensor] = []
    add_chunk = CompensatedSums.add_chunk

    def recording(self: CompensatedSums, rows: slice | None, d_logits: Tensor) -> None:
        add_chunk(self, rows, d_logits)
        found.append(torch.as_tensor(self.columns_kept[-1]))

    monkeypatch.setattr(CompensatedSums, "add_chunk", recording)
    return found


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "z_loss": 1e-3}, {"softcap": 20.0}])
@pytest.mark.parametrize(("classes", "width"), [(9800, 256), (32003, 129)])
@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.usefixtures("poison")
def test_errs_within_the_tolerance(
    kept: list[Tensor], chunks: int, classes: int, width: int, options: dict[str, Any]
) -> None:
    problem = make_problem(1536, classes, width)
    exact, dense = gradients(problem, torch.float64, **options), gradients(problem, **options)
    for tolerance in (1.0, 1e-7):  # the second leaves nothing out
        kept.clear()
        ours = gradients(
            problem, tail="compensated", tail_tolerance=tolerance, chunk_bytes=1536 // chunks * classes * 3, **options
        )
        assert all(int(each) <= classes / 2 if tolerance == 1.0 else int(each) == classes for each in kept)
        for got, usual, expected in zip(ours[1:3], dense[1:3], exact[1:3], strict=True):
            allowed = float((usual - expected).norm()) + 2 * tolerance * ROUNDING * float(expected.norm())
            assert float((got - expected).norm()) <= allowed


def test_captured_in_a_graph(kept: list[Tensor]) -> None:
    """What a graph keeps is not what was kept when it was captured."""
    certain, other = make_problem(1024, 9800, 256), make_problem(1024, 9800, 256, seed=1)
    uncertain: Problem = (other[0] / 100, other[1], other[2] / 100, torch.zeros_like(other[3]))  # few classes will do
    static: Problem = tuple(tensor.clone() for tensor in certain)  # type: ignore[assignment]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        gradients(static, tail="compensated")
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = gradients(static, tail="compensated")
    sizes = []
    for problem in (uncertain, certain):
        for ours, theirs in zip(static, problem, strict=True):
            ours.copy_(theirs)
        graph.replay()
        for one, another in zip(results, gradients(problem, tail="compensated"), strict=True):
            assert torch.equal(one, another)
        sizes.append(int(kept[-1]))
    assert sizes[0] != sizes[1]


def test_never_waits_for_the_device(no_host_sync: Callable[[], None]) -> None:
    problem = make_problem(1024, 9800, 256)
    gradients(problem, tail="compensated")  # compiles, and draws its signs
    no_host_sync()
    gradients(problem, tail="compensated", label_smoothing=0.1)
