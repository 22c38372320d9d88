from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smoothloss._files import is_temporary, replacing, write_atomically, write_out


def write(path: str | Path, content: bytes) -> None:
    """Write as large arrays are written."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


both = pytest.mark.parametrize("writer", [write_atomically, write])
Writer = Callable[[str | Path, bytes], None]


@pytest.fixture
def umask() -> Iterator[None]:
    """Set a umask for the test."""
    before = os.umask(0o027)
    yield
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@both
@pytest.mark.parametrize("where", [(os, "fsync"), (Path, "replace"), (Path, "write_bytes")])
@pytest.mark.parametrize("existing", [True, False])
def test_a_failing_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Writer, where: tuple[object, str], existing: bool
) -> None:
    path = tmp_path / "c"
    if existing:
        write_atomically(path, b"old")
    monkeypatch.setattr(*where, full)
    with pytest.raises(OSError, match="No space left"):
        writer(path, b"new" * 1000)
    monkeypatch.undo()
    assert names(tmp_path) == ["c"] * existing
    assert not existing or path.read_bytes() == b"old"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "c"
    path.write_bytes(b"old")
    with pytest.raises(error), replacing(path) as temporary:
        assert is_temporary(temporary.name)
        temporary.write_bytes(b"half")
        raise error
    assert (names(tmp_path), path.read_bytes()) == (["c"], b"old")


@both
def test_a_new_file_gets_what_the_umask_leaves(tmp_path: Path, umask: None, writer: Writer) -> None:
    writer(tmp_path / "new", b"x")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


@both
@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755, 0o200, 0o2755, 0o6711])
def test_an_existing_file_keeps_its_mode_and_owner(tmp_path: Path, umask: None, writer: Writer, mode: int) -> None:
    path = tmp_path / "old"
    path.write_bytes(b"old")
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
    path.chmod(mode)
    before = path.stat()
    writer(path, b"new")
    after = path.stat()
    assert path.read_bytes() == b"new" if os.access(path, os.R_OK) else True
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


@both
@pytest.mark.parametrize("target", ["there", "new", "deep/there"])
@pytest.mark.parametrize("chain", [1, 2, 5])
def test_links_are_written_through(tmp_path: Path, writer: Writer, target: str, chain: int) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "links").mkdir()
    for name in ("there", "deep/there"):
        (tmp_path / name).write_bytes(b"old")
    to = f"../{target}"  # relative to the link's folder
    for number in range(chain):
        (tmp_path / "links" / str(number)).symlink_to(to)
        to = str(number)
    writer(tmp_path / "links" / to, b"new")
    assert (tmp_path / target).read_bytes() == b"new"
    assert all((tmp_path / "links" / str(number)).is_symlink() for number in range(chain))
    assert names(tmp_path / "links") == [str(number) for number in range(chain)]


@both
def test_a_hard_link_that_is_not_named_keeps_its_content(tmp_path: Path, writer: Writer) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "backup").hardlink_to(tmp_path / "file")
    writer(tmp_path / "file", b"new")
    assert ((tmp_path / "file").read_bytes(), (tmp_path / "backup").read_bytes()) == (b"new", b"old")


@both
def test_a_pipe_is_written_into(tmp_path: Path, writer: Writer) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        read: list[bytes] = []
        reader = threading.Thread(target=lambda read=read: read.append((tmp_path / "pipe").read_bytes()))
        reader.start()
        writer(tmp_path / name, b"x" * 100_000)
        reader.join(10)
        assert read == [b"x" * 100_000]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert names(tmp_path) == ["link", "pipe"]


@both
def test_devices_stay_devices(writer: Writer) -> None:
    writer("/dev/null", b"x")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        writer("/dev/full", b"x")


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "LINK"])
def test_the_standard_output_is_written_into_in_order(tmp_path: Path, name: str) -> None:
    """Also where it is a file, which must neither be replaced nor written from its beginning."""
    (tmp_path / "LINK").symlink_to("/dev/stdout")
    out = tmp_path / "out"
    script = f"""if True:
        from smoothloss._files import replacing, write_atomically
        print("before")
        write_atomically({name!r}, b"now\\n")
        with replacing({name!r}) as temporary:
            temporary.write_bytes(b"then\\n")
        print("after")
    """
    with out.open("wb") as file:
        file.write(b"first\n")
        file.flush()
        subprocess.run([sys.executable, "-c", script], cwd=tmp_path, stdout=file, check=True)
        file.write(b"last\n")
    assert out.read_bytes() == b"first\nbefore\nnow\nthen\nafter\nlast\n"


def test_a_dash_is_the_standard_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_out("-", b"\xff\n")
    write_out("file", b"x")
    assert capsysbinary.readouterr().out == b"\xff\n"
    assert names(tmp_path) == ["file"]


@both
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("folder", "Is a directory"),
        ("", "Is a directory"),
        ("no/such", "No such file or directory"),
        ("file/below", "Not a directory"),
        ("loop", "Too many levels of symbolic links"),
        ("nul\0", "null"),
        ("n" * 256, "File name too long"),
        ("sock", "No such device or address"),
    ],
)
def test_what_cannot_be_written_names_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Writer, path: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("other")
    (tmp_path / "other").symlink_to("loop")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("sock")
        before = names(tmp_path)
        with pytest.raises(OSError, match=message) as caught:
            writer(path, b"x")
    assert caught.value.filename == path
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == before


@both
def test_a_file_that_may_not_be_written_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writer: Writer
) -> None:
    (tmp_path / "kept").write_bytes(b"old")
    (tmp_path / "kept").chmod(0o444)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as for anybody but root
    with pytest.raises(PermissionError):
        writer(tmp_path / "kept", b"new")
    assert (names(tmp_path), (tmp_path / "kept").read_bytes()) == (["kept"], b"old")


@both
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(
    name=st.one_of(
        st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60),
        st.sampled_from(["-", "--out", " ", "\n", "n" * 255, "é" * 127, "'", "*", "~", "a\tb"]),
    )
)
def test_any_name_will_do(tmp_path: Path, writer: Writer, name: str) -> None:
    if name in (".", ".."):
        return
    folder = tmp_path / "names"
    folder.mkdir(exist_ok=True)
    writer(folder / name, name.encode())
    writer(folder / name, name.encode() * 2)
    assert [file.name for file in folder.iterdir()] == [name]
    assert (folder / name).read_bytes() == name.encode() * 2
    (folder / name).unlink()
