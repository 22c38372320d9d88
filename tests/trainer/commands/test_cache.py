from __future__ import annotations

from pathlib import Path

import pytest

from smoothloss.distillation import TeacherCache
from smoothloss_trainer.cli import main

SOURCE = """
import torch

def source():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(30, 30, generator=generator)
    batches = torch.randint(0, 30, (3, 2, 5), generator=generator)
    return {"teacher": lambda ids: weight[ids], "batches": batches, "vocabulary_size": 30, "fingerprint": "text"}

def wrong():
    return {"teacher": None}

def broken():
    raise KeyError("nothing")

def breaking():
    return source() | {"teacher": lambda ids: 1 / 0}

number = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a module that has a teacher."""
    (tmp_path / "cached_teacher.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    return tmp_path


def test_caches_are_written_inspected_joined_and_copied(capsys: pytest.CaptureFixture[str]) -> None:
    for name, how in (("parts/a", ["--k", "4"]), ("parts/b", ["--k", "3"])):
        assert main(["cache", "write", "cached_teacher:source", "--out", name, *how]) == 0
        assert "sequences    6 in 1 shards" in capsys.readouterr().out
    assert main(["cache", "join", "parts", "a", "b"]) == 0
    assert main(["cache", "copy", "parts", "--out", "few", "--first", "5", "--count", "2"]) == 0
    capsys.readouterr()
    assert main(["cache", "inspect", "few", "--verify"]) == 0
    said = capsys.readouterr().out
    assert "state        complete, verified\n" in said and "sequences    2 in 1 shards" in said
    assert [teacher.indices.shape[1] for teacher in TeacherCache("few")] == [4, 3]


def test_draws(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "write", "cached_teacher:source", "--out", "c", "--draws", "12"]) == 0
    assert "counts of 12 draws" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("inspect nowhere", "path: no teacher cache at nowhere, which has no index.json"),
        ("write cached_teacher --out c --k 2", "MODULE:FUNCTION: got 'cached_teacher', expected such as"),
        ("write no_module_of_this_name:f --out c --k 2", "there is no module no_module_of_this_name in"),
        ("write cached_teacher:number --out c --k 2", "cached_teacher has no function number"),
        ("write cached_teacher:wrong --out c --k 2", "cached_teacher:wrong returned ['teacher'], expected a dict with"),
        ("write cached_teacher:source --out c", "k: got None for a teacher that returns logits"),
        ("write cached_teacher:source --out c --k 31", "k: got 31, expected between 1 and 30"),
        ("join . nowhere", "path: no teacher cache at nowhere"),
        ("join . ..", "parts: got .., expected a folder below"),
        ("copy nowhere --out c", "path: no teacher cache at nowhere"),
    ],
)
def test_mistakes_are_one_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", *words.split()]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("smoothloss: error: ") and message in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", "cached_teacher:broken raised KeyError: 'nothing'"),
        ("breaking", "cached_teacher:breaking's teacher raised ZeroDivisionError: division by zero"),
    ],
)
def test_errors_of_the_user_s_code_are_not_taken_for_ours(
    function: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cache", "write", f"cached_teacher:{function}", "--out", "c", "--k", "4"]) == 1
    assert capsys.readouterr().err == f"smoothloss: error: {message}\n"


def test_more_sequences_than_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cache", "write", "cached_teacher:source", "--out", "c", "--k", "4"]) == 0
    for words, message in (
        ("--first 7", "--first: got 7"),
        ("--first 6 --count 1", "--count: got 1, expected at most 0"),
    ):
        assert main(["cache", "copy", "c", "--out", "d", *words.split()]) == 2
        assert message in capsys.readouterr().err
    assert not Path("d").exists()
