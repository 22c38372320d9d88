from __future__ import annotations

from pathlib import Path

import pytest

from smoothloss_trainer import shipped
from smoothloss_trainer.cli import main
from smoothloss_trainer.recipe import read_yaml
from smoothloss_trainer.run_table import load_table


def test_the_names_are_those_of_the_files() -> None:
    names = shipped.names()
    assert "multi30k/mle" in names and "tables/multi30k" in names and names == sorted(names)
    for name in names:
        found = shipped.find(name)
        assert found.is_file() and found == shipped.find(f"{name}.yaml")
        assert shipped.summary(name), f"{name} does not say what it is"


def test_a_file_of_ones_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_yaml(Path("multi30k/mle"))["loss"]["name"] == "mle"
    (tmp_path / "multi30k").mkdir()
    (tmp_path / "multi30k" / "mle").write_text("task: mine")
    assert read_yaml(Path("multi30k/mle")) == {"task": "mine"}


def test_a_recipe_may_have_a_shipped_one_as_its_base(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: multi30k/tok\nname: mine")
    values = read_yaml(mine)
    assert values["name"] == "mine" and values["loss"]["name"] == "tok"


def test_a_table_of_ones_own_may_name_shipped_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_table(Path("tables/multi30k")).baseline == "mle"


@pytest.mark.parametrize("name", ["../multi30k/mle", "/multi30k/mle", "nothing", "multi30k", ""])
def test_what_is_no_name_stays_what_it_is(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shipped.find(name) == Path(name)


def test_the_command_lists_and_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == shipped.names()
    assert main(["recipes", "multi30k/mle"]) == 0
    assert capsys.readouterr().out == shipped.find("multi30k/mle").read_text()
    assert main(["recipes", "multi30k/mls"]) == 2
    assert capsys.readouterr().err.strip().endswith("did you mean multi30k/mle?")
    assert main(["train", "multi30k/mls"]) == 2
    assert "nor one of `smoothloss recipes`" in capsys.readouterr().err
