"""CIDEr and CIDEr-D against their definition in plain Python, and their files."""

import copy
import math
import pickle
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothloss.rewards import Cider, References

SMALL, LARGE = st.integers(0, 3), st.sampled_from([0, 65535, 65536, 65537, 131072, 2**31 - 2])
SENTENCE = st.lists(SMALL, max_size=10) | st.lists(LARGE, max_size=10)
DOCUMENT = st.lists(SENTENCE, max_size=4)


def ngrams(sentence):
    return Counter(tuple(sentence[i : i + n]) for n in range(1, 5) for i in range(len(sentence) - n + 1))


def definition(candidate, references, corpus, variant="cider-d", sigma=6.0):
    """The equation, with a dictionary for every vector."""
    frequency = Counter(gram for document in corpus for gram in set().union(*map(ngrams, document)))

    def vectors(sentence):
        weights = {
            gram: count * (math.log(len(corpus)) - math.log(max(1, frequency[gram])))
            for gram, count in ngrams(sentence).items()
        }
        return [{gram: weight for gram, weight in weights.items() if len(gram) == n} for n in range(1, 5)]

    def cosine(own, other):
        clipped = variant == "cider-d"
        product = sum((min(w, other.get(g, 0.0)) if clipped else w) * other.get(g, 0.0) for g, w in own.items())
        norms = [math.sqrt(sum(weight**2 for weight in vector.values())) for vector in (own, other)]
        return product / (norms[0] * norms[1]) if min(norms) > 0 else 0.0

    total = 0.0
    for reference in references:
        difference = max(0, len(candidate) - 1) - max(0, len(reference) - 1)
        penalty = math.exp(-(difference**2) / (2 * sigma**2)) if variant == "cider-d" else 1.0
        total += penalty * sum(map(cosine, vectors(candidate), vectors(reference))) / 4
    return 10 * total / len(references) if references else 0.0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(SENTENCE, DOCUMENT), min_size=1, max_size=4), st.lists(DOCUMENT, min_size=1, max_size=6),
    st.sampled_from(["cider-d", "cider"]), st.sampled_from([1.0, 6.0]),
)  # fmt: skip
def test_equal_to_the_definition(cases, corpus, variant, sigma):
    cider = Cider(References(corpus), variant=variant, sigma=sigma)
    found = cider([candidate for candidate, _ in cases], None, References([others for _, others in cases]))
    expected = [definition(*case, corpus, variant, sigma) for case in cases]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 63, 64, 65, 200])
def test_every_length(length):
    generator = torch.Generator().manual_seed(length)
    rows = torch.randint(0, 20, (6, length), generator=generator).tolist()
    corpus = [[rows[1], rows[2]], [rows[3]], [rows[4], rows[5]]]
    found = Cider(References(corpus))([rows[0]], None, References([corpus[0]])).item()
    assert found == pytest.approx(definition(rows[0], corpus[0], corpus), rel=1e-9)


def test_a_large_corpus_keeps_its_counts():
    """Enough n-grams for the table to have grown many times."""
    tokens = torch.randint(0, 100_000, (300, 4, 30), generator=torch.Generator().manual_seed(0))
    corpus = (tokens % torch.tensor([50, 1000, 70_000, 100_000]).view(1, 4, 1)).tolist()
    cider, candidates = Cider(References(corpus)), [document[0][5:25] for document in corpus[:5]]
    found = cider(candidates, None, References(corpus[5:10]))
    frequency_cases = zip(candidates, corpus[5:10], strict=True)
    expected = [definition(candidate, references, corpus) for candidate, references in frequency_cases]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-14)


def test_degenerate_inputs_score_zero():
    corpus = [[[1, 2, 3, 4]], [[1, 2, 3, 4]]]
    everywhere = Cider(References(corpus))  # every n-gram in every document: all weights are 0
    assert everywhere([[1, 2, 3, 4]], None, References(corpus[:1])).item() == 0
    alone = Cider(References(corpus[:1]))  # log 1 = 0
    assert alone([[1, 2, 3, 4]], None, References(corpus[:1])).item() == 0
    cider = Cider(References([[[1, 2, 3]], [[4]], [[]]]))
    assert cider([[], [1], []], None, References([[[1, 2]], [], [[]]])).tolist() == [0, 0, 0]


def test_the_candidate_itself_scores_ten():
    cider = Cider(References([[[1, 2, 3, 4, 5]], [[6]]]))
    assert cider([[1, 2, 3, 4, 5]], None, References([[[1, 2, 3, 4, 5]] * 3])).item() == pytest.approx(10, rel=1e-12)


def test_samples_share_the_references_of_their_input():
    corpus = References([[[1, 2, 3], [1, 2, 4]], [[5, 6, 7, 8]], [[9, 1, 2]]])
    cider = Cider(corpus)
    samples = torch.randint(1, 10, (6, 3, 5), generator=torch.Generator().manual_seed(0))
    lengths = torch.randint(0, 6, (6, 3), generator=torch.Generator().manual_seed(1))
    batch = corpus.select(torch.tensor([2, 0, 0]))
    scores = cider(samples, lengths, batch)
    assert scores.shape == (6, 3)
    for row in range(6):
        lists = [samples[row, b, : lengths[row, b]].tolist() for b in range(3)]
        assert torch.equal(scores[row], cider(lists, None, batch))


def test_threads_change_nothing():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 30, (400, 6, 20), generator=generator).tolist()
    references = References([row[1:] for row in rows])
    cider, before = Cider(references), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(cider([row[0] for row in rows], None, references))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_norms_are_computed_once_for_all_selections(monkeypatch):
    from smoothloss.rewards import cider as module

    calls: list[str] = []
    real = module.compiled.call
    monkeypatch.setattr(module.compiled, "call", lambda name, *rest: calls.append(name) or real(name, *rest))
    references = References([[[1, 2]], [[3]]])
    cider = Cider(references)
    for _ in range(2):
        cider([[1]], None, references.select(torch.tensor([0])))
    assert calls == ["cider_norms", "cider", "cider"]
    cider([[1]], None, References([[[1, 2]]]))
    assert calls[3:] == ["cider_norms", "cider"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cider: pickle.loads(pickle.dumps(cider))])
def test_copies(copied):
    corpus = References([[[1, 2, 3, 70_000], [1, 2]], [[5, 2, 3, 4]], [[1]]])
    cider = Cider(corpus, variant="cider", sigma=3.0)
    other = copied(cider)
    assert repr(other) == repr(cider) and other.sigma == 3.0
    candidates = [[1, 2, 3], [2, 3, 4, 9], [1]]
    assert torch.equal(other(candidates, None, corpus), cider(candidates, None, corpus))


def test_save_and_load(tmp_path):
    corpus = References([[[1, 2, 3, 70_000], [1, 2]], [[5, 2, 3, 4]], [[1]]])
    cider = Cider(corpus, variant="cider", sigma=3.0)
    cider.save(tmp_path / "df.safetensors")
    loaded = Cider.load(tmp_path / "df.safetensors")
    assert (loaded.variant, loaded.sigma, loaded.num_documents) == ("cider", 3.0, 3)
    assert repr(loaded) == repr(cider)
    candidates = [[1, 2, 3], [2, 3, 4, 9], [1]]
    assert torch.equal(loaded(candidates, None, corpus), cider(candidates, None, corpus))
    assert [path.name for path in tmp_path.iterdir()] == ["df.safetensors"]


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([[5, 1, 1]], "prefix must come before it"),
        ([[0, -1, 1]], "out of range in row 0"),
        ([[0, 1, 0]], "positive"),
        ([[0, 1, 1], [0, 1, 1]], "comes twice"),
        ([[0, 1, 4]], "num_documents: got 3"),
    ],
)
def test_damaged_files_are_refused(tmp_path, nodes, message):
    from safetensors.torch import save_file

    metadata = {"format": "smoothloss.cider.1", "variant": "cider-d", "sigma": "6.0", "num_documents": "3"}
    save_file({"nodes": torch.tensor(nodes)}, tmp_path / "df.safetensors", metadata)
    with pytest.raises(ValueError, match=f"path: .*holds damaged document frequencies .*{message}"):
        Cider.load(tmp_path / "df.safetensors")


def test_files_that_are_none_of_ours(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="path: no document frequencies at"):
        Cider.load(tmp_path / "nothing")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ValueError, match="is no safetensors file"):
        Cider.load(tmp_path / "text")
    save_file({"nodes": torch.zeros(0, 3, dtype=torch.int64)}, tmp_path / "other")
    with pytest.raises(ValueError, match=r"expected metadata with format 'smoothloss\.cider\.1'"):
        Cider.load(tmp_path / "other")
    save_file({}, tmp_path / "empty", {"format": "smoothloss.cider.1"})
    with pytest.raises(ValueError, match="damaged"):
        Cider.load(tmp_path / "empty")


def test_options_are_checked():
    references = References([[[1]]])
    with pytest.raises(ValueError, match="variant: got 'cider-r'"):
        Cider(references, variant="cider-r")
    with pytest.raises(ValueError, match="sigma: got 0"):
        Cider(references, sigma=0)
    with pytest.raises(ValueError, match="references: got none"):
        Cider(References([]))
    with pytest.raises(TypeError, match="references: got list"):
        Cider([[[1]]])
