from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

WORK = """
from smoothloss_trainer.cli.streams import prepare_streams
prepare_streams()
import os, sys
sys.stderr.write("x" * 100_000 + "\\n")
with open(sys.argv[1], "w") as file:
    file.write(f"{file.fileno() > 2}\\n")
    try:
        os.write(2, b"from afar\\n")
    except OSError:
        file.write("not written\\n")
    try:
        os.write(1, b"on\\n")
    except OSError as error:
        file.write(f"{error.strerror}\\n")
"""


def run(code: str, *words: str, closed: Sequence[int] = (), **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run code in a process that starts with these descriptors closed."""
    close: Callable[[], None] = lambda: [os.close(number) for number in closed] and None  # noqa: E731
    return subprocess.run([sys.executable, "-c", code, *words], preexec_fn=close, timeout=60, check=False, **options)


def nobody_reads() -> int:
    """The end of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("closed", [(), (0,), (2,), (1, 2), (0, 1, 2)])
def test_no_file_gets_the_number_of_a_stream_that_is_closed(tmp_path: Path, closed: tuple[int, ...]) -> None:
    assert run(WORK, str(tmp_path / "file"), closed=closed).returncode == 0
    lines = (tmp_path / "file").read_text().splitlines()
    assert lines == [
        "True",
        *(["not written"] if 2 in closed else []),
        *(["Bad file descriptor"] if 1 in closed else []),
    ]


def test_nothing_ends_when_the_standard_error_takes_nothing(tmp_path: Path) -> None:
    for stderr in (nobody_reads(), os.open("/dev/full", os.O_WRONLY)) if Path("/dev/full").exists() else ():
        ended = run(WORK, str(tmp_path / "file"), stderr=stderr)
        os.close(stderr)
        assert ended.returncode == 0
        assert (tmp_path / "file").read_text() == "True\nnot written\n"


def test_the_standard_error_is_written_whole(tmp_path: Path) -> None:
    ended = run(WORK, str(tmp_path / "file"), stderr=subprocess.PIPE)
    assert ended.stderr == b"x" * 100_000 + b"\nfrom afar\n"


def test_text_that_the_output_s_encoding_lacks_becomes_its_escape() -> None:
    code = "from smoothloss_trainer.cli.streams import prepare_streams\nprepare_streams()\n"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = run(f"{code}print('fährt \\udc80')", stdout=subprocess.PIPE, env=environment)
    assert ended.stdout == b"f\\xe4hrt \\udc80\n"


def test_help_and_errors_where_streams_are_closed() -> None:
    code = "import sys\nfrom smoothloss_trainer.cli import main\nsys.exit(main())"
    for words, status in ((["--help"], 0), (["evaluat"], 2), (["evaluate", "/nowhere"], 2)):
        assert run(code, *words, closed=(1, 2)).returncode == status
