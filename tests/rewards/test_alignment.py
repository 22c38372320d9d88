"""ROUGE-L, Hamming and edit distance against their definitions in plain Python."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothloss.rewards import References, edit_distance, hamming, rouge_l

SENTENCE = st.lists(st.integers(0, 3), max_size=9) | st.lists(st.sampled_from([0, 65536, 2**31 - 2]), max_size=9)
REFERENCES = st.lists(SENTENCE, max_size=4)


def common_subsequence(a, b):
    @functools.cache
    def longest(i, j):
        if i == len(a) or j == len(b):
            return 0
        if a[i] == b[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    return longest(0, 0)


def fewest_edits(a, b):
    @functools.cache
    def fewest(i, j):
        if i == len(a) or j == len(b):
            return len(a) - i + len(b) - j
        return min(fewest(i + 1, j + 1) + (a[i] != b[j]), 1 + fewest(i + 1, j), 1 + fewest(i, j + 1))

    return fewest(0, 0)


def differing(a, b):
    return sum(x != y for x, y in zip(a, b, strict=False)) + abs(len(a) - len(b))


def rouge(candidate, references, beta):
    used = [reference for reference in references if candidate and reference]
    precision = max((common_subsequence(candidate, other) / len(candidate) for other in used), default=0)
    recall = max((common_subsequence(candidate, other) / len(other) for other in used), default=0)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision) if precision and recall else 0.0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(SENTENCE, REFERENCES), min_size=1, max_size=4), st.sampled_from([1.0, 1.2]))
def test_equal_to_the_definitions(cases, beta):
    candidates, references = [candidate for candidate, _ in cases], References([others for _, others in cases])
    found = rouge_l(candidates, None, references, beta=beta)
    expected = torch.tensor([rouge(*case, beta) for case in cases], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)
    for reward, distance in ((hamming, differing), (edit_distance, fewest_edits)):
        nearest = [
            min((distance(candidate, other) for other in others), default=len(candidate)) for candidate, others in cases
        ]
        assert reward(candidates, None, references).tolist() == [-value for value in nearest]


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 200])
def test_every_length(length):
    generator = torch.Generator().manual_seed(length)
    first, second = torch.randint(0, 4, (2, length), generator=generator).tolist()
    second = second[: length // 2 + 1] + first
    references = References([[second]])
    assert -edit_distance([first], None, references).item() <= -hamming([first], None, references).item()
    assert rouge_l([first], None, references).item() == rouge(first, [second], 1.2)
    # What only the longer sentence has is inserted: the shorter one is its end.
    assert edit_distance([first], None, references).item() == -(len(second) - len(first))


def test_the_weight_of_recall_is_checked():
    with pytest.raises(ValueError, match="beta: got 0"):
        rouge_l([[1]], None, References([[[1]]]), beta=0)
