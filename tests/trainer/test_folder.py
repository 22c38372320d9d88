from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smoothloss_trainer.errors import RecipeError
from smoothloss_trainer.folder import LOCK, Folder, check_part_name, folder_of_runs

HOLD = """if True:
    import sys
    from smoothloss_trainer.folder import Folder
    with Folder(sys.argv[1], "run").lock():
        print("held", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Return a marked folder with a file of ours and one of the user."""
    folder = Folder(tmp_path / "out", "run")
    folder.claim(["ours"], colour="red")
    for name in ("ours", "theirs"):
        (folder.path / name).write_text(name)
    return folder


def listing(folder: Folder) -> list[str]:
    return sorted(path.name for path in folder.path.iterdir())


def test_names_are_listed_before_they_are_written(folder: Folder) -> None:
    folder.claim(["later", "ours"], colour="blue")
    assert folder.names() == ["ours", "later"]
    assert folder.facts()["colour"] == "blue"
    assert Folder(folder.path, "run").facts() == folder.facts()


def test_only_what_is_listed_is_removed(folder: Folder) -> None:
    folder.claim(["deep/er/ours", "never written"])
    (folder.path / "deep" / "er").mkdir(parents=True)
    (folder.path / "deep" / "er" / "ours").touch()
    (folder.path / "deep" / "theirs").touch()
    folder.clear()
    folder.clear()  # as after a kill
    assert listing(folder) == ["deep", "run.json", "theirs"]
    assert [path.name for path in (folder.path / "deep").iterdir()] == ["theirs"]
    folder.renew(["new"])
    assert folder.names() == ["new"]


def test_a_link_is_removed_and_not_what_it_leads_to(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("kept")
    (folder.path / "ours").unlink()
    (folder.path / "ours").symlink_to(tmp_path / "elsewhere")
    folder.clear()
    assert not (folder.path / "ours").is_symlink()
    assert (tmp_path / "elsewhere").read_text() == "kept"


def test_files_and_names_go_together(folder: Folder) -> None:
    folder.remove(["ours", "theirs", "none"])
    assert folder.names() == []
    assert listing(folder) == ["run.json", "theirs"]


@pytest.mark.parametrize("kind", ["file", "folder", "dangling"])
def test_a_name_that_is_taken_is_refused_before_anything_is_removed(folder: Folder, kind: str) -> None:
    path = folder.path / "taken"
    {"file": path.touch, "folder": path.mkdir, "dangling": lambda: path.symlink_to("nowhere")}[kind]()
    for claim in (folder.claim, folder.renew):
        with pytest.raises(RecipeError, match=r"taken is not of smoothloss and in the way .*: move it away"):
            claim(["new", "taken"])
    assert (folder.names(), (folder.path / "ours").read_text()) == (["ours"], "ours")


def test_two_parts_cannot_share_a_file(folder: Folder) -> None:
    with pytest.raises(RecipeError, match="two parts of the data would both be written to same"):
        folder.claim(["same", "same"])


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"3", b"\xff\xfe", b"{}", b"[" * 100_000, b'{"format": "smoothloss run"}',
        json.dumps({"format": "smoothloss runs", "version": 1, "files": []}).encode(),
        json.dumps({"format": "smoothloss run", "version": "1", "files": []}).encode(),
        *(
            json.dumps({"format": "smoothloss run", "version": 1, "files": names}).encode()
            for names in (None, "ours", [1], ["../theirs"], ["/etc/passwd"], ["a/../../b"], [""], ["."], ["a\0"])
        ),
    ],
)  # fmt: skip
def test_a_marker_that_is_none_is_one_line_and_nothing_is_removed(folder: Folder, content: bytes) -> None:
    folder.marker.write_bytes(content)
    for ask in (folder.facts, folder.names, folder.clear, lambda: folder.claim([]), lambda: folder.renew([])):
        with pytest.raises(RecipeError, match=r"run\.json is damaged.*choose another --out") as caught:
            ask()
        assert "\n" not in str(caught.value)
    assert listing(folder) == ["ours", "run.json", "theirs"]


def test_a_marker_of_a_later_version_is_left_alone(folder: Folder) -> None:
    folder.marker.write_text(json.dumps({**folder.facts(), "version": 2}))
    with pytest.raises(RecipeError, match=r"has version 2 and this smoothloss knows 1"):
        folder.clear()


def test_what_counts_as_empty(tmp_path: Path) -> None:
    assert Folder(tmp_path / "none", "run").is_empty()
    folder = Folder(tmp_path, "run")
    (tmp_path / LOCK).touch()
    (tmp_path / ".smoothloss-0123456789abcdef.tmp").touch()
    assert folder.is_empty()
    (tmp_path / ".gitignore").touch()
    assert not folder.is_empty()
    with pytest.raises(RecipeError, match="is a file"):
        Folder(tmp_path / ".gitignore", "run").is_empty()


def test_one_process_holds_a_folder_until_it_ends_or_is_killed(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "deep" / "out", "run")
    command = [sys.executable, "-c", HOLD, str(folder.path)]
    for end in (lambda process: process.stdin.close(), lambda process: process.send_signal(signal.SIGKILL)):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"held\n"
            with pytest.raises(RecipeError, match="is in use, another process is writing there"), folder.lock():
                pass
            end(process)
            process.wait()
    with folder.lock():
        folder.claim(["x"])
    assert listing(folder) == ["run.json"]


def test_of_many_that_begin_at_once_one_goes_on(tmp_path: Path) -> None:
    script = HOLD.replace("print(", "open(sys.argv[2], 'a').write('x'); print(")
    command = [sys.executable, "-c", script, str(tmp_path / "new"), str(tmp_path / "count")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]  # type: ignore[call-overload]
    held = [process.stdout.readline() for process in processes]
    for process in processes:
        process.communicate()
    assert sorted(held) == [b"", b"", b"held\n"]
    assert (tmp_path / "count").read_text() == "x"
    # The folder goes with the process that made it, which may be one that then found it in use.
    assert not list(tmp_path.glob("new/*")), "nothing was written"


def test_a_lock_leaves_no_folder_that_it_made(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    for path in ("a/b/c", "kept"):
        with pytest.raises(ZeroDivisionError), Folder(tmp_path / path, "run").lock():
            assert (tmp_path / path / LOCK).exists()
            _ = 1 / 0
    assert os.listdir(tmp_path) == ["kept"]  # noqa: PTH208
    assert not any((tmp_path / "kept").iterdir())


@pytest.mark.parametrize("path", ["file", "file/below", "dangling", "nul\0"])
def test_what_can_be_no_folder_is_one_line(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    with (
        pytest.raises(RecipeError, match="can be no folder: choose another --out"),
        Folder(tmp_path / path, "run").lock(),
    ):
        pass


def test_a_folder_of_runs_is_of_one_command(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").touch()
    with pytest.raises(RecipeError, match="is not empty and not of `smoothloss demo`"):
        folder_of_runs(tmp_path / "out", "demo", []).__enter__()
    for _ in range(2):
        with folder_of_runs(tmp_path / "new", "demo", ["report.html"]):
            (tmp_path / "new" / "report.html").touch()
    with pytest.raises(RecipeError, match="is not empty and not of `smoothloss reproduce`"):
        folder_of_runs(tmp_path / "new", "reproduce", ["report.html"]).__enter__()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", "a\0b", "a\nb", "x" * 201, "\udc80", "a\\b"])
def test_names_that_can_be_no_file_s(name: Any) -> None:
    with pytest.raises(RecipeError, match=r"data\.test must be part of a file's name"):
        check_part_name(name, "data.test")


@pytest.mark.parametrize("name", ["test", "test 2016", "..x", "-", "é" * 100, "测试"])
def test_names_that_can_be(name: str) -> None:
    check_part_name(name, "data.test")
