"""Draws by Hamming distance in C++: ``smoothloss._C`` for CPU tensors, ``smoothloss._C_cuda`` for CUDA tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from smoothloss import _compiled as compiled
from smoothloss.sampling.samples import Samples, Sentences

if TYPE_CHECKING:
    from smoothloss.sampling.hamming import Temperature


def unavailable(sentences: Sentences) -> str | None:
    """Return why the kernels cannot draw for these sentences, or None when they can."""
    device = sentences.target.device
    reason = compiled.why_not(device)
    if reason is not None:
        return reason
    if not sentences.has_values():
        return "the kernels need memory to read, which fake tensors and compiled code do not show"
    if sentences.pool.kernel_pool(device, sentences.references) is None:
        return f"the kernels do not know how to draw from {sentences.pool}"
    return None


def draw(sentences: Sentences, num_samples: int, seed: Tensor, temperature: Temperature) -> Samples:
    """Draw L samples for each sentence: `_hamming_reference.draw` in one pass."""
    target, lengths, references, pool = (
        sentences.target, sentences.given_lengths, sentences.references, sentences.pool
    )  # fmt: skip
    if target.device.type != "cpu":  # there the kernel looks itself
        sentences.check_lengths()
    batch, width = target.shape
    dtype = pool.token_dtype(target.dtype, None if references is None else references.dtype)
    excluded, kernel_pool = pool.excluded(target.device), pool.kernel_pool(target.device, references)
    assert kernel_pool is not None
    tokens = torch.empty((num_samples, batch, width), dtype=dtype, device=target.device)
    distance = torch.empty((num_samples, batch), dtype=torch.int64, device=target.device)
    log_prob = torch.empty((num_samples, batch), dtype=torch.float32, device=target.device)
    arguments: tuple[object, ...] = (
        (target.data_ptr(), target.element_size(), batch, width, 0 if lengths is None else lengths.data_ptr()),
        (excluded.data_ptr(), excluded.shape[0]),
        tuple(kernel_pool),
        tuple(temperature),
        seed.data_ptr(),
        (tokens.data_ptr(), tokens.element_size(), distance.data_ptr(), log_prob.data_ptr(), num_samples),
    )
    if target.device.type != "cpu":
        words = scratch_words(kernel_pool.kind, batch, width, kernel_pool.references_width)
        scratch = torch.empty(words, dtype=torch.int64, device=target.device)
        arguments = (*arguments, scratch.data_ptr(), words)
    compiled.call("draw_hamming", target, *arguments)
    return Samples(tokens, distance, log_prob, sentences.lengths.expand(num_samples, -1))


def scratch_words(kind: int, batch: int, width: int, references_width: int) -> int:
    """Return how many 64-bit words the CUDA kernels need for the sets of a batch, see csrc/cuda/sampling.cu."""
    if kind not in (1, 2):
        return 0
    sets, elements = (1, batch * width) if kind == 1 else (batch, references_width)
    capacity = 1 << (2 * elements).bit_length()
    return sets * (elements + 1) + (sets * (capacity + elements) + batch * width + 1) // 2
