"""Random ids, lengths, offsets and spans at the border to the compiled module: scores, or a clear error.

Two seconds by default; ``SMOOTHLOSS_FUZZ_SECONDS`` says how long. ``make sanitize`` runs a minute of it under
AddressSanitizer, which sees every read and write outside the arrays: each is allocated at exactly its size.
"""

import os
import time

import numpy as np
import pytest
import torch

from smoothloss import _compiled as compiled

SECONDS = float(os.environ.get("SMOOTHLOSS_FUZZ_SECONDS", "2"))


def pointer(array):
    return array.ctypes.data if array.size else 0


class Case:
    """Candidates and references of random sizes, with something wrong in them or not."""

    def __init__(self, rng):
        self.rng, self.faults = rng, 0.0 if rng.random() < 0.6 else 0.1
        self.inputs, self.width = int(rng.integers(0, 5)), int(rng.integers(0, 70))
        self.count = self.inputs * int(rng.integers(0, 4))
        dtype = rng.choice([np.int32, np.int64])
        self.tokens = self.ids(self.count * self.width).astype(dtype)
        self.are_of_inputs = bool(rng.integers(0, 2))
        self.lengths = self.spoil(rng.integers(0, self.width + 1, self.inputs if self.are_of_inputs else self.count))
        sentence_lengths = rng.integers(0, rng.choice([2, 8, 40, 130]), int(rng.integers(0, 12)))
        self.offsets = np.concatenate([[0], np.cumsum(sentence_lengths)]).astype(np.int64)
        self.reference_tokens = self.ids(int(self.offsets[-1])).astype(np.int32)
        self.num_sentences = len(sentence_lengths)
        bounds = np.sort(rng.integers(0, self.num_sentences + 1, (self.inputs, 2)), axis=1)
        self.spans = self.spoil(bounds.astype(np.int64))
        self.offsets = self.spoil(self.offsets)

    def ids(self, size):
        """Few ids or many, up to the largest, and beyond where there are faults."""
        drawn = self.rng.integers(0, self.rng.choice([1, 3, 50, 70_000, 2**31 - 1]), size)
        return self.spoil(drawn, low=-(2**31), high=2**31 - 1)

    def spoil(self, values, low=-(2**62), high=2**62):
        wrong = self.rng.random(values.shape) < self.faults
        return np.where(wrong, self.rng.choice([low, -1, high, *values.ravel()[:1]], values.shape), values)

    def candidates(self):
        return (
            pointer(self.tokens), self.tokens.dtype == np.int64, pointer(self.lengths), self.are_of_inputs, self.count,
            self.width,
        )  # fmt: skip

    def references(self):
        return (
            pointer(self.reference_tokens), pointer(self.offsets), pointer(self.spans), self.reference_tokens.size,
            self.num_sentences, self.inputs,
        )  # fmt: skip


def call(name, *arguments):
    getattr(compiled.require("_C"), name)(*arguments, int(torch.get_num_threads()), "")


def run(case, rng):
    """Every entry on one case; returns the finite scores that were written."""
    module = compiled.require("_C")
    scores = np.full((4, case.count), np.nan)
    order = int(rng.integers(1, 9))
    statistics = np.zeros((case.count, 2 + 2 * order), dtype=np.int64)
    call(
        "sentence_bleu", case.candidates(), case.references(), order, int(rng.integers(0, 6)), 1.0,
        bool(rng.integers(0, 2)), pointer(scores[0]), pointer(statistics),
    )  # fmt: skip
    for kind in range(3):
        call("alignment", case.candidates(), case.references(), kind, 1.2, 0, pointer(scores[1 + kind]))
    counter = module.DocumentCounter()
    counter.add(case.references())
    slots = np.zeros((counter.num_slots, 2), dtype=np.int64)
    counter.write_slots(pointer(slots))
    log_df = np.log(np.maximum(1, np.arange(counter.num_documents + 1, dtype=np.float64)))
    documents = max(1, counter.num_documents)
    frequencies = (pointer(slots), counter.num_slots, pointer(log_df), counter.num_documents, float(np.log(documents)))
    norms, cider = np.full((case.num_sentences, 4), np.nan), np.full(case.count, np.nan)
    call("cider_norms", case.references(), frequencies, pointer(norms))
    call(
        "cider", case.candidates(), case.references(), frequencies, pointer(norms), bool(rng.integers(0, 2)), 6.0, 0,
        pointer(cider),
    )  # fmt: skip
    return np.concatenate([scores.ravel(), norms.ravel(), cider])


def test_random_inputs_are_scored_or_refused():
    rng, end = np.random.default_rng(int(os.environ.get("SMOOTHLOSS_FUZZ_SEED", "0"))), time.monotonic() + SECONDS
    scored = refused = 0
    while time.monotonic() < end:
        case = Case(rng)
        try:
            found = run(case, rng)
        except (ValueError, IndexError) as error:
            assert case.faults, f"refused without a fault: {error}"
            assert "expected" in str(error)
            refused += 1
            continue
        assert np.isfinite(found).all()
        scored += 1
    assert scored > 20 and refused > 5


@pytest.mark.parametrize(
    ("offsets", "spans", "message"),
    [
        ([0, 2, 9], [[0, 2]], "tokens 2 .. 9 for sentence 1, expected an interval within 0 .. 4"),
        ([0, 3, 2], [[0, 2]], "tokens 3 .. 2 for sentence 1"),
        ([-1, 2, 4], [[0, 2]], "tokens -1 .. 2 for sentence 0"),
        ([0, 2, 4], [[0, 3]], "sentences 0 .. 3 for input 0, expected an interval within 0 .. 2"),
        ([0, 2, 4], [[2, 1]], "sentences 2 .. 1 for input 0"),
        ([0, 2, 4], [[-1, 1]], "sentences -1 .. 1 for input 0"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(offsets, spans, message):
    tokens, lengths = np.array([[1, 2, 3]], dtype=np.int32), np.array([3])
    packed, offsets, spans = np.array([1, 2, 3, 4], dtype=np.int32), np.array(offsets), np.array(spans)
    out = np.zeros(1)
    references = (pointer(packed), pointer(offsets), pointer(spans), 4, 2, 1)
    with pytest.raises(ValueError, match=f"references: got the {message}"):
        call("alignment", (pointer(tokens), False, pointer(lengths), False, 1, 3), references, 1, 1.2, 0, pointer(out))
    with pytest.raises(ValueError, match=f"references: got the {message}"):
        compiled.require("_C").DocumentCounter().add(references)


def test_what_cannot_be_counted_in_32_bits_is_refused():
    """Before a token is read: there are none."""
    lengths, offsets, spans, out = np.array([0]), np.array([0, 2**30 + 1]), np.array([[0, 1]]), np.zeros(1)
    references = (pointer(out), pointer(offsets), pointer(spans), 2**30 + 1, 1, 1)
    with pytest.raises(ValueError, match=r"tokens 0 \.\. 1073741825 for sentence 0, expected .* 0 \.\. 1073741824"):
        call("alignment", (pointer(out), False, pointer(lengths), False, 1, 3), references, 1, 1.2, 0, pointer(out))
    wide = (pointer(out), False, pointer(lengths), False, 1, 2**30 + 1)
    with pytest.raises(ValueError, match="candidates: got 1073741825 positions, expected at most"):
        call("alignment", wide, references, 1, 1.2, 0, pointer(out))
