from __future__ import annotations

import shlex
from typing import get_args

import pytest

import smoothloss
from smoothloss.rewards.bleu import Smoothing
from smoothloss_trainer.cli import main
from smoothloss_trainer.cli.parser import DESCRIPTION, SMOOTHINGS, build, parse


def words_of(example: str) -> list[str]:
    """Return what a shell makes of the last command of a pipe."""
    words = shlex.split(example)
    assert words.count("smoothloss") == 1
    return words[words.index("smoothloss") + 1 :]


def test_every_command_shows_examples_that_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    _, commands = build()
    for name, command in commands.items():
        assert command.examples
        with pytest.raises(SystemExit) as caught:
            main([name, "--help"])
        shown = capsys.readouterr().out
        assert caught.value.code == 0
        for example in command.examples:
            assert example in shown
            assert parse(words_of(example)).command == name == words_of(example)[0]


def test_the_overview_names_every_command() -> None:
    _, commands = build()
    lines = [line.strip() for line in DESCRIPTION.splitlines() if line.startswith("  ")]
    shown = {words_of(line.partition("   ")[0])[0] for line in lines}
    assert shown == set(commands)


def test_the_version_is_the_library_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert (caught.value.code, capsys.readouterr().out) == (0, f"smoothloss {smoothloss.__version__}\n")


def test_smoothings_are_the_library_s() -> None:
    assert get_args(Smoothing) == SMOOTHINGS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "a command is needed: recipes, train,"),
        ("trian x.yaml", "there is no command 'trian'; did you mean train?"),
        ("dance", "there is no command 'dance' ("),
        ("--vers", "there is no option --vers"),
        ("evaluate run --beam 3", "there is no option --beam"),
        ("evaluate run --beam-size 3", "there is no option --beam-size; did you mean --beam_size?"),
        ("evaluate run --bean_size=3", "there is no option --bean_size; did you mean --beam_size?"),
        ("table build v --vocabulary v --out t --neighbors 3", "did you mean --neighbours?"),
        ("table biuld", "invalid choice: 'biuld'"),
        ("report", "the following arguments are required: RUN"),
        ("average run more", "unexpected argument: 'more'"),
        ("average run --last 0", "--last: must be at least 1, got 0"),
        ("reproduce t --jobs 0", "--jobs: must be at least 1, got 0"),
        ("reproduce t --seeds -1", "--seeds: must be at least 0"),
        ("reproduce t --seeds 1e3", "--seeds: must be a whole number, got '1e3'"),
        ("table show t dog --vocabulary v --neighbours -1", "--neighbours: must be at least 1, got -1"),
        ("table build v --vocabulary v --out t --neighbours 0", "--neighbours: must be at least 1, got 0"),
        ("table build v --vocabulary v --out t --tau 0", "--tau: must be above 0, got 0"),
        ("table build v --vocabulary v --out t --tau nan", "--tau: must be above 0, got nan"),
        ("table build v --vocabulary v --out t --beta -1", "--beta: must be at least 0, got -1"),
        ("features f --out o.npy --batch_size 0", "--batch_size: must be at least 1, got 0"),
        ("features f --out o.npy --grid -1", "--grid: must be at least 0, got -1"),
        ("features f --out o.npy --size 0", "--size: must be at least 32, got 0"),
        ("evaluate r --n_best 0", "--n_best: must be at least 1, got 0"),
        ("evaluate r --top_p 1.5", "--top_p: must be above 0 and at most 1, got 1.5"),
        ("evaluate r --temperature inf", "--temperature: must be above 0, got inf"),
        ("translate r --batch_size 0", "--batch_size: must be at least 1, got 0"),
        ("translate r --max_input -3", "--max_input: must be at least 1, got -3"),
    ],
)
def test_a_wrong_word_is_one_line(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(line.split())
    said = capsys.readouterr()
    assert (caught.value.code, said.out) == (2, "")
    assert said.err.startswith("smoothloss: error: ") and message in said.err
    assert said.err.count("\n") == 1
