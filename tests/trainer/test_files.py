from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from smoothloss.trainer.errors import RecipeError
from smoothloss.trainer.files import existing_file, expand_path, read_json, read_lines


def test_paths_use_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_FOLDER", str(tmp_path))
    assert expand_path("${SOME_FOLDER}/a") == tmp_path / "a"
    monkeypatch.delenv("SOME_FOLDER")
    with pytest.raises(RecipeError, match="SOME_FOLDER"):
        expand_path("${SOME_FOLDER}/a")
    with pytest.raises(RecipeError, match=r"data\.train: no such file: /nope"):
        existing_file("/nope", "data.train")


def test_plain_and_gzipped_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\u2028\n\ntwo\n", encoding="utf-8", newline="\n")
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b'{"a": [1]}'))
    assert read_lines(tmp_path / "a.txt", "key") == ["one\u2028", "", "two"]
    assert read_json(str(tmp_path / "a.json.gz"), "key") == {"a": [1]}


@pytest.mark.parametrize("content", [b"{", b"\xff", b""])
def test_files_that_are_no_json_are_named(tmp_path: Path, content: bytes) -> None:
    for name, data in (("x.json", content), ("x.json.gz", gzip.compress(content)), ("y.json.gz", content)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(RecipeError, match=rf"^some\.key: cannot read .*{name}: ") as caught:
            read_json(str(tmp_path / name), "some.key")
        assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match=r"some\.key: no such file: .*gone\.json"):
        read_json(str(tmp_path / "gone.json"), "some.key")
