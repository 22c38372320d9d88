"""BLEU against its definition in plain Python, sacrebleu and coco-caption."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothloss.rewards import References, bleu_statistics, corpus_bleu, sentence_bleu

SMALL, LARGE = st.integers(0, 3), st.sampled_from([0, 65535, 65536, 65537, 131072, 2**31 - 2])
SENTENCE = st.lists(SMALL, max_size=12) | st.lists(LARGE, max_size=12)
SACREBLEU = {"none": None, "floor": 0.1, "add-k": 1.0, "exp": None}


def ngrams(sentence, n):
    return Counter(tuple(sentence[i : i + n]) for i in range(len(sentence) - n + 1))


def counts(candidate, references, n):
    """What BLEU counts, by its definition."""
    length = len(candidate)
    closest = min((abs(len(reference) - length), len(reference)) for reference in references)[1] if references else 0
    matches = [
        sum(
            min(count, max((ngrams(reference, order)[gram] for reference in references), default=0))
            for gram, count in ngrams(candidate, order).items()
        )
        for order in range(1, n + 1)
    ]
    return [length, closest, *matches, *(max(0, length - order + 1) for order in range(1, n + 1))]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(SENTENCE, st.lists(SENTENCE, max_size=4)), min_size=1, max_size=4), st.integers(1, 8))
def test_counts_equal_those_of_the_definition(cases, n):
    candidates, references = [candidate for candidate, _ in cases], [others for _, others in cases]
    found = bleu_statistics(candidates, None, References(references), n=n)
    assert found.tolist() == [counts(*case, n) for case in cases]
    again = bleu_statistics(candidates, None, References(references), n=n)
    assert torch.equal(found, again)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 63, 64, 65, 200])
def test_counts_at_every_length(length):
    generator = torch.Generator().manual_seed(length)
    rows = torch.randint(0, 3, (4, length), generator=generator).tolist()
    assert bleu_statistics([rows[0]], None, References([rows[1:]])).tolist() == [counts(rows[0], rows[1:], 4)]


def add_k_all(candidate, references, n, k):
    length, closest, *rest = counts(candidate, references, n)
    if any(matches + k == 0 for matches in rest[:n]) or (length == 0 and closest > 0):
        return 0.0
    logs = [math.log((matches + k) / (total + k)) for matches, total in zip(rest[:n], rest[n:], strict=True)]
    return math.exp(min(0.0, 1 - closest / length if length else 0.0) + sum(logs) / n)


@settings(max_examples=200, deadline=None)
@given(SENTENCE, st.lists(SENTENCE, min_size=1, max_size=4), st.integers(1, 5), st.sampled_from([0.0, 0.5, 1.0]))
def test_add_k_at_every_order_is_the_papers(candidate, references, n, k):
    found = sentence_bleu([candidate], None, References([references]), n=n, smoothing="add-k-all", k=k)
    torch.testing.assert_close(found.item(), add_k_all(candidate, references, n, k), rtol=1e-12, atol=0.0)


@settings(max_examples=200, deadline=None)
@given(
    SENTENCE, st.lists(SENTENCE, min_size=1, max_size=4), st.integers(1, 6), st.sampled_from(sorted(SACREBLEU)),
    st.booleans(),
)  # fmt: skip
def test_equal_to_sacrebleu(candidate, references, n, smoothing, effective_order):
    bleu = pytest.importorskip("sacrebleu.metrics.bleu")
    metric = bleu.BLEU(
        tokenize="none", smooth_method=smoothing, smooth_value=SACREBLEU[smoothing], max_ngram_order=n,
        effective_order=effective_order, force=True,
    )  # fmt: skip
    texts = [" ".join(map(str, sentence)) for sentence in (candidate, *references)]
    expected = metric.sentence_score(texts[0], texts[1:]).score / 100
    found = sentence_bleu(
        [candidate], None, References([references]), n=n, smoothing=smoothing, effective_order=effective_order
    )
    # An empty line has no tokens, but sacrebleu sees one in it: the empty string.
    if candidate and all(references):
        torch.testing.assert_close(found.item(), expected, rtol=1e-9, atol=0.0)
    else:
        assert 0 <= found.item() <= 1


@pytest.mark.parametrize("smoothing", ["none", "floor", "add-k", "exp", "add-k-all", "coco"])
@pytest.mark.parametrize(
    ("candidate", "references"),
    [([], [[1, 2]]), ([1, 2], []), ([], []), ([1], [[1]]), ([1], [[2]]), ([1, 2], [[]]), ([7] * 200, [[7]])],
)
def test_degenerate_inputs_give_numbers(candidate, references, smoothing):
    score = sentence_bleu([candidate], None, References([references]), smoothing=smoothing).item()
    assert 0 <= score <= 1
    if not candidate or not references:
        assert score == 0


def test_repeated_references_change_nothing():
    candidates = [[1, 2, 3, 4, 4]]
    once = sentence_bleu(candidates, None, References([[[1, 2, 3, 9]]]))
    assert torch.equal(once, sentence_bleu(candidates, None, References([[[1, 2, 3, 9]] * 5])))


def test_a_perfect_candidate_scores_one():
    for smoothing in ("none", "add-k", "add-k-all"):
        score = sentence_bleu([[4, 5, 6, 7]], None, References([[[4, 5, 6, 7]]]), smoothing=smoothing)
        torch.testing.assert_close(score.item(), 1.0, rtol=1e-15, atol=0.0)


def test_options_are_checked():
    references = References([[[1]]])
    for flag in ("yes", None, 1):
        with pytest.raises(TypeError, match=r"effective_order: got .*, expected True or False"):
            sentence_bleu([[1]], None, References([[[1]]]), effective_order=flag)
    with pytest.raises(ValueError, match="n: got 9, expected at most 8"):
        sentence_bleu([[1]], None, references, n=9)
    with pytest.raises(TypeError, match=r"n: got 2\.0"):
        sentence_bleu([[1]], None, references, n=2.0)
    with pytest.raises(ValueError, match="smoothing: got 'add-1'"):
        sentence_bleu([[1]], None, references, smoothing="add-1")
    with pytest.raises(ValueError, match="k: got 1 for smoothing='exp'"):
        sentence_bleu([[1]], None, references, smoothing="exp", k=1)
    with pytest.raises(ValueError, match="k: got -1"):
        sentence_bleu([[1]], None, references, k=-1)
    with pytest.raises(ValueError, match=r"statistics: got shape \(2, 3\)"):
        corpus_bleu(torch.zeros(2, 3))


def test_several_corpora_at_once():
    statistics = torch.randint(1, 9, (5, 3, 10), generator=torch.Generator().manual_seed(0))
    for smoothing in ("exp", "coco"):
        found = corpus_bleu(statistics, smoothing=smoothing)
        assert torch.equal(
            found, torch.stack([corpus_bleu(part, smoothing=smoothing) for part in statistics.unbind(1)])
        )


@pytest.mark.parametrize(
    ("candidates", "references"),
    [
        (["a b c", "x"], ["a b c d", "y"]),
        (["a b x d e", "b"], ["a b c d e", "b"]),
        (["a x y z", "q"], ["a b c d", "r"]),
        (["x y z w"], ["a b c d"]),
        (["a"], ["a b"]),
    ],
)
def test_corpora_without_some_matches(candidates, references):
    """Orders without a match, or without an n-gram."""
    bleu = pytest.importorskip("sacrebleu.metrics.bleu")
    vocabulary: dict[str, int] = {}
    packed = References([[encode(vocabulary, line)] for line in references])
    statistics = bleu_statistics([encode(vocabulary, line) for line in candidates], None, packed)
    expected = bleu.BLEU(tokenize="none", force=True).corpus_score(candidates, [references]).score
    torch.testing.assert_close(100 * corpus_bleu(statistics)[-1].item(), expected, rtol=1e-12, atol=1e-15)


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def encode(vocabulary, text):
    return [vocabulary.setdefault(word, len(vocabulary)) for word in text.split()]


@pytest.mark.parametrize(
    ("smoothing", "mean"), [("none", 33.1006), ("floor", 34.8018), ("add-k", 39.5183), ("exp", 35.8402)]
)
def test_newstest2014(data_dir, smoothing, mean):
    """Every sentence equals sacrebleu's, and the means are the recorded ones."""
    bleu = pytest.importorskip("sacrebleu.metrics.bleu")
    candidates, references = (lines(data_dir / "wmt" / f"newstest2014.{name}.en") for name in ("hyp", "tok"))
    vocabulary: dict[str, int] = {}
    packed = References([[encode(vocabulary, line)] for line in references])
    found = sentence_bleu([encode(vocabulary, line) for line in candidates], None, packed, smoothing=smoothing)
    metric = bleu.BLEU(
        tokenize="none", smooth_method=smoothing, smooth_value=SACREBLEU[smoothing], effective_order=True, force=True
    )
    expected = [
        metric.sentence_score(*pair).score / 100
        for pair in zip(candidates, ([line] for line in references), strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0.0)
    assert abs(100 * found.mean().item() - mean) < 5e-5


def test_newstest2014_as_a_corpus(data_dir):
    bleu = pytest.importorskip("sacrebleu.metrics.bleu")
    candidates, references = (lines(data_dir / "wmt" / f"newstest2014.{name}.en") for name in ("hyp", "tok"))
    vocabulary: dict[str, int] = {}
    packed = References([[encode(vocabulary, line)] for line in references])
    statistics = bleu_statistics([encode(vocabulary, line) for line in candidates], None, packed)
    expected = bleu.BLEU(tokenize="none", force=True).corpus_score(candidates, [references]).score
    torch.testing.assert_close(100 * corpus_bleu(statistics)[-1].item(), expected, rtol=1e-9, atol=0.0)
    assert round(expected, 2) == 39.13
