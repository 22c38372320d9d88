"""The reference sentences of many inputs, packed once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smoothloss._validation import check_device, check_shape, check_tensor
from smoothloss.ops.transforms import is_eager

_MAX_TOKEN = 2**31 - 2  # the kernels count from one to keep 0 for "none"


class Sentences:
    """All sentences, one after the other. What is computed of them once is remembered by this object.

    Attributes:
        tokens: ``(sum of lengths,)`` int32.
        offsets: ``(R + 1,)`` int64, where each of the R sentences begins.
    """

    def __init__(self, tokens: Tensor, offsets: Tensor) -> None:
        self.tokens, self.offsets = tokens, offsets
        self._copies: dict[torch.device, Sentences] = {tokens.device: self}

    @property
    def num_sentences(self) -> int:
        """R."""
        return self.offsets.numel() - 1

    def to(self, device: torch.device) -> Sentences:
        """The sentences on another device, copied there once."""
        if device not in self._copies:
            moved = Sentences(self.tokens.to(device), self.offsets.to(device))
            moved._copies = self._copies
            self._copies[device] = moved
        return self._copies[device]


class References:
    """``token_ids[b]`` are the references of input b: a list of sentences, each a list of token ids.

    Packed once, for example for a whole training set; :meth:`select` takes the inputs of a batch from it without
    touching a sentence or waiting for the device. Inputs may have different numbers of references, also none, and
    references different lengths, also 0. EOS and PAD are no part of a sentence.

    Args:
        token_ids: For each of B inputs a list of references, each a sequence of ids ``0 <= id < 2^31 - 1``.
        device: Where to keep them.

    Attributes:
        sentences: The sentences of all inputs it was made of.
        spans: ``(B, 2)`` int64, the first sentence of each input and the one behind its last.
        max_references: The most references that any input has.

    Raises:
        TypeError: `token_ids` is nested otherwise, or an id no integer.
        ValueError: An id is out of range.
    """

    def __init__(
        self, token_ids: Iterable[Sequence[Sequence[int]]], *, device: torch.device | str | None = None
    ) -> None:
        try:
            inputs = [list(references) for references in token_ids]
        except TypeError:
            kind = type(token_ids).__name__
            raise TypeError(f"token_ids: got {kind}, expected for each input a list of lists of token ids") from None
        sentences = list(itertools.chain.from_iterable(inputs))
        tokens, offsets = pack_sentences(sentences, "token_ids")
        ends = np.cumsum([len(references) for references in inputs], dtype=np.int64)
        spans = np.stack((ends - [len(references) for references in inputs], ends), axis=-1).reshape(-1, 2)
        self.sentences = Sentences(torch.as_tensor(tokens, device=device), torch.as_tensor(offsets, device=device))
        self.spans = torch.as_tensor(spans, dtype=torch.int64, device=device)
        self.max_references = max(map(len, inputs), default=0)

    @classmethod
    def of_targets(cls, target: Tensor, lengths: Tensor) -> References:
        """``References([[target[b, : lengths[b]]] for b in range(B)])``: its own sentence is an input's only reference.

        Waits for no device; the tokens are copied once.

        Args:
            target: ``(B, T)`` int64 or int32 token ids, the sentence first and anything (EOS, padding) behind it.
            lengths: ``(B,)`` int64 or int32 tokens of each sentence, ``0 <= length <= T`` (checked on the CPU).

        Raises:
            TypeError: one is no tensor of integers.
            ValueError: a shape or device is wrong, or a length or an id out of range (on the CPU).
        """
        check_tensor(target, "target", floating=False)
        check_tensor(lengths, "lengths", floating=False)
        if target.dim() != 2:
            raise ValueError(f"target: got shape {tuple(target.shape)}, expected (B, T)")
        check_shape(lengths, "lengths", target.shape[:1], "one for each sentence")
        check_device(lengths, "lengths", target, "target")
        count, width = target.shape
        if lengths.device.type == "cpu" and count:
            low, high = int(lengths.min()), int(lengths.max())
            if not 0 <= low <= high <= width:
                raise ValueError(f"lengths: got {low} to {high}, expected 0 <= length <= {width}, the width of target")
        is_word = torch.arange(width, device=target.device) < lengths[:, None]
        tokens = target.masked_fill(~is_word, 0)
        if tokens.device.type == "cpu" and tokens.numel():
            low, high = int(tokens.min()), int(tokens.max())
            if not 0 <= low <= high <= _MAX_TOKEN:
                raise ValueError(f"target: got the ids {low} to {high}, expected 0 <= id <= {_MAX_TOKEN}")
        # What is behind a sentence is one too, which nobody's span has.
        starts = torch.arange(count, device=target.device) * width
        offsets = torch.stack((starts, starts + lengths), -1).flatten()
        offsets = torch.cat((offsets, offsets.new_full((1,), count * width)))
        first = torch.arange(count, device=target.device) * 2
        sentences = Sentences(tokens.to(torch.int32).flatten(), offsets)
        return cls._of(sentences, torch.stack((first, first + 1), -1), min(count, 1))

    @classmethod
    def _of(cls, sentences: Sentences, spans: Tensor, max_references: int) -> References:
        made = cls.__new__(cls)
        made.sentences, made.spans, made.max_references = sentences, spans, max_references
        return made

    def __len__(self) -> int:
        """B."""
        return self.spans.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.spans.device

    def to(self, device: torch.device | str) -> References:
        """The same references on another device."""
        spans = self.spans.to(device)
        return self._of(self.sentences.to(spans.device), spans, self.max_references)

    def select(self, inputs: Tensor) -> References:
        """The references of some inputs, ``[self[b] for b in inputs]``; the sentences are shared, not copied.

        Args:
            inputs: ``(B',)`` int64 or int32 numbers of inputs, on the same device; a number may repeat.

        Raises:
            TypeError: `inputs` is no tensor of integers.
            ValueError: it is not 1-D, or on another device.
            IndexError: a number is out of range (on the CPU).
        """
        check_tensor(inputs, "inputs", floating=False)
        if inputs.dim() != 1 or inputs.device != self.device:
            raise ValueError(
                f"inputs: got shape {tuple(inputs.shape)} on {inputs.device}, expected (B,) on {self.device}"
            )
        if inputs.is_cpu and is_eager(inputs) and inputs.numel():
            for number in (int(inputs.min()), int(inputs.max())):
                if not 0 <= number < len(self):
                    raise IndexError(f"inputs: got {number}, expected numbers of inputs, 0 <= number < {len(self)}")
        return self._of(self.sentences, self.spans.index_select(0, inputs), self.max_references)

    def tolist(self) -> list[list[list[int]]]:
        """The token ids, nested as they were given."""
        tokens, offsets = self.sentences.tokens.tolist(), self.sentences.offsets.tolist()
        return [
            [tokens[offsets[s] : offsets[s + 1]] for s in range(first, last)] for first, last in self.spans.tolist()
        ]

    def __repr__(self) -> str:
        return f"References(inputs={len(self)}, sentences={self.sentences.num_sentences}, device={str(self.device)!r})"

    def arguments(self) -> tuple[int, int, int, int, int, int]:
        """What a kernel takes."""
        sentences = self.sentences
        pointers = (sentences.tokens.data_ptr(), sentences.offsets.data_ptr(), self.spans.data_ptr())
        return *pointers, sentences.tokens.numel(), sentences.num_sentences, len(self)


def pack_sentences(sentences: Sequence[Sequence[int]], name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Lists of ids -> all ids int32, and where each list begins, ``(len + 1,)`` int64."""
    try:
        lengths = np.fromiter(map(len, sentences), dtype=np.int64, count=len(sentences))
        flat = np.array(list(itertools.chain.from_iterable(sentences)))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: got {error}, expected lists of integer token ids") from None
    if flat.size and (flat.ndim != 1 or flat.dtype.kind not in "iu"):
        raise TypeError(f"{name}: got values of type {flat.dtype}, expected lists of integer token ids")
    if flat.size and not 0 <= flat.min() <= flat.max() <= _MAX_TOKEN:
        raise ValueError(f"{name}: got the ids {flat.min()} to {flat.max()}, expected 0 <= id <= {_MAX_TOKEN}")
    return flat.astype(np.int32), np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
