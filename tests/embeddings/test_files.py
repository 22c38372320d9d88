"""Reading word vectors, whatever the format."""

import bz2
import gzip
import itertools
import os
import tempfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_files import MARK, Writing, names, writings
from hypothesis import given, settings
from hypothesis import strategies as st

from smoothloss.embeddings import load_vectors

GLOVE = "the 0.5 -1 2e-1\na 1 2 3\n. . . 4 5 6\nThe 7 8 9\n"


@pytest.fixture
def file(tmp_path):
    def make(text, name="vectors.txt"):
        path = tmp_path / name
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(text.encode()))
        else:
            path.write_bytes(text.encode())
        return path

    return make


@pytest.mark.parametrize("name", ["vectors.txt", "vectors.txt.gz"])
@pytest.mark.parametrize("text", [GLOVE, "4 3\n" + GLOVE, GLOVE.replace("\n", " \n"), GLOVE.replace("\n", "\r\n")])
def test_text(file, name, text):
    result = load_vectors(file(text, name), ["a", "zebra", "the", ". . ."])
    expected = torch.tensor([[1.0, 2, 3], [0, 0, 0], [0.5, -1, 0.2], [4, 5, 6]])
    assert torch.equal(result.vectors, expected)
    assert result.vectors.dtype == torch.float32
    assert result.found.tolist() == [True, False, True, True]
    assert result.missing == ["zebra"]
    assert (result.num_found, result.coverage) == (3, 0.75)
    assert result.counts is None


def test_tokens_with_unusual_characters(file):
    result = load_vectors(file("x\u00a0y 1 2\n\u2028 3 4\nété 5 6\n"), ["été", "\u2028", "x\u00a0y"])
    assert result.vectors.tolist() == [[5, 6], [3, 4], [1, 2]]


def test_the_first_of_repeated_entries_counts(file):
    result = load_vectors(file("a 1 2\nb 3 4\na 5 6\n"), ["a", "b", "a"])
    assert result.vectors.tolist() == [[1, 2], [3, 4], [1, 2]]
    assert result.num_duplicates == 1


def test_lower_case_is_a_fallback(file):
    path = file("the 1 2\nparis 3 4\nThe 5 6\n")
    vocabulary = ["The", "Paris", "the", "PARIS"]
    result = load_vectors(path, vocabulary, lowercase_fallback=True)
    assert result.vectors.tolist() == [[5, 6], [3, 4], [1, 2], [3, 4]]
    assert result.num_lowercased == 2
    assert load_vectors(path, vocabulary).missing == ["Paris", "PARIS"]


def test_nothing_found_is_a_result(file):
    result = load_vectors(file(GLOVE), ["q"])
    assert result.vectors.tolist() == [[0, 0, 0]]
    assert result.coverage == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("a\n", "line 1: got 'a'"),
        ("a b c\n", "line 1: got 'a b c'"),
        ("a 1 2\nb 1\n", "line 2: got 1 numbers after 'b', expected 2"),
        ("a 1 2\nb 1 2 3\n", "line 1: got 2 numbers after 'a', expected 3"),
        ("a 1 2\nb 1 2\nb 1\n", "line 3: got 1 numbers after 'b', expected 2"),
        ("2 3\na 1 2 3\nb 1 2\n", "line 3: got 2 numbers"),
        ("a 1 2\nb 1 x\n", "line 2: could not convert"),
        ("a 1 2\nb 1 nan\n", "line 2: got infinite or NaN"),
    ],
)
def test_bad_text_is_named_by_its_line(file, text, message):
    with pytest.raises(ValueError, match=message):
        load_vectors(file(text), ["a", "b"])


def test_damaged_gzip(file, tmp_path):
    path = file(GLOVE * 100, "vectors.gz")
    for content in (b"plain", path.read_bytes()[:-10], path.read_bytes()[:40] + bytes(40)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="no readable gzip file"):
            load_vectors(path, ["a"])
    with pytest.raises(FileNotFoundError, match="nothing"):
        load_vectors(tmp_path / "nothing", ["a"])


def test_vocabulary_is_checked(file):
    for vocabulary in ("the", {"the"}, ["the", 3]):
        with pytest.raises(TypeError, match="vocabulary: got"):
            load_vectors(file(GLOVE), vocabulary)


def test_real_vectors(data_dir):
    vocabulary = ["<pad>", "the", "dog", "skateboard"]
    glove = load_vectors(data_dir / "glove" / "glove.6B.50d.subset.txt.gz", vocabulary)
    assert glove.vectors.shape == (4, 50)
    assert glove.missing[0] == "<pad>"
    coco = load_vectors(data_dir / "glove" / "glove.coco-val2014-notest.w15.d300.npz", vocabulary)
    assert coco.vectors.shape == (4, 300)
    assert coco.missing == ["<pad>"]
    assert coco.counts[1] > coco.counts[2] > 1000


NUMBERS = st.floats(-100, 100, width=32).filter(lambda number: number == 0 or abs(number) > 1e-6)
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=" \t\n\r\0"), min_size=1, max_size=9)
PHRASES = st.lists(WORDS | st.sampled_from(["66", "2008", "1.5", "-3"]), min_size=1, max_size=3).map(" ".join)


def binary(vectors, end=b"\n"):
    dim = len(next(iter(vectors.values())))
    entries = [word.encode() + b" " + np.array(row, dtype="<f4").tobytes() + end for word, row in vectors.items()]
    return f"{len(vectors)} {dim}\n".encode() + b"".join(entries)


@pytest.mark.slow
@given(
    data=st.data(), writing=writings(), name=names(), kind=st.sampled_from(["header", "glove", "tabs", "bin", "npz"])
)
@settings(deadline=None, max_examples=300)
def test_every_token_is_found_in_every_format(data, writing, name, kind):
    dim = data.draw(st.integers(4, 6) if kind == "bin" else st.integers(1, 5))  # few bytes may look like text
    tokens = data.draw(st.lists(PHRASES if kind == "header" else WORDS, min_size=1, max_size=8, unique=True))
    # Without a header the dimension is that of most lines; one numeric word with one number is a header.
    tokens = [token for token in tokens if not token.startswith(MARK)]
    tokens = ["the", "of", *(t for t in tokens if t not in ("the", "of"))]
    vectors = {token: data.draw(st.lists(NUMBERS, min_size=dim, max_size=dim)) for token in tokens}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        if kind == "npz":
            path = path.with_name("x.npz")
            np.savez(path, words=np.array(tokens), vectors=np.array(list(vectors.values()), dtype=np.float32))
        elif kind == "bin":
            path.write_bytes(binary(vectors, data.draw(st.sampled_from([b"\n", b""]))))
        else:
            space = "\t" if kind == "tabs" else " "
            lines = [space.join([token, *map(repr, row)]) for token, row in vectors.items()]
            writing.write(path, [f"{len(tokens)} {dim}"] * (kind == "header") + lines)
        found = load_vectors(path, [*tokens, "not there"])
    assert found.missing == ["not there"]
    expected = np.array([*vectors.values(), [0] * dim], dtype=np.float32)
    assert np.array_equal(found.vectors.numpy(), expected)


def test_tokens_that_end_in_numbers(file):
    text = "route 66 1 2\nthe 3 4\nin 2008 5 6\nof 7 8\n"
    vocabulary = ["route 66", "in 2008", "of"]
    for content in (text, f"4 2\n{text}", f"{MARK}4 2\r\n" + text.replace("\n", "\r\n"), text.replace(" ", "\t")):
        assert load_vectors(file(content), vocabulary).vectors.tolist() == [[1, 2], [5, 6], [7, 8]]
    assert load_vectors(file("1 2\nroute 66 1 2\n"), vocabulary).vectors[0].tolist() == [1, 2]


def test_tabs_and_double_spaces_separate_numbers(file):
    for text in (
        "a\t1 2 3\nb\t4 5 6\n",
        "a\t1\t2\t3\nb\t4\t5\t6\t\n",
        "a  1  2   3\nb 4 5 6\n",
        "2 3\na  1 2  3\nb 4 5 6",
    ):
        assert load_vectors(file(text), ["a", "b"]).vectors.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_odd_tokens(file):
    text = "the 1 2\n 3 4\n\u00a0 5 6\n\u2003\u3000 7 8\n\x85 9 10\n"
    found = load_vectors(file(text), ["", "\u00a0", "\u2003\u3000", "\x85"])
    assert found.vectors.tolist() == [[3, 4], [5, 6], [7, 8], [9, 10]]


def test_a_mark_loses_no_word(file):
    for text in ("the 1 2\na 3 4\n", "2 2\nthe 1 2\na 3 4\n"):
        for name in ("v.txt", "v.gz"):
            assert load_vectors(file(MARK + text, name), ["the", "a"]).missing == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("400000 300\na 1 2\nb 3 4\n", "line 2: got 2 numbers after 'a', expected 300"),
        ("400000 2\na 1 2\nb 3 4\n", "the header says 400000 words, the file has 2: is it cut off"),
        ("1 2\na 1 2\nb 3 4\n", "the header says 1 words, the file has 2"),
        ("2 2\na 1 2 3\nb 3 4 5\n", "the header says 2 numbers for a word, the lines have 3"),
        ("2 4\na 1 2 3\nb 3 4 5\n", "line 2: got 3 numbers after 'a', expected 4"),
        ("2 0\na\nb\n", "the header says 2 words of 0 numbers"),
        ("0 2\n", "the header says 0 words"),
        ("1 99999999999999\na 1\n", "the header says 1 words of 99999999999999 numbers"),
        ("3 2\n", "the header says 3 words, the file has 0"),
        ("2 2\nnew york 1\nb 1 2\n", "line 2: got 1 numbers after 'new', expected 2"),
        ("a 1 2\nb 1e999 2\n", "line 2: got infinite or NaN"),
        ("a 1 2\nb 1e39 2\n", "line 2: got infinite or NaN"),
        ("a 1 2\nb 1_0 2\n", "line 2: .*1 numbers|could not convert"),
        ("a 0,5 2\nb 0,1 2\n", "line 1: "),
        ("a 1 2\nb\0 1 2\n", "line 2: got a NUL byte"),
    ],
)
def test_what_does_not_fit_is_refused(file, text, message):
    with pytest.raises(ValueError, match=rf"^path: .*vectors\.txt: .*{message}"):
        load_vectors(file(text), ["a", "b"])


def test_numeric_words_with_one_number_are_no_header(file):
    assert load_vectors(file("5 3\n6 2\n7 1\n"), ["5", "7"]).vectors.tolist() == [[3], [1]]
    assert load_vectors(file("2 1\n6 2\n7 1\n"), ["6", "7", "2"]).vectors.tolist() == [[2], [1], [0]]


def test_word2vec_binary(tmp_path):
    vectors = {"the": [0.1, -2.0, 3e-5], "in_2008": [1, 2, 3], "größe": [4, 5, 6]}
    for content in (binary(vectors), binary(vectors, b""), gzip.compress(binary(vectors))):
        (tmp_path / "v.bin").write_bytes(content)
        found = load_vectors(tmp_path / "v.bin", ["größe", "the", "in_2008", "x"])
        assert found.vectors.tolist() == [[4, 5, 6], np.float32([0.1, -2.0, 3e-5]).tolist(), [1, 2, 3], [0, 0, 0]]
    whole = binary(vectors, b"")
    for cut in range(len(b"3 3\n") + 1, len(whole)):
        (tmp_path / "v.bin").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"v\.bin: (the header says|line|it is)"):
            load_vectors(tmp_path / "v.bin", ["the"])
    (tmp_path / "v.bin").write_bytes(whole + b"more")
    with pytest.raises(ValueError, match="something follows them"):
        load_vectors(tmp_path / "v.bin", ["the"])
    (tmp_path / "v.bin").write_bytes(binary({"the": [1, np.nan], "a": [1, 2]}))
    with pytest.raises(ValueError, match="word 1: got infinite or NaN values for 'the'"):
        load_vectors(tmp_path / "v.bin", ["the"])


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_phrase_in_word2vecs_binary_format_is_no_word(tmp_path, end):
    vectors = np.random.default_rng(1).normal(size=(5, 50)).astype(np.float32)
    named = dict(zip(["the", "cat", "new york", "a", "dog"], vectors.tolist(), strict=True))
    (tmp_path / "v.bin").write_bytes(binary(named, end))
    with pytest.raises(ValueError, match="the format has no words with spaces"):
        load_vectors(tmp_path / "v.bin", ["the", "new", "a"])


def test_large_binary_files_are_read_in_pieces(tmp_path):
    rows = np.arange(5000 * 300, dtype=np.float32).reshape(5000, 300)
    (tmp_path / "v.bin").write_bytes(binary({f"w{number}": row for number, row in enumerate(rows)}))
    found = load_vectors(tmp_path / "v.bin", ["w0", "w2500", "w4999"])
    assert np.array_equal(found.vectors.numpy(), rows[[0, 2500, 4999]])


def test_zip_archives(tmp_path):
    def archive(**members):
        with zipfile.ZipFile(tmp_path / "g.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in members.items():
                file.writestr(name if "/" in name else name.replace("_", "."), content)
        return tmp_path / "g.zip"

    one = "the 1 2\na 3 4\n"
    assert load_vectors(archive(v_txt=one, **{"__MACOSX/v": "junk"}), ["a"]).vectors.tolist() == [[3, 4]]
    assert load_vectors(archive(v_bin=binary({"a": [3, 4]})), ["a"]).vectors.tolist() == [[3, 4]]
    path = archive(v50_txt=one, v100_txt="the 5 6 7\n")
    with pytest.raises(
        ValueError, match=r"g\.zip: the archive holds 2 files, expected one, .* \(v50\.txt, v100\.txt\)"
    ):
        load_vectors(path, ["a"])
    assert load_vectors(f"{path}:v100.txt", ["the"]).vectors.tolist() == [[5, 6, 7]]
    with pytest.raises(ValueError, match=r"there is no 'v\.txt' in it, but v50\.txt, v100\.txt"):
        load_vectors(f"{path}:v.txt", ["the"])
    with pytest.raises(ValueError, match="the archive holds 0 files"):
        load_vectors(archive(), ["a"])
    content = archive(v_txt=one * 50).read_bytes()
    for damaged in (content[:-30], content[:40] + b"xxxx" + content[44:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"g\.zip: no readable zip archive"):
            load_vectors(path, ["a"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xba\x16\x4f\x2f\x0c\0\0\0" + bytes(99), r"it is a model of fastText \(\.bin\): give the \.vec file"),
        (b"\x93NUMPY\x01\0" + bytes(99), "a single array of numpy's"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
        (b"\x80\x04\x95" + bytes(99), "a pickle"),
        (bz2.compress(b"a 1 2\n"), "packed with bzip2"),
        ("a 1 2\n".encode("utf-16"), "UTF-16 text"),
        (bytes(range(256)), "line 1: got a NUL byte|UTF"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, content, message):
    for name, data in (("v.bin", content), ("v.bin.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"^path: .*{name}: .*({message})"):
            load_vectors(tmp_path / name, ["a"])


def test_vectors_come_through_a_pipe(tmp_path):
    np.savez(tmp_path / "v.npz", words=np.array(["a"]), vectors=np.ones((1, 2), np.float32))
    for content in (b"a 1 1\n", gzip.compress(b"a 1 1\n"), binary({"a": [1, 1]}), (tmp_path / "v.npz").read_bytes()):
        os.mkfifo(tmp_path / "pipe")
        writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
        writer.start()
        assert load_vectors(tmp_path / "pipe", ["a"]).vectors.tolist() == [[1, 1]]
        writer.join()
        (tmp_path / "pipe").unlink()


def test_what_a_file_holds_may_be_in_any_writing(tmp_path):
    for end, mark, last, packed in itertools.product(("\n", "\r\n", "\r"), *[(False, True)] * 3):
        path = Writing(end, mark, last, packed).write(tmp_path / "v", ["2 2", "the 1 2", "route 66 3 4"])
        assert load_vectors(path, ["the", "route 66"]).vectors.tolist() == [[1, 2], [3, 4]]
