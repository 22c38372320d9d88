"""Draws by edit distance in C++: ``smoothloss._C`` for CPU tensors, ``smoothloss._C_cuda`` for CUDA tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from smoothloss import _compiled as compiled
from smoothloss.sampling import _hamming_native
from smoothloss.sampling._hamming_native import unavailable
from smoothloss.sampling.samples import Samples, Sentences

if TYPE_CHECKING:
    from smoothloss.sampling.edit import EditSettings

__all__ = ["draw", "scratch_words", "unavailable"]


def draw(
    sentences: Sentences, num_samples: int, seed: Tensor, edit: EditSettings, dtype: torch.dtype = torch.float32
) -> Samples:
    """Draw L samples for each sentence: `_edit_reference.draw` in one pass."""
    target, given, references, pool = sentences.target, sentences.given_lengths, sentences.references, sentences.pool
    if target.device.type != "cpu":  # there the kernel looks itself
        sentences.check_lengths()
    (batch, width), device = target.shape, target.device
    excluded, kernel_pool = pool.excluded(device), pool.kernel_pool(device, references)
    assert kernel_pool is not None
    shape = (num_samples, batch)
    tokens = torch.empty((*shape, width + edit.max_insertions), dtype=edit.token_dtype(sentences), device=device)
    distance = torch.empty(shape, dtype=torch.int64, device=device)
    log_prob = torch.empty(shape, dtype=dtype, device=device)
    lengths = torch.empty(shape, dtype=torch.int64, device=device)
    arguments: tuple[object, ...] = (
        (target.data_ptr(), target.element_size(), batch, width, 0 if given is None else given.data_ptr()),
        (excluded.data_ptr(), excluded.shape[0]),
        tuple(kernel_pool),
        tuple(edit.temperature),
        seed.data_ptr(),
        (tokens.data_ptr(), tokens.element_size(), distance.data_ptr(), log_prob.data_ptr(), num_samples),
        (edit.max_insertions, edit.pad, lengths.data_ptr(), log_prob.element_size()),
    )
    if device.type != "cpu":
        sets = _hamming_native.scratch_words(kernel_pool.kind, batch, width, kernel_pool.references_width)
        words = sets + scratch_words(batch, width, num_samples, edit.max_insertions)
        scratch = torch.empty(words, dtype=torch.int64, device=device)
        arguments = (*arguments, scratch.data_ptr(), words)
    compiled.call("draw_edit", target, *arguments)
    return Samples(tokens, distance, log_prob, lengths)


def scratch_words(batch: int, width: int, num_samples: int, max_insertions: int) -> int:
    """Return how many 64-bit words the CUDA kernels need beside those for sets, see csrc/common/edits.h."""
    cells = (width + 1) * (max_insertions + 1)
    return batch * (cells + 4 * width + num_samples * (cells + 3 * (width + max_insertions)))
