"""SimilarityTable against the dense definition of the paper, in float64."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothloss.similarity import SimilarityTable

TAILS = ("uniform", "renormalize", "exact")


def naive_rows(vectors, tau, beta=0.0, counts=None, exclude=()):
    """Eq. 13 and 14 written down: a (V, V) float64 matrix."""
    vectors = np.nan_to_num(np.asarray(vectors, dtype=np.float64))
    norms = np.linalg.norm(vectors, axis=1)
    usable = norms > 0
    usable[list(exclude)] = False
    unit = vectors / np.where(norms > 0, norms, 1)[:, None]
    reward = unit @ unit.T
    if beta:
        f = np.asarray(counts, dtype=np.float64)
        reward -= beta * np.minimum(f[:, None] / f[None, :], f[None, :] / f[:, None])
    similarity = np.exp(reward / tau) * usable
    similarity /= similarity.sum(axis=1, keepdims=True)
    similarity[~usable] = np.eye(len(vectors))[~usable]
    return torch.from_numpy(similarity)


def scattered(table):
    """The (V, V) rows that the stored entries and the tail's mass stand for."""
    num_tokens = table.num_tokens
    dense = torch.zeros(num_tokens, num_tokens + 1, dtype=torch.float64)
    slots = torch.where(table.indices < 0, num_tokens, table.indices.long())
    dense.scatter_add_(1, slots, table.weights.double())
    return dense[:, :-1] + table.tail.double()[:, None] / num_tokens


@pytest.fixture
def vectors():
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(60, 5, generator=generator)
    vectors[7] = 0
    vectors[11, 2] = torch.nan
    return vectors


@pytest.fixture
def counts():
    return torch.randint(1, 10_000, (60,), generator=torch.Generator().manual_seed(2)).double()


@pytest.mark.parametrize("beta", [0.0, 0.18])
@pytest.mark.parametrize("tau", [0.05, 0.3, 3.0])
def test_dense_is_the_definition(vectors, counts, tau, beta):
    table = SimilarityTable.from_embeddings(vectors, k=5, tau=tau, beta=beta, counts=counts, exclude=(0, 3))
    expected = naive_rows(vectors, tau, beta, counts, exclude=(0, 3, 11))
    torch.testing.assert_close(table.dense(), expected, rtol=5e-6, atol=1e-12)
    torch.testing.assert_close(table.dense().sum(-1), torch.ones(60, dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.18])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("k", [1, 6, 56, 100])
def test_entries_are_the_largest_of_the_dense_row(vectors, counts, k, tail, beta):
    exclude = (0, 3)
    table = SimilarityTable.from_embeddings(vectors, k=k, tau=0.2, beta=beta, counts=counts, tail=tail, exclude=exclude)
    dense = naive_rows(vectors, 0.2, beta, counts, exclude=(*exclude, 11))
    largest, places = dense.topk(min(k, 56), dim=-1)
    mass = largest.sum(-1)
    torch.testing.assert_close(table.kept_mass.double(), mass, rtol=0, atol=1e-6)
    total = table.weights.double().sum(-1) + table.tail.double()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)
    assert (table.weights >= 0).all()

    expected = torch.zeros_like(dense).scatter_(1, places, largest)
    if tail == "renormalize":
        expected /= mass[:, None]
        assert (table.tail == 0).all()
        actual = scattered(table)
    elif tail == "uniform":
        evenly = (1 - mass)[:, None] / max(1, 60 - min(k, 56))
        expected = torch.where(expected > 0, expected, evenly)
        actual = scattered(table)
    else:
        torch.testing.assert_close(table.tail.double(), 1 - mass, rtol=0, atol=1e-6)
        actual = scattered(table) - table.tail.double()[:, None] / 60
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-7)


@pytest.mark.parametrize("tail", TAILS)
def test_special_tokens_are_dirac_rows_and_nobodys_neighbours(vectors, tail):
    table = SimilarityTable.from_embeddings(vectors, k=4, tau=0.3, tail=tail, exclude=(0, 3))
    for token in (0, 3, 7, 11):
        assert table.indices[token].tolist() == [token, -1, -1, -1]
        assert table.weights[token].tolist() == [1, 0, 0, 0]
        assert table.tail[token] == 0
        assert table.kept_mass[token] == 1
        others = torch.arange(60) != token
        assert not (table.indices[others] == token).any()
        assert (table.dense()[others, token] == 0).all()
        assert torch.equal(table.dense()[token], torch.eye(60, dtype=torch.float64)[token])
        indices, weights, mass = table.row(token)
        assert (indices.tolist(), weights.tolist(), mass) == ([token], [1.0], 0.0)


def test_more_entries_than_neighbours_are_padded():
    table = SimilarityTable.from_embeddings(torch.eye(4), k=6, tau=1.0, exclude=[2])
    assert (table.indices[0, :3].sort().values == torch.tensor([0, 1, 3])).all()
    assert table.indices[0, 0] == 0
    assert table.indices[0, 3:].tolist() == [-1, -1, -1]
    assert table.weights[0, 3:].tolist() == [0, 0, 0]
    assert table.tail[0] == 0
    indices, weights, _ = table.row(0)
    assert indices.shape == weights.shape == (3,)


def test_no_token_has_a_vector():
    table = SimilarityTable.from_embeddings(torch.zeros(3, 2), k=2, tau=1.0)
    assert table.indices.tolist() == [[0, -1], [1, -1], [2, -1]]
    assert torch.equal(table.dense(), torch.eye(3, dtype=torch.float64))
    assert table.total_kept_mass == 1


def test_the_penalty_is_largest_for_the_token_itself():
    vectors = torch.tensor([[1.0, 0.0], [1.0, 1e-3], [0.0, 1.0]])
    table = SimilarityTable.from_embeddings(vectors, k=3, tau=0.1, beta=0.5, counts=[1000, 1, 1])
    assert table.indices[0].tolist()[0] == 1


def test_counts_of_zero_are_compared_without_nan():
    table = SimilarityTable.from_embeddings(torch.ones(3, 2), k=3, tau=1.0, beta=1.0, counts=[0, 0, 10**9])
    row = torch.tensor([0.0, 0.0, 1.0]).double().softmax(0)
    torch.testing.assert_close(table.dense()[0], row, rtol=1e-6, atol=0)
    torch.testing.assert_close(table.dense()[2], torch.tensor([1.0, 1.0, 0.0]).double().softmax(0), rtol=1e-6, atol=0)


def test_rows_are_rows_of_the_dense_matrix_even_under_autocast(vectors, counts):
    table = SimilarityTable.from_embeddings(vectors, k=2, tau=0.1, beta=0.1, counts=counts, tail="exact", exclude=[0])
    tokens = torch.tensor([5, 0, 7, 59])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = table.rows(tokens)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.double(), table.dense()[tokens], rtol=2e-5, atol=1e-9)
    assert table.rows(torch.zeros(0, dtype=torch.int64)).shape == (0, 60)


def test_blocks_do_not_change_the_table(vectors, counts, monkeypatch):
    settings = {"k": 7, "tau": 0.1, "beta": 0.1, "counts": counts, "exclude": (0,)}
    whole = SimilarityTable.from_embeddings(vectors, **settings)
    monkeypatch.setattr("smoothloss.ops.similarity_rows.BLOCK_BYTES", 60 * 4 * 3)
    blocked = SimilarityTable.from_embeddings(vectors, **settings)
    assert torch.equal(whole.indices, blocked.indices)
    torch.testing.assert_close(whole.weights, blocked.weights, rtol=1e-5, atol=0)
    torch.testing.assert_close(whole.rows(torch.arange(60)), blocked.rows(torch.arange(60)), rtol=1e-5, atol=1e-9)


def test_total_kept_mass_is_weighted_by_frequency(vectors, counts):
    plain = SimilarityTable.from_embeddings(vectors, k=3, tau=0.2, exclude=(0,))
    weighted = SimilarityTable.from_embeddings(vectors, k=3, tau=0.2, exclude=(0,), counts=counts)
    used = torch.tensor([token not in (0, 7, 11) for token in range(60)])
    mass = plain.kept_mass.double()
    assert plain.total_kept_mass == pytest.approx(float(mass[used].mean()), rel=1e-6)
    expected = float((mass * counts)[used].sum() / counts[used].sum())
    assert weighted.total_kept_mass == pytest.approx(expected, rel=1e-6)
    assert f"{expected:.4f}" in repr(weighted)
    assert all(part in repr(weighted) for part in ("num_tokens=60", "num_neighbours=3", "tau=0.2", "'uniform'"))


def test_tiny_and_huge_vectors_and_other_dtypes(vectors):
    reference = SimilarityTable.from_embeddings(vectors, k=4, tau=0.2)
    for other in (vectors * 1e-30, vectors * 1e30, vectors.double(), vectors.numpy()):
        table = SimilarityTable.from_embeddings(other, k=4, tau=0.2)
        assert torch.equal(table.indices, reference.indices)
        torch.testing.assert_close(table.weights, reference.weights, rtol=1e-5, atol=0)
    assert SimilarityTable.from_embeddings(vectors.half(), k=4, tau=0.2).weights.dtype == torch.float32


@pytest.mark.parametrize("with_counts", [False, True])
@pytest.mark.parametrize("tail", TAILS)
def test_save_and_load(vectors, counts, tail, with_counts, tmp_path):
    extra = {"counts": counts, "beta": 0.1} if with_counts else {}
    table = SimilarityTable.from_embeddings(vectors, k=4, tau=1 / 3, tail=tail, exclude=(0,), **extra)
    path = tmp_path / "table.safetensors"
    table.save(path)
    table.save(str(path))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    loaded = SimilarityTable.load(path, num_tokens=60)
    assert (loaded.tau, loaded.beta, loaded.tail_mode) == (table.tau, table.beta, table.tail_mode)
    assert repr(loaded) == repr(table)
    for name, tensor in table._tensors().items():
        assert torch.equal(getattr(loaded, name), tensor)
    assert torch.equal(loaded.dense(), table.dense())
    with pytest.raises(ValueError, match="60 tokens, expected 61"):
        SimilarityTable.load(path, num_tokens=61)


def test_load_answers_a_bad_file_clearly(vectors, tmp_path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(FileNotFoundError, match="nothing"):
        SimilarityTable.load(tmp_path / "nothing")
    table = SimilarityTable.from_embeddings(vectors, k=4, tau=0.1)
    path = tmp_path / "table"
    table.save(path)
    content = path.read_bytes()
    for damaged in (b"", b"hello", content[:100], content[:-50]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="damaged"):
            SimilarityTable.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="no similarity table"):
        SimilarityTable.load(path)

    path.write_bytes(content)
    tensors = load_file(path)
    metadata = {"format": "smoothloss.similarity_table.1", "tau": "0.1", "beta": "0.0", "tail_mode": "uniform"}
    for changed, renamed in (
        ({"weights": torch.zeros(60, 5)}, {}),
        ({"tail": torch.full((60,), torch.nan)}, {}),
        ({"indices": torch.full((60, 4), 60, dtype=torch.int32)}, {}),
        ({"other": torch.zeros(1)}, {}),
        ({}, {"tau": "0"}),
        ({}, {"tau": "warm"}),
        ({}, {"beta": "0.5"}),
        ({}, {"tail_mode": "none"}),
    ):
        save_file({**tensors, **changed}, path, metadata={**metadata, **renamed})
        with pytest.raises(ValueError, match="damaged similarity table"):
            SimilarityTable.load(path)


def test_a_failed_save_leaves_the_old_file(vectors, tmp_path, monkeypatch):
    table = SimilarityTable.from_embeddings(vectors, k=4, tau=0.1)
    path = tmp_path / "table"
    table.save(path)

    def fail(self, target):
        raise OSError("disk")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk"):
        SimilarityTable.from_embeddings(vectors, k=5, tau=0.1).save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["table"]
    assert SimilarityTable.load(path).num_neighbours == 4


def test_to(vectors):
    table = SimilarityTable.from_embeddings(vectors, k=4, tau=0.1)
    moved = table.to("meta")
    assert moved.device.type == "meta"
    assert moved.indices.shape == table.indices.shape
    assert table.device.type == "cpu"
    assert (moved.tau, moved.tail_mode) == (table.tau, table.tail_mode)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"vectors": [[1.0]]}, TypeError, "vectors: got list"),
        ({"vectors": torch.ones(3, 2, dtype=torch.int64)}, TypeError, "vectors: got dtype"),
        ({"vectors": torch.ones(3)}, ValueError, r"vectors: got shape \(3,\)"),
        ({"vectors": torch.ones(0, 3)}, ValueError, "vectors: got shape"),
        ({"vectors": torch.tensor([[1.0], [torch.inf]])}, ValueError, "infinite value in row 1"),
        ({"k": 0}, ValueError, "k: got 0"),
        ({"k": 2.0}, TypeError, "k: got 2.0"),
        ({"tau": 0.0}, ValueError, "tau: got 0"),
        ({"tau": float("nan")}, ValueError, "tau: got nan"),
        ({"beta": -1.0}, ValueError, "beta: got -1"),
        ({"beta": 1.0}, ValueError, "counts: needed because beta"),
        ({"beta": 1.0, "counts": [1.0]}, ValueError, r"counts: got shape \(1,\), expected \(3,\)"),
        ({"counts": [1.0, -1.0, 1.0]}, ValueError, r"counts: got -1.0 for token 1, expected 0, or 1e-20 to 1e\+30"),
        ({"counts": [1.0, 1e39, 1.0]}, ValueError, r"counts: got 1e\+39 for token 1"),
        ({"counts": [1.0, 1.0, 1e-40]}, ValueError, "counts: got 1e-40 for token 2"),
        ({"counts": [1.0, math.nan, 1.0]}, ValueError, "counts: got nan for token 1"),
        ({"counts": ["1", "1", "1"]}, TypeError, "counts: got list of <U1, expected a sequence of numbers"),
        ({"counts": [[1.0], [1.0, 2.0]]}, TypeError, "counts: got list of object"),
        ({"counts": 3}, ValueError, r"counts: got shape \(\), expected \(3,\)"),
        ({"counts": [True, True, False]}, TypeError, "counts: got list of bool"),
        ({"counts": torch.ones(3, dtype=torch.complex64)}, TypeError, "counts: got dtype torch.complex64"),
        ({"vectors": None}, TypeError, "vectors: got NoneType"),
        ({"k": None}, TypeError, "k: got None"),
        ({"k": True}, TypeError, "k: got True"),
        ({"tau": "x"}, TypeError, "tau: got 'x' .str., expected a number"),
        ({"tau": None}, TypeError, "tau: got None"),
        ({"tau": math.inf}, ValueError, "tau: got inf, expected a finite number > 0"),
        ({"tau": 10**400}, ValueError, "tau: got 1000"),
        ({"tau": 1e-5, "tail": "exact"}, ValueError, "tau: got 1e-05, expected at least 0.0001 with tail='exact'"),
        ({"beta": 1e39, "counts": [1, 1, 1]}, ValueError, "beta: got 1e.39, expected 0 to 1000"),
        ({"beta": "x"}, TypeError, "beta: got 'x'"),
        ({"tail": None}, ValueError, "tail: got None"),
        ({"exclude": 1}, TypeError, "exclude: got 1 .int., expected a sequence of token ids"),
        ({"exclude": None}, TypeError, "exclude: got None"),
        ({"exclude": "ab"}, TypeError, "exclude: got 'a'"),
        ({"exclude": [-1]}, ValueError, "exclude: got token -1"),
        ({"tail": "none"}, ValueError, "tail: got 'none', expected one of 'uniform'"),
        ({"exclude": [3]}, ValueError, "exclude: got token 3"),
        ({"exclude": [1.0]}, TypeError, "exclude: got 1.0"),
    ],
)
def test_arguments_are_checked(changes, error, message):
    arguments = {"vectors": torch.eye(3), "k": 2, "tau": 0.1, **changes}
    with pytest.raises(error, match=message):
        SimilarityTable.from_embeddings(arguments.pop("vectors"), **arguments)


def test_tokens_are_checked(vectors):
    table = SimilarityTable.from_embeddings(vectors, k=4, tau=0.1)
    for call, error in (
        (lambda: table.row(60), IndexError),
        (lambda: table.row(-1), IndexError),
        (lambda: table.rows(torch.tensor([3, 60])), IndexError),
        (lambda: table.rows(torch.tensor([-1])), IndexError),
        (lambda: table.rows(torch.tensor([1.0])), TypeError),
        (lambda: table.rows(torch.tensor([[1]])), ValueError),
        (lambda: table.rows(torch.tensor([1]), dtype=torch.float16), ValueError),
    ):
        with pytest.raises(error, match=r"token|dtype"):
            call()


def test_coco_vectors(data_dir):
    beta = 0.18
    with np.load(data_dir / "glove" / "glove.coco-val2014-notest.w15.d300.npz") as archive:
        vectors, counts = archive["vectors"].astype(np.float32), archive["counts"]
    table = SimilarityTable.from_embeddings(vectors, k=64, tau=0.1, beta=beta, counts=counts, tail="exact", exclude=[0])
    expected = naive_rows(vectors, 0.1, beta, counts, exclude=[0])
    torch.testing.assert_close(table.dense(), expected, rtol=1e-5, atol=1e-15)
    torch.testing.assert_close(table.weights.double()[1:], expected.topk(64).values[1:], rtol=1e-5, atol=1e-12)
    total = table.weights.double().sum(-1) + table.tail.double()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_memory_stays_far_below_the_dense_matrix():
    script = (
        "import resource, torch; from smoothloss.similarity import SimilarityTable as T\n"
        "v = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))\n"
        "T.from_embeddings(v[:100], k=8, tau=0.1)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "T.from_embeddings(v, k=16, tau=0.1, beta=0.1, counts=torch.arange(20_000) + 1)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    unit = 1 if sys.platform == "darwin" else 1024
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(result.stdout) * unit < 500 << 20  # the dense matrix would take 1.6 GB


@pytest.mark.parametrize("default", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("tail", ["uniform", "renormalize", "exact"])
def test_the_default_dtype_changes_nothing(default, tail):
    vectors = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    arguments = {"k": 3, "tau": 0.3, "beta": 0.1, "counts": [1001.0, 3.3, *range(1, 8)], "tail": tail, "exclude": [2]}
    expected = SimilarityTable.from_embeddings(vectors, **arguments)
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        table = SimilarityTable.from_embeddings(vectors, **arguments)
        dense, text = table.dense(), repr(table)
    finally:
        torch.set_default_dtype(before)
    for name, tensor in expected._tensors().items():
        assert tensor.dtype == getattr(table, name).dtype
        assert torch.equal(tensor, getattr(table, name)), name
    assert torch.equal(dense, expected.dense())
    assert text == repr(expected)


@st.composite
def extreme_tables(draw):
    size, dim = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    vectors = torch.randn(size, dim, generator=torch.Generator().manual_seed(draw(st.integers(0, 1000))))
    copies = draw(st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)), max_size=4))
    for one, other in copies:  # equal vectors, and some that are equal but for their length
        vectors[one] = vectors[other] * draw(st.sampled_from([1.0, 4.0, 2.0**-100]))
    for token in draw(st.lists(st.integers(0, size - 1), max_size=2)):
        vectors[token] = 0
    ends = [5e-324, 1e-310, 1e-40, 1e-20, 1e-12, 1e-8, 1e-5, 1e-3, 0.1, 5.0, 1e30, 1.7e308]
    tau, beta = draw(st.sampled_from(ends)), draw(st.sampled_from([0.0, 1e-300, 0.3, 2.0, 1e3]))
    counts = draw(st.lists(st.sampled_from([0.0, 1e-20, 1.0, 2.0, 1e30]), min_size=size, max_size=size))
    tail = draw(st.sampled_from(["uniform", "renormalize"]))
    return vectors, {"k": draw(st.integers(1, 14)), "tau": tau, "beta": beta, "counts": counts, "tail": tail}


def dense_definition(vectors, tau, beta, counts):
    """Eq. 13 and 14 with Python's numbers, differences first."""
    vectors = vectors.double()
    has = (vectors != 0).any(-1)
    unit = vectors / vectors.abs().amax(-1, keepdim=True).clamp(min=1e-300)
    unit = unit / unit.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    cosines = unit @ unit.T
    counts = torch.tensor(counts, dtype=torch.float64)
    ratio = torch.minimum(counts[:, None] / counts, counts / counts[:, None])
    ratio = torch.where((counts[:, None] == 0) & (counts == 0), 1.0, ratio.nan_to_num(0.0, 0.0, 0.0))
    reward = (cosines - beta * ratio).masked_fill(~has, -torch.inf)
    rows = ((reward - reward.amax(-1, keepdim=True)) / tau).softmax(-1)
    return torch.where(has[:, None], rows, torch.eye(len(rows), dtype=torch.float64))


@given(extreme_tables())
@settings(deadline=None, max_examples=300)
def test_tables_at_the_ends_of_their_numbers(case):
    vectors, arguments = case
    table = SimilarityTable.from_embeddings(vectors, **arguments)
    for name, tensor in table._tensors().items():
        assert not tensor.isnan().any(), name
    assert (table.weights.double().sum(-1) + table.tail.double() - 1).abs().max() < 1e-6
    assert (table.weights >= 0).all() and (table.tail >= 0).all()
    assert ((table.indices >= 0).sum(-1) >= 1).all()
    dense = table.dense()
    assert not dense.isnan().any()
    assert (dense.sum(-1) - 1).abs().max() < 1e-6
    # The vectors are float32, of length 1 to 1e-7: what tau makes of that is not told apart here.
    error = 1e-6 / min(arguments["tau"], 1.0)
    if error < 1e-2:
        expected = dense_definition(vectors, arguments["tau"], arguments["beta"], arguments["counts"])
        assert (dense - expected).abs().max() < error
        uniform = arguments["tail"] == "uniform"
        share = torch.ones(len(vectors), 1).double() if uniform else table.kept_mass.double()[:, None]
        filled = table.indices >= 0
        exact = (expected / share).gather(1, table.indices.clamp(min=0).long())[filled]
        stored = (table.weights.double() + table.tail.double()[:, None] / len(vectors))[filled]
        assert (stored - exact).abs().max() < 10 * error


@pytest.mark.parametrize("tau", [1e-300, 1e-20, 1e-12, 1e-8, 1e-3, 0.1])
def test_equal_vectors_share_their_row_at_any_temperature(tau):
    vectors = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
    vectors[4], vectors[5] = vectors[1] * 4, vectors[1]
    table = SimilarityTable.from_embeddings(vectors, k=4, tau=tau)
    weights = table.dense()[1, [1, 4, 5]]
    assert float(weights.max()) <= float(weights.min()) * (1 + 1e-5)
    if tau < 0.1:
        torch.testing.assert_close(weights, torch.full((3,), 1 / 3, dtype=torch.float64), rtol=1e-5, atol=0)


def test_numpys_numbers_are_numbers():
    vectors = np.random.default_rng(0).normal(size=(7, 3))
    expected = SimilarityTable.from_embeddings(torch.from_numpy(vectors), k=2, tau=0.5, beta=0.25, counts=[1] * 7)
    for array in (vectors, np.asfortranarray(vectors), vectors[::-1][::-1], vectors.astype(">f8")):
        table = SimilarityTable.from_embeddings(
            array, k=np.int64(2), tau=np.float32(0.5), beta=np.array(0.25), counts=np.ones(7, np.uint8),
            exclude=np.array([], np.int64),
        )  # fmt: skip
        assert torch.equal(table.weights, expected.weights)
    excluded = SimilarityTable.from_embeddings(vectors, k=2, tau=0.5, exclude=np.array([1, 2], np.uint16))
    assert excluded.has_neighbours.tolist() == [True, False, False, True, True, True, True]
    assert table.row(np.int32(3))[0].tolist() == table.row(3)[0].tolist()


def test_a_table_on_meta_can_be_printed():
    table = SimilarityTable.from_embeddings(torch.randn(5, 3), k=2, tau=0.2)
    assert "without_neighbours=0" in repr(table)
    assert repr(table.to("meta")) == (
        "SimilarityTable(num_tokens=5, num_neighbours=2, tau=0.2, beta=0, tail_mode='uniform', device='meta')"
    )


def test_rows_and_row_say_what_they_want(tmp_path):
    table = SimilarityTable.from_embeddings(torch.randn(5, 3), k=2, tau=0.2)
    with pytest.raises(TypeError, match=r"tokens: got list, expected a torch.Tensor of integers"):
        table.rows([1])
    with pytest.raises(TypeError, match=r"token: got 1.0"):
        table.row(1.0)
    table.save(tmp_path / "table")
    with pytest.raises(TypeError, match="num_tokens: got '5'"):
        SimilarityTable.load(tmp_path / "table", num_tokens="5")
