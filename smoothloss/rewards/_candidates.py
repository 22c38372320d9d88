"""What the rewards score: candidates of any accepted form, checked, as the kernels take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from smoothloss import _compiled as compiled
from smoothloss._validation import check_device, check_shape, check_tensor
from smoothloss.rewards.references import References, pack_sentences

Candidates = Tensor | Sequence[Sequence[int]]


class Problem(NamedTuple):
    """Candidates beside their references, on the device where they are scored.

    Attributes:
        tokens: ``(C, T)`` int32 or int64, contiguous.
        lengths: ``(C,)`` int64, or ``(B,)`` where all candidates of an input are as long.
        references: of the B inputs; candidate c is one of input c % B.
        shape: of the result.
        device: of the result.
    """

    tokens: Tensor
    lengths: Tensor
    references: References
    shape: torch.Size
    device: torch.device

    def candidates(self) -> tuple[int, bool, int, bool, int, int]:
        """What a kernel takes."""
        tokens, lengths = self.tokens, self.lengths
        are_of_inputs = lengths.shape[0] == len(self.references)
        return tokens.data_ptr(), tokens.dtype == torch.int64, lengths.data_ptr(), are_of_inputs, *tokens.shape

    def empty(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Room for results, one row a candidate."""
        return torch.empty((self.tokens.shape[0], *shape), dtype=dtype, device=self.tokens.device)

    def scratch(self, words: int) -> Tensor:
        """`words` 64-bit words for each candidate on a GPU; on the CPU none, its kernels have their own."""
        rows = self.tokens.shape[0] if self.tokens.device.type != "cpu" else 0
        return torch.empty((rows, words), dtype=torch.int64, device=self.tokens.device)

    def result(self, scores: Tensor) -> Tensor:
        """Scores ``(C, ...)`` in the shape and on the device that the caller expects."""
        return scores.reshape(*self.shape, *scores.shape[1:]).to(self.device)


def problem(candidates: Candidates, lengths: Tensor | None, references: References) -> Problem:
    """Check the arguments of a reward.

    CUDA tensors are scored where they lie; where ``_C_cuda`` was not built, on the CPU, one copy there and one back.

    Raises:
        TypeError: an argument of another type or dtype.
        ValueError: shapes or devices that do not fit.
    """
    if not isinstance(references, References):
        raise TypeError(f"references: got {type(references).__name__}, expected smoothloss.rewards.References")
    if not isinstance(candidates, Tensor):
        candidates, lengths = _padded(candidates, lengths, references.device)
    check_tensor(candidates, "candidates", floating=False)
    check_device(candidates, "candidates", references.spans, "references")
    shape = candidates.shape[:-1]
    if candidates.dim() not in (2, 3) or shape[-1] != len(references):
        raise ValueError(
            f"candidates: got shape {tuple(candidates.shape)}, expected (B, T) or (L, B, T) with B = {len(references)},"
            " the inputs of references"
        )
    if lengths is None:
        lengths = candidates.new_full(shape[-1:], candidates.shape[-1], dtype=torch.int64).expand(shape)
    check_tensor(lengths, "lengths", floating=False)
    check_shape(lengths, "lengths", shape, "one for each candidate")
    check_device(lengths, "lengths", candidates, "candidates")
    device, place = candidates.device, scoring_device(candidates.device)
    if lengths.dim() == 2 and lengths.shape[0] and lengths.stride(0) == 0:  # as samplers give them
        lengths = lengths[0]
    return Problem(
        candidates.flatten(0, -2).to(place).contiguous(),
        lengths.flatten().to(place, torch.int64).contiguous(),
        references if place == device else references.to(place),
        shape,
        device,
    )


def scoring_device(device: torch.device) -> torch.device:
    """Where the candidates of a device are scored."""
    if device.type == "cpu" or (device.type == "cuda" and compiled.load("_C_cuda")[0] is not None):
        return device
    return torch.device("cpu")


def _padded(candidates: Sequence[Sequence[int]], lengths: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    given: object = candidates
    if isinstance(given, str) or not isinstance(given, (Sequence, np.ndarray)):
        kind = type(given).__name__
        raise TypeError(f"candidates: got {kind}, expected a torch.Tensor of token ids, or lists of them")
    if lengths is not None:
        kind = type(lengths).__name__
        raise ValueError(f"lengths: got {kind} beside lists of token ids, expected None: the lists have their own")
    tokens, offsets = pack_sentences(list(candidates), "candidates")
    count = torch.from_numpy(offsets).diff()
    width = int(count.max()) if count.numel() else 0
    padded = torch.zeros((count.numel(), width), dtype=torch.int32, device="cpu")
    padded[torch.arange(width, device="cpu") < count[:, None]] = torch.from_numpy(tokens)
    return padded.to(device), count.to(device)
