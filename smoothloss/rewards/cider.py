"""CIDEr and CIDEr-D on token ids."""

from __future__ import annotations

import math
import os
import weakref
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from smoothloss import _compiled as compiled
from smoothloss import _tensor_file
from smoothloss._validation import check_number
from smoothloss.rewards._candidates import Candidates, problem, scoring_device
from smoothloss.rewards.references import References, Sentences

Variant = Literal["cider-d", "cider"]
_ORDER = 4
_FORMAT = "smoothloss.cider.1"
_SLOT_WORDS = _TERM_WORDS = 2  # a slot of the kernels' hash table is two 64-bit words, and so is an n-gram's term


class Cider:
    r"""``10 / (4 R) sum_r sum_{n=1..4} cos(g_n(c), g_n(r))`` of candidate c and its R references.

    ``g_n`` is the vector of tf-idf weights of a sentence's n-grams, ``count * (log N - log max(1, df))``: ``df`` of
    the corpus' N inputs have the n-gram in one of their references. ``"cider-d"``, which coco-caption calls CIDEr,
    clips the candidate's counts to the reference's in the product, and multiplies each reference's cosine by
    ``exp(-(b(c) - b(r))^2 / (2 sigma^2))``, b the number of bigrams.

    Document frequencies are counted once, here. What is known of a reference alone, the norms of its vectors, is
    computed at the first call with it and remembered as long as the packed references live. On CUDA that is done on the
    stream of that call: a first call on another stream must wait for it (``stream.wait_stream``).

    Args:
        references: the corpus: each input with its references is one document.
        variant: ``"cider-d"`` or ``"cider"``.
        sigma: of the length penalty, in bigrams.

    Raises:
        TypeError: `references` are none.
        ValueError: the corpus has no input, or an option is out of its range.

    Source: Vedantam et al. 2015.
    """

    def __init__(self, references: References, *, variant: Variant = "cider-d", sigma: float = 6.0) -> None:
        if not isinstance(references, References):
            raise TypeError(f"references: got {type(references).__name__}, expected smoothloss.rewards.References")
        if not len(references):
            raise ValueError("references: got none, expected a corpus of at least one input")
        self._set_options(variant, sigma)
        counter = compiled.require("_C").DocumentCounter()
        on_cpu = references.to("cpu")  # for as long as its addresses are read
        counter.add(on_cpu.arguments())
        self._set_counts(counter, counter.num_documents)

    def _set_options(self, variant: str, sigma: float) -> None:
        if variant not in get_args(Variant):
            raise ValueError(f"variant: got {variant!r}, expected one of {', '.join(map(repr, get_args(Variant)))}")
        self.variant, self.sigma = variant, check_number(sigma, "sigma", 0.0, open_low=True)

    def _set_counts(self, counter: Any, num_documents: int) -> None:
        self._counter, self.num_documents = counter, num_documents
        cpu = torch.device("cpu")  # whatever the default device: the counter writes there
        slots = torch.empty((counter.num_slots, _SLOT_WORDS), dtype=torch.int64, device=cpu)
        counter.write_slots(slots.data_ptr())
        frequencies = torch.arange(num_documents + 1, dtype=torch.float64, device=cpu).clamp(min=1).log()
        self._tables = {cpu: (slots, frequencies)}
        self._norms: weakref.WeakKeyDictionary[Sentences, Tensor] = weakref.WeakKeyDictionary()

    def __call__(self, candidates: Candidates, lengths: Tensor | None, references: References) -> Tensor:
        """Score candidates against the references of their inputs, which need not be those of the corpus.

        Args:
            candidates, lengths, references: as in :func:`sentence_bleu`.

        Returns:
            ``(B)`` or ``(L, B)`` float64 in [0, 10]; 0 where there is no reference.

        Raises: as :func:`sentence_bleu`.
        """
        scored = problem(candidates, lengths, references)
        scores, terms = scored.empty(), scored.scratch(scored.tokens.shape[1] * _ORDER * _TERM_WORDS)
        compiled.call(
            "cider",
            scored.tokens,
            scored.candidates(),
            scored.references.arguments(),
            self._frequencies(scored.tokens.device),
            self._reference_norms(scored.references).data_ptr(),
            self.variant == "cider-d",
            self.sigma,
            terms.data_ptr(),
            scores.data_ptr(),
        )
        return scored.result(scores)

    def prepare(self, references: References) -> None:
        """Compute now what the first call with these references would compute."""
        self._reference_norms(references.to(scoring_device(references.device)))

    def _frequencies(self, device: torch.device) -> tuple[int, int, int, int, float]:
        if device not in self._tables:
            self._tables[device] = tuple(part.to(device) for part in self._tables[torch.device("cpu")])  # type: ignore[assignment]
        slots, frequencies = self._tables[device]
        return (
            slots.data_ptr(), slots.shape[0], frequencies.data_ptr(), self.num_documents, math.log(self.num_documents)
        )  # fmt: skip

    def _reference_norms(self, references: References) -> Tensor:
        sentences = references.sentences
        if sentences not in self._norms:
            norms = torch.empty((sentences.num_sentences, _ORDER), dtype=torch.float64, device=references.device)
            compiled.call(
                "cider_norms",
                sentences.tokens,
                references.arguments(),
                self._frequencies(references.device),
                norms.data_ptr(),
            )
            self._norms[sentences] = norms
        return self._norms[sentences]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the document frequencies and options to a safetensors file, which appears complete or not at all."""
        tensors, settings = self._content()
        _tensor_file.write(Path(path), tensors, {**settings, "format": _FORMAT})

    def _content(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What :meth:`_from_file` takes."""
        nodes = torch.empty((self._counter.num_nodes, 3), dtype=torch.int64, device="cpu")
        self._counter.write_nodes(nodes.data_ptr())
        settings = {"variant": self.variant, "sigma": repr(self.sigma), "num_documents": str(self.num_documents)}
        return {"nodes": nodes}, settings

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the document frequencies: the counter itself is the host's memory."""
        return type(self)._from_file, self._content()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Cider:
        """Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no such file, or a damaged one.
        """
        tensors, settings = _tensor_file.read(Path(path), _FORMAT, "document frequencies")
        try:
            return cls._from_file(tensors, settings)
        except (KeyError, ValueError) as error:
            raise ValueError(f"path: {path} holds damaged document frequencies ({error})") from error

    @classmethod
    def _from_file(cls, tensors: dict[str, Tensor], settings: dict[str, str]) -> Cider:
        nodes, num_documents = tensors["nodes"], int(settings["num_documents"])
        if nodes.dtype != torch.int64 or nodes.dim() != 2 or nodes.shape[1] != 3:
            raise ValueError(f"nodes: got {nodes.dtype} {tuple(nodes.shape)}, expected torch.int64 (N, 3)")
        if num_documents < 1 or (nodes.numel() and int(nodes[:, 2].max()) > num_documents):
            raise ValueError(f"num_documents: got {num_documents}, fewer than an n-gram occurs in")
        counter = compiled.require("_C").DocumentCounter()
        counter.insert_nodes(nodes.contiguous().data_ptr(), nodes.shape[0])
        made = cls.__new__(cls)
        made._set_options(settings["variant"], float(settings["sigma"]))
        made._set_counts(counter, num_documents)
        return made

    def __repr__(self) -> str:
        return f"Cider(documents={self.num_documents}, ngrams={self._counter.num_nodes}, variant={self.variant!r})"
