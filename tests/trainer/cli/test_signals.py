"""Signals, as a shell and a scheduler send them, to commands that are processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from smoothloss_trainer.cli.signals import Signals, Stop

COMMAND = [sys.executable, "-c", "import sys; from smoothloss_trainer.cli import main; sys.exit(main())"]
PATIENCE = 120


def catches_sigterm(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process has a handler for SIGTERM, which Python itself has not."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    raise AssertionError("no SigCgt")


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait until something is so, while a process runs."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


STARTED: list[subprocess.Popen[bytes]] = []


def start(*words: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start a command."""
    STARTED.append(subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options))
    return STARTED[-1]


@pytest.fixture(autouse=True)
def processes() -> Iterator[None]:
    """Let signals reach what is started, also where a shell runs the tests in the background; leave nothing behind."""
    ignored = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    for process in STARTED:
        process.kill()
        process.communicate()
    STARTED.clear()


def end(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Return a process's status and the last line of what it said."""
    _, said = process.communicate(timeout=PATIENCE)
    text = said.decode().replace("\r", "\n")
    assert "Traceback" not in text and "Exception ignored" not in text
    return process.returncode, text.strip().split("\n")[-1]


@pytest.fixture
def recipe(tmp_path: Path, recipe_values: Callable[..., dict[str, Any]]) -> Path:
    """Return a recipe that trains for an hour."""
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe_values(training={"epochs": 10**6, "log_every": 1})))
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc, to know when handlers are there")
@pytest.mark.parametrize("delay", [0.0, 0.05, 0.3, 1.0])
def test_in_the_first_second_it_ends_in_one_line(tmp_path: Path, recipe: Path, delay: float) -> None:
    process = start("train", str(recipe), "--out", str(tmp_path / "run"))
    wait_until(lambda: catches_sigterm(process), process)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    assert end(process) == (130, "smoothloss: error: interrupted")


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_in_training_it_says_how_to_go_on(
    tmp_path: Path, recipe: Path, number: signal.Signals, status: int, word: str
) -> None:
    run = tmp_path / "run"
    process = start("train", str(recipe), "--out", str(run))
    wait_until((run / "metrics.jsonl").is_file, process)
    process.send_signal(number)
    assert end(process) == (status, f"smoothloss: error: {word}; --resume goes on from the last checkpoint")
    assert not [file for file in run.rglob("*") if file.suffix == ".tmp"]


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path, recipe: Path) -> None:
    run = tmp_path / "run"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start("train", str(recipe), "--out", str(run))
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_until((run / "metrics.jsonl").is_file, process)
    process.send_signal(signal.SIGHUP)
    lines = (run / "metrics.jsonl").read_text().count("\n")
    wait_until(lambda: (run / "metrics.jsonl").read_text().count("\n") > lines + 3, process)
    process.terminate()
    assert end(process)[0] == 143


@pytest.mark.parametrize(("out", "status"), [("/dev/full", 1), ("closed", 141)])
def test_output_that_nobody_takes(out: str, status: int) -> None:
    if out == "/dev/full" and not Path(out).exists():
        pytest.skip("needs /dev/full")
    if out == "closed":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(out, os.O_WRONLY)
    code = "from smoothloss_trainer.commands.output import say; run = lambda options: say('x')"
    code = f"import sys, types; m = types.ModuleType('m'); exec({code!r}, m.__dict__)\n"
    code += "sys.modules['smoothloss_trainer.commands.demo'] = m\nfrom smoothloss_trainer.cli import main\n"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}sys.exit(main())", "demo"], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    said = process.communicate(timeout=PATIENCE)[1].decode()
    assert process.returncode == status
    assert said == ("smoothloss: error: No space left on device\n" if status == 1 else "")


def test_a_stop_where_nothing_can_be_raised_comes_again() -> None:
    code = """
import os, signal
from smoothloss_trainer.cli.signals import Signals, Stop
class Odd:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
        sum(range(1000))
with Signals(alone=True) as signals:
    signals.begin_work()
    try:
        odd = Odd()
        del odd
        import time
        time.sleep(60)
    except Stop as stop:
        print(stop.number)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=PATIENCE, text=True)
    assert (done.stdout, done.stderr) == ("15\n", "")


def test_a_second_signal_at_once_does_not_end_the_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    with Signals(alone=False):
        with pytest.raises(Stop):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr("smoothloss_trainer.cli.signals.AT_ONCE", 0.0)
        with pytest.raises(Stop, match="2"):
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Signals(alone=False), pytest.raises(Stop) as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.line == "terminated"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
