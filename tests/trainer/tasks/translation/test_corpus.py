from __future__ import annotations

import gzip
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from drawn_files import Writing, lines, names, writings
from hypothesis import given
from hypothesis import settings as drawing

from smoothloss_trainer.errors import RecipeError, RunError
from smoothloss_trainer.tasks.translation.corpus import ParallelText, hold_out, read_corpus, read_part
from smoothloss_trainer.tasks.translation.data import TranslationData

TATOEBA = "Hi.\tHallo!\nHi.\tGrüß Gott!\tCC-BY\nRun!\tLauf!\nWow!\tHallo!\n"


def settings(folder: Path) -> TranslationData:
    return TranslationData(train=f"{folder}/train", validation=f"{folder}/val", source="de", target="en")


def write_parts(folder: Path, **parts: str) -> None:
    for name, text in parts.items():
        (folder / f"{name}.de").write_text(text.upper(), encoding="utf-8")
        (folder / f"{name}.en").write_text(text, encoding="utf-8")


def tsv(folder: Path, text: str = TATOEBA) -> TranslationData:
    (folder / "pairs.txt").write_text(text, encoding="utf-8")
    parts = {"validation": 1, "test": 1}
    return TranslationData(train=f"{folder}/pairs.txt", format="tsv", source="en", target="de", held_out=parts)


def test_plain_and_gzipped_files_are_read_line_by_line(tmp_path: Path) -> None:
    # A line separator other than the line feed is part of a line.
    text = "ein\u2028hund .\nc\nzwei  katzen\n"
    write_parts(tmp_path, train="a b\n", val=text)
    (tmp_path / "zipped.de.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "zipped.en").write_text("x\ny\nz\n")
    corpus = read_corpus(replace(settings(tmp_path), test={"test": f"{tmp_path}/zipped"}))
    expected = [["ein", "hund", "."], ["c"], ["zwei", "katzen"]]
    assert corpus.parts["validation"].target == corpus.parts["test"].source == expected
    assert list(corpus.parts) == ["validation", "test", "train"]
    assert corpus.raw == {}


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.train: no such file: .*train\.de"):
        read_part(f"{tmp_path}/train", settings(tmp_path), "data.train")
    (tmp_path / "train.de").write_text("a\nb\n")
    (tmp_path / "train.en").write_text("a\n")
    with pytest.raises(RecipeError, match=r"data\.train: train has 2 lines of de and 1 of en"):
        read_part(f"{tmp_path}/train", settings(tmp_path), "data.train")
    (tmp_path / "train.en").write_bytes(b"\xff\xfe\n")
    with pytest.raises(RecipeError, match=r"cannot read .*train\.en"):
        read_part(f"{tmp_path}/train", settings(tmp_path), "data.train")
    (tmp_path / "x.de.gz").write_bytes(b"nonsense")
    with pytest.raises(RecipeError, match=r"cannot read .*x\.de\.gz"):
        read_part(f"{tmp_path}/x", settings(tmp_path), "data.train")


def test_columns_go_by_language(tmp_path: Path) -> None:
    data = tsv(tmp_path)
    pairs = read_part(data.train, data, "data.train").pairs
    assert pairs[1] == ("Hi.", "Grüß Gott!")
    assert read_part(data.train, replace(data, source="de", target="en"), "data.train").pairs[1] == (
        "Grüß Gott!",
        "Hi.",
    )
    with pytest.raises(RecipeError, match=r"data\.source must be one of data\.columns, en, de, got 'fr'"):
        read_part(data.train, replace(data, source="fr"), "data.train")
    with pytest.raises(
        RecipeError, match=r"data\.train: pairs\.txt: 1 of 2 pairs .* line 2: it has 1 column, expected 2"
    ):
        read_part(data.train, tsv(tmp_path, "a\tb\nc\n"), "data.train")


def test_held_out_parts_share_no_source_sentence_with_training(tmp_path: Path) -> None:
    pairs = [(f"s{number % 70}", f"t{number}") for number in range(100)]
    data = replace(settings(tmp_path), held_out={"validation": 7, "test": 0.1})
    parts = hold_out(pairs, data)
    assert {name: len(part) for name, part in parts.items()} == {"train": 56, "validation": 7, "test": 7}
    assert sorted(pair for part in parts.values() for pair in part) == sorted(pairs[:70]), "the first of each source"
    assert parts["train"] == sorted(parts["train"], key=pairs.index)
    assert parts == hold_out(pairs, data)
    assert parts["test"] != hold_out(pairs, replace(data, split_seed=2))["test"]


def test_sentences_are_the_same_whatever_their_case_once_that_is_lowered(tmp_path: Path) -> None:
    pairs = [("Hi", "a"), ("hi ", "b"), ("x", "c"), ("y", "d")]
    data = replace(settings(tmp_path), held_out={"validation": 1})
    assert len(hold_out(pairs, data)["train"]) == 3
    assert len(hold_out(pairs, replace(data, lowercase=True))["train"]) == 2


@pytest.mark.parametrize("size", [0, -3, 2.5, 0.001])
def test_sizes_that_make_no_part_are_refused(tmp_path: Path, size: float) -> None:
    pairs = [(str(number), "t") for number in range(50)]
    with pytest.raises(RecipeError, match=rf"data\.held_out\.test must be .* got {size}"):
        hold_out(pairs, replace(settings(tmp_path), held_out={"test": size}))


def test_something_is_left_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="test takes 1 of 1 pairs"):
        read_corpus(tsv(tmp_path, "a\tb\nc\td\n"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": None}, r"data\.validation is needed"),
        ({"held_out": {"validation": 1}}, "validation has files of its own"),
        ({"held_out": {"train": 1}}, r"data\.held_out: train is the name"),
        ({"test": {"validation": "x"}}, r"data\.test: validation is the name"),
    ],
)
def test_every_part_has_one_origin(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    write_parts(tmp_path, train="a\nb\n", val="c\n")
    with pytest.raises(RecipeError, match=message):
        read_corpus(replace(settings(tmp_path), **changes))


def test_raw_lines_come_from_files(tmp_path: Path) -> None:
    write_parts(tmp_path, train="a\nb\n", val="c .\nd .\n")
    (tmp_path / "val.raw").write_text("C.\nD.\n")
    data = replace(settings(tmp_path), raw={"validation": f"{tmp_path}/val.raw"})
    assert read_corpus(data).raw == {"validation": ["C.", "D."]}
    (tmp_path / "val.raw").write_text("C.\n")
    with pytest.raises(RecipeError, match=r"data\.raw\.validation has 1 lines and the split 2"):
        read_corpus(data)
    with pytest.raises(RecipeError, match=r"data\.raw: dev must be one of validation"):
        read_corpus(replace(data, raw={"dev": f"{tmp_path}/val.raw"}))


def test_raw_text_becomes_words_and_is_kept(tmp_path: Path) -> None:
    pytest.importorskip("sacremoses")
    data = replace(tsv(tmp_path), tokenize="moses", lowercase=True)
    corpus = read_corpus(data)
    assert {len(part) for part in corpus.parts.values()} == {1}
    words = {part.source[0][0]: part.target[0] for part in corpus.parts.values()}
    assert words == {"hi": ["hallo", "!"], "run": ["lauf", "!"], "wow": ["hallo", "!"]}
    said = {split: " ".join(corpus.parts[split].target[0]).replace(" !", "!") for split in corpus.raw}
    assert corpus.raw == {split: [text.capitalize()] for split, text in said.items()}
    assert corpus.raw.keys() == {"validation", "test"}


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    with pytest.raises(RunError, match=r"data\.tokenize needs the package sacremoses: pip install .*\[translate\]"):
        read_corpus(replace(tsv(tmp_path), tokenize="moses"))


@pytest.mark.parametrize("kind", ["lines", "tsv"])
def test_unusable_pairs_are_counted_and_left_out_on_request(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = [b"a", b"b", b"", b"d\xff", b"e", b"f"]
    target = [b"A", b" ", b"C", b"D", b"E\0", b"F"]
    if kind == "lines":
        (tmp_path / "x.de").write_bytes(b"\n".join(source))
        (tmp_path / "x.en").write_bytes(b"\n".join(target) + b"\n")
        data = TranslationData(f"{tmp_path}/x", "de", "en", validation=f"{tmp_path}/x")
    else:
        rows = [b"\t".join(pair) for pair in zip(source, target, strict=True)]
        (tmp_path / "x").write_bytes(b"\r\n".join([*rows, b"alone"]))
        data = TranslationData(f"{tmp_path}/x", "de", "en", f"{tmp_path}/x", format="tsv", columns=["de", "en"])
    total = len(source) + (kind == "tsv")
    first = f"{total - 2} of {total} pairs cannot be used, the first is line 2: its target is empty"
    with pytest.raises(
        RecipeError, match=rf"^data\.validation: x: {first}; data\.skip_unusable: true leaves such out$"
    ):
        read_corpus(data)
    (tmp_path / "raw").write_text("".join(f"raw {number}\n" for number in range(total)))
    data = replace(data, skip_unusable=True, raw={"validation": f"{tmp_path}/raw"})
    with caplog.at_level("WARNING"):
        corpus = read_corpus(data)
    assert corpus.parts["train"].source == [["a"], ["f"]]
    assert corpus.parts["validation"].target == [["A"], ["F"]]
    assert corpus.parts["validation"].numbers == [0, 5], "the numbers of their lines"
    assert corpus.raw == {"validation": ["raw 0", "raw 5"]}
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [f"data.{part}: x: {first}; they are left out" for part in ("validation", "train")]


def test_why_a_pair_cannot_be_used(tmp_path: Path) -> None:
    data = settings(tmp_path)
    (tmp_path / "x.en").write_text("A\nB\n")
    for content, why in (
        (b"a\n\xffb\n", r"byte 1 \(0xff\) is no UTF-8: invalid start byte"),
        (b"a\nb\0\n", "byte 2 is NUL, expected UTF-8 text"),
        (b"a\n\r\n", "its source is empty"),
        (b"a\n\xed\xa0\x80\n", r"byte 1 \(0xed\) is no UTF-8"),
    ):
        (tmp_path / "x.de").write_bytes(content)
        with pytest.raises(RecipeError, match=f"1 of 2 pairs cannot be used, the first is line 2: {why}"):
            read_part(f"{tmp_path}/x", data, "data.train")
    (tmp_path / "x.de").write_bytes(b"\xff\n\xff\n")
    with pytest.raises(RecipeError, match="2 of 2 pairs"):
        read_part(f"{tmp_path}/x", replace(data, skip_unusable=True), "data.train")


def test_pairs_that_are_too_long_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_parts(tmp_path, train="a\nb b b\nc\n", val="c\n")
    with caplog.at_level("WARNING"):
        short = read_corpus(settings(tmp_path)).parts["train"].short_pairs(2)
    assert short.target == [["a"], ["c"]] and short.numbers == [0, 2]
    assert "1 of 3 pairs have more than 2 words on a side" in caplog.text


@given(content=lines(empty=False), writing=writings(), other=writings(), name=names())
@drawing(deadline=None, max_examples=60)
def test_pairs_are_the_same_however_their_files_are_written(
    content: list[str], writing: Writing, other: Writing, name: str
) -> None:
    source = [f"a {line}" for line in content]
    target = [f"{line} b" for line in content]
    with tempfile.TemporaryDirectory() as folder:
        stem = f"{folder}/{name[:40]}"
        writing.write(Path(f"{stem}.de"), source)
        other.write(Path(f"{stem}.en"), target)
        data = TranslationData(stem, "de", "en", validation=stem)
        assert read_part(stem, data, "data.train").pairs == list(zip(source, target, strict=True))
        corpus = read_corpus(data).parts["train"]
    assert corpus.source == [line.split() for line in source]
    assert all("\ufeff" not in words[0] for words in corpus.source)


@given(content=lines(empty=False), writing=writings(), name=names())
@drawing(deadline=None, max_examples=60)
def test_columns_are_the_same_however_the_file_is_written(content: list[str], writing: Writing, name: str) -> None:
    pairs = [(f"a {line}".replace("\t", " "), f"b {number}") for number, line in enumerate(content)]
    with tempfile.TemporaryDirectory() as folder:
        path = writing.write(Path(folder) / name, [f"{source}\t{target}\tCC-BY" for source, target in pairs])
        data = TranslationData(str(path), "en", "de", format="tsv")
        assert read_part(str(path), data, "data.train").pairs == pairs


def test_an_error_alone_says_that_no_pair_is_short(caplog: pytest.LogCaptureFixture) -> None:
    long = ParallelText([["a", "b"]], [["c", "d"]], [0])
    assert len(long.short_pairs(1)) == 0 and not caplog.records


def test_a_line_that_names_the_columns_is_no_pair(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("EN\tde\na\tA\nen\tde\n")
    data = TranslationData(f"{tmp_path}/x", "de", "en", f"{tmp_path}/x", format="tsv", columns=["en", "de"])
    with pytest.raises(RecipeError, match="1 of 3 pairs cannot be used, the first is line 1: it names the columns"):
        read_part(f"{tmp_path}/x", data, "data.train")
    kept = read_part(f"{tmp_path}/x", replace(data, skip_unusable=True), "data.train")
    assert kept.pairs == [("A", "a"), ("de", "en")]
