"""The CUDA kernels of the rewards, run on the host (see `backends/test_cuda_build.py`), against those of the CPU."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor

from smoothloss import _compiled as compiled
from smoothloss.rewards import Cider, References, edit_distance, hamming, rouge_l, sentence_bleu
from smoothloss.rewards._candidates import Problem

LENGTHS = (0, 1, 2, 3, 5, 8, 13, 31, 32, 33, 64, 65, 97, 200)
SHORT = LENGTHS[:10]
GUARD = 3  # elements beyond the end of each result
ROUGE_L, HAMMING, EDIT_DISTANCE = range(3)
DTYPES = [torch.int32, torch.int64]


class Case:
    """Random candidates ``(L, B)`` and references: few different tokens, so that n-grams repeat.

    Args:
        samples, inputs: L and B.
        lengths: of candidates and references, drawn from these.
        references: numbers of references of an input, drawn from these.
        vocabulary: how many different tokens.
        are_of_inputs: whether the candidates of an input are as long, so that one length does for them.
    """

    def __init__(
        self, samples: int, inputs: int, *, dtype: torch.dtype = torch.int64, lengths: tuple[int, ...] = SHORT,
        references: tuple[int, ...] = (0, 1, 2, 5), vocabulary: int = 4, seed: int = 0, are_of_inputs: bool = False,
    ) -> None:  # fmt: skip
        self.generator = torch.Generator().manual_seed(seed)
        self.vocabulary = vocabulary
        self.lengths = torch.tensor([self.choose(lengths) for _ in range(samples * inputs)])
        self.are_of_inputs = are_of_inputs
        if are_of_inputs:
            self.lengths = self.lengths[:inputs].repeat(samples)
        self.tokens = torch.full((samples * inputs, max(lengths)), 2**31 - 1, dtype=dtype)
        for row, length in zip(self.tokens, self.lengths.tolist(), strict=True):
            row[:length] = torch.tensor(self.sentence(length))
        self.token_ids = [
            [self.sentence(self.choose(lengths)) for _ in range(self.choose(references))] for _ in range(inputs)
        ]
        self.references = References(self.token_ids)

    def choose(self, numbers: tuple[int, ...]) -> int:
        return numbers[int(torch.randint(len(numbers), (), generator=self.generator))]

    def sentence(self, length: int) -> list[int]:
        """Tokens beyond 16 bits too, the largest among them."""
        ids = torch.tensor([2**31 - 2, 65536, 0, *range(1, max(1, self.vocabulary - 2))])
        return ids[torch.randint(len(ids), (length,), generator=self.generator)].tolist()

    @property
    def candidates(self) -> tuple[int, bool, int, bool, int, int]:
        """As a kernel takes them, with a length for each or, where those of an input are as long, for each input."""
        tokens, lengths = self.tokens, self.lengths
        return tokens.data_ptr(), tokens.dtype == torch.int64, lengths.data_ptr(), self.are_of_inputs, *tokens.shape


class OnCpu:
    """``_C``."""

    def __init__(self) -> None:
        self.module, self.where = compiled.require("_C"), (1, "")

    def scratch(self, case: Case, words: int) -> Tensor:
        return torch.empty(0)


class Emulated:
    """``_C_cuda`` on the host; scratch memory holds anything but zeros."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.where = module, (0, 0)

    def scratch(self, case: Case, words: int) -> Tensor:
        return torch.full((len(case.tokens) * words,), -1)


Device = OnCpu | Emulated


@pytest.fixture
def emulated(emulated_cuda: ModuleType) -> Emulated:
    return Emulated(emulated_cuda)


def guarded(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.full((math.prod(shape) + GUARD,), -7, dtype=dtype)


def written(result: Tensor, *shape: int) -> Tensor:
    """Return what was written, and nothing may have been written beyond."""
    assert bool((result[-GUARD:] == -7).all())
    return result[:-GUARD].view(shape)


def bleu(device: Device, case: Case, n: int, smoothing: int, effective: bool = True) -> tuple[Tensor, Tensor]:
    count = len(case.tokens)
    scores, statistics = guarded(count), guarded(count, 2 + 2 * n, dtype=torch.int64)
    device.module.sentence_bleu(
        case.candidates, case.references.arguments(), n, smoothing, 0.5, effective, scores.data_ptr(),
        statistics.data_ptr(), *device.where,
    )  # fmt: skip
    return written(scores, count), written(statistics, count, 2 + 2 * n)


def align(device: Device, case: Case, kind: int) -> Tensor:
    scores, scratch = guarded(len(case.tokens)), device.scratch(case, (case.tokens.shape[1] + 31) // 32)
    device.module.alignment(
        case.candidates, case.references.arguments(), kind, 1.2, scratch.data_ptr(), scores.data_ptr(), *device.where
    )
    return written(scores, len(case.tokens))


def cider_norms(device: Device, case: Case, corpus: Cider) -> Tensor:
    sentences = case.references.sentences.num_sentences
    norms = guarded(sentences, 4)
    frequencies = corpus._frequencies(torch.device("cpu"))
    device.module.cider_norms(case.references.arguments(), frequencies, norms.data_ptr(), *device.where)
    return written(norms, sentences, 4)


def cider(device: Device, case: Case, corpus: Cider, norms: Tensor, is_cider_d: bool = True) -> Tensor:
    scores, scratch = guarded(len(case.tokens)), device.scratch(case, case.tokens.shape[1] * 4 * 2)
    device.module.cider(
        case.candidates, case.references.arguments(), corpus._frequencies(torch.device("cpu")), norms.data_ptr(),
        is_cider_d, 6.0, scratch.data_ptr(), scores.data_ptr(), *device.where,
    )  # fmt: skip
    return written(scores, len(case.tokens))


def assert_all_equal(emulated: Emulated, case: Case) -> None:
    """Every reward: counts and distances are the same numbers; sums differ in their order, so in their rounding."""
    on_cpu = OnCpu()
    for actual, expected in zip(bleu(emulated, case, 4, 4), bleu(on_cpu, case, 4, 4), strict=True):
        assert torch.equal(actual, expected)
    for kind in (ROUGE_L, HAMMING, EDIT_DISTANCE):
        assert torch.equal(align(emulated, case, kind), align(on_cpu, case, kind))
    corpus = Cider(References([*case.token_ids, [[0]], []]))
    norms = cider_norms(on_cpu, case, corpus)
    torch.testing.assert_close(cider_norms(emulated, case, corpus), norms, rtol=1e-14, atol=0.0)
    for is_cider_d in (True, False):
        expected = cider(on_cpu, case, corpus, norms, is_cider_d)
        actual = cider(emulated, case, corpus, norms, is_cider_d)
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=0.0)
        assert expected.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("order")
def test_equal_to_the_cpu(emulated: Emulated, dtype: torch.dtype) -> None:
    assert_all_equal(emulated, Case(3, 7, dtype=dtype))
    assert_all_equal(emulated, Case(3, 7, dtype=dtype, seed=1, are_of_inputs=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [3, 60])
def test_long_sentences(emulated: Emulated, vocabulary: int, dtype: torch.dtype) -> None:
    assert_all_equal(emulated, Case(1, 9, dtype=dtype, lengths=LENGTHS[6:], references=(1, 3), vocabulary=vocabulary))


@pytest.mark.parametrize("length", LENGTHS)
def test_every_length(emulated: Emulated, length: int) -> None:
    """All candidates and references of one length, and the counts of candidates around the warps of a block."""
    for inputs in (1, 3, 5) if length <= 33 else (2,):
        assert_all_equal(emulated, Case(1, inputs, lengths=(length,), references=(2,), seed=length))


@pytest.mark.usefixtures("order")
def test_many_references(emulated: Emulated) -> None:
    assert_all_equal(emulated, Case(2, 3, references=(33, 70), lengths=SHORT[:8]))


@pytest.mark.parametrize("smoothing", range(6))
def test_every_smoothing_and_order(emulated: Emulated, smoothing: int) -> None:
    case = Case(4, 5, vocabulary=5, seed=smoothing)
    for n in range(1, 9):
        for effective in (True, False):
            results = (bleu(device, case, n, smoothing, effective) for device in (emulated, OnCpu()))
            for actual, expected in zip(*results, strict=True):
                assert torch.equal(actual, expected)
            assert expected.min() >= 0


def test_nothing_to_score(emulated: Emulated) -> None:
    for case in (Case(0, 3), Case(0, 0), Case(2, 2, lengths=(0,)), Case(2, 2, references=(0,))):
        assert_all_equal(emulated, case)


def test_repeated_runs_give_the_same_bits(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(2, 5, lengths=(65,))
    corpus = Cider(References([*case.token_ids, [[0]]]))
    results = []
    for order in ("forward", "shuffled", "reverse"):
        monkeypatch.setenv("EMULATION_ORDER", order)
        norms = cider_norms(emulated, case, corpus)
        results.append((norms, cider(emulated, case, corpus, norms)))
    for norms, scores in results[1:]:
        assert torch.equal(norms, results[0][0]) and torch.equal(scores, results[0][1])


def test_lengths_are_clamped(emulated: Emulated) -> None:
    wrong, right = Case(2, 4), Case(2, 4)
    width = wrong.tokens.shape[1]
    for case in (wrong, right):
        case.tokens.fill_(1)
    wrong.lengths[:4] = torch.tensor([-1, width + 1, 2**40, -(2**62)])
    right.lengths[:4] = torch.tensor([0, width, width, 0])
    assert_same(emulated, wrong, right)


def test_what_does_not_fit_is_empty(emulated: Emulated) -> None:
    """Spans and offsets that lead outside: no reference, and a reference without a token."""
    wrong = Case(2, 8, references=(2,))
    references = wrong.references
    sentences = references.sentences
    references.spans[0] = torch.tensor([-1, 1])
    references.spans[1] = torch.tensor([15, 17])
    references.spans[2] = torch.tensor([5, 4])
    references.spans[3] = torch.tensor([2**62, 2**62 + 1])
    sentences.offsets[9] = -(2**40)  # of sentences 8 and 9, of input 4
    sentences.offsets[12] = 2**40  # 11 and 12, of inputs 5 and 6
    sentences.offsets[14] = sentences.offsets[13] + 2**30  # 13 and 14, of inputs 6 and 7
    sentences.offsets[16] += 1  # 15, of input 7
    right = Case(2, 8, references=(2,))
    right.token_ids = [
        [] if b < 4 else [[] if s in (8, 9, 11, 12, 13, 14, 15) else ids for s, ids in enumerate(given, 2 * b)]
        for b, given in enumerate(right.token_ids)
    ]
    right.references = References(right.token_ids)
    assert_same(emulated, wrong, right)


def assert_same(emulated: Emulated, wrong: Case, right: Case) -> None:
    """The kernels score the first as the CPU scores the second."""
    for actual, expected in zip(bleu(emulated, wrong, 4, 4), bleu(OnCpu(), right, 4, 4), strict=True):
        assert torch.equal(actual, expected)
    for kind in (ROUGE_L, HAMMING, EDIT_DISTANCE):
        assert torch.equal(align(emulated, wrong, kind), align(OnCpu(), right, kind))
    corpus = Cider(References([*right.token_ids, [[0]], []]))
    scores = [
        cider(device, case, corpus, cider_norms(device, case, corpus))
        for device, case in ((emulated, wrong), (OnCpu(), right))
    ]
    torch.testing.assert_close(*scores, rtol=1e-13, atol=0.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ids_that_no_reference_can_have_match_none(emulated: Emulated, dtype: torch.dtype) -> None:
    """Their low 32 bits are those of a token."""
    wrong, right = Case(1, 3, dtype=dtype, references=(2,)), Case(1, 3, dtype=dtype, references=(2,))
    beyond = -1 if dtype == torch.int32 else 2**32
    for case, token in ((wrong, beyond), (right, 77)):
        case.tokens[case.tokens == 0] = token
    assert_same(emulated, wrong, right)


def test_every_candidate_has_scratch_of_its_own(emulated: Emulated) -> None:
    case, given = Case(2, 5), []

    def scratch(case: Case, words: int) -> Tensor:
        given.append(torch.full((len(case.tokens), words), -1))
        return given[-1]

    emulated.scratch = scratch  # type: ignore[method-assign]
    corpus = Cider(References([*case.token_ids, [[0]]]))
    cider(emulated, case, corpus, cider_norms(emulated, case, corpus))
    terms = given[0].view(*case.tokens.shape, 4, 2)
    expected = torch.arange(case.tokens.shape[1]) < case.lengths[:, None]
    assert torch.equal((terms[..., 0] != -1).all(-1), expected)


def test_public_functions(emulated: Emulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the same functions, with the scratch memory that they ask for."""
    case = Case(3, 4, lengths=LENGTHS[5:10])
    samples, lengths = case.tokens.view(3, 4, -1), case.lengths.view(3, 4)
    corpus = Cider(References([*case.token_ids, [[0]]]))
    rewards = (sentence_bleu, rouge_l, hamming, edit_distance, corpus)
    expected = [reward(samples, lengths, case.references) for reward in rewards]
    given: list[tuple[Tensor, int]] = []

    def scratch(scored: Problem, words: int) -> Tensor:
        given.append((guarded(len(case.tokens), words, dtype=torch.int64), words))
        return given[-1][0]

    def call(name: str, like: Tensor, *arguments: object) -> None:
        getattr(emulated.module, name)(*arguments, *emulated.where)

    monkeypatch.setattr(Problem, "scratch", scratch)
    monkeypatch.setattr(compiled, "call", call)
    corpus._norms.clear()
    for reward, scores in zip(rewards, expected, strict=True):
        torch.testing.assert_close(reward(samples, lengths, case.references), scores, rtol=1e-13, atol=0.0)
    assert len(given) == 4
    for memory, words in given:
        written(memory, len(case.tokens), words)


def test_scratch_is_required(emulated: Emulated) -> None:
    case = Case(1, 2, lengths=(3,))
    emulated.scratch = lambda case, words: torch.empty(0)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="scratch: got a null pointer"):
        align(emulated, case, ROUGE_L)
    corpus = Cider(case.references)
    with pytest.raises(ValueError, match="scratch: got a null pointer"):
        cider(emulated, case, corpus, torch.ones(9, 4))


def test_sizes_are_checked(emulated: Emulated) -> None:
    """What both modules refuse, since they share what checks it."""
    case = Case(2, 3)
    *first, count, width = case.candidates
    references, rest = case.references.arguments(), (1, 1.2, 1, 1, 0, 0)
    with pytest.raises(ValueError, match="candidates: got 5, expected a multiple of the 3 inputs"):
        emulated.module.alignment((*first, 5, width), references, *rest)
    with pytest.raises(ValueError, match="candidates: got 1073741825 positions"):
        emulated.module.alignment((*first, count, 2**30 + 1), references, *rest)
    with pytest.raises(RuntimeError, match="alignment: invalid argument"):
        emulated.module.alignment((*first, 3 * 2**31, width), references, *rest)
