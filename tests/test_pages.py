"""The pages that people read: what they show as Python runs, and what they link to is there."""

from __future__ import annotations

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOSTS = ("lightning", "transformers", "trl")  # of the adapters; the rest of a page does without them
MADE = ROOT / "docs" / "made"  # by the site's build
WRITTEN = [page for page in sorted((ROOT / "docs").rglob("*.md")) if MADE not in page.parents]
PAGES = [*sorted(ROOT.glob("*.md")), *WRITTEN]
IN_ONE_PROCESS = [page for page in PAGES if page.name != "many_devices.md"]  # tests/docs/test_many_devices.py runs it


def _blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Return the fenced blocks of a language, with the number of the line on which each begins."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match.group(1)) for match in found]


@pytest.mark.filterwarnings("ignore:::accelerate", "ignore:::lightning", "ignore:::transformers", "ignore:::trl")
@pytest.mark.parametrize(
    "page", [page for page in IN_ONE_PROCESS if _blocks(page, "python")], ids=lambda page: page.name
)
def test_python_blocks_run_one_after_the_other(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    missing: set[str] = set()
    for line, code in _blocks(page, "python"):
        imports = r"(import|from) (smoothloss\.integrations\.)?"
        absent = {name for name in HOSTS if re.search(rf"{imports}{name}\b", code) and not find_spec(name)}
        missing |= absent
        if not absent:
            exec(compile("\n" * line + code, str(page), "exec"), names)
    _train_written_recipes(page)
    if missing:
        pytest.skip(f"the other blocks run; not installed: {', '.join(sorted(missing))}")


def _train_written_recipes(page: Path) -> None:
    """Train the recipes that the page's blocks have written, as its commands say."""
    for words in (words for place, words in _commands() if place.startswith(f"{page.name}:")):
        if words[0] == "train" and Path(words[1]).is_file():
            cli = pytest.importorskip("smoothloss_trainer.cli")
            assert cli.main([*words, "--device", "cpu"]) == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    relative = [link for link in links if "://" not in link]
    missing = [link for link in relative if not (page.parent / link).exists()]
    assert not missing


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def _commands() -> list[tuple[str, list[str]]]:
    """Return the calls of `smoothloss` on all pages, as words, with where they stand."""
    calls = []
    for page in PAGES:
        for line, code in _blocks(page, "sh"):
            for number, text in enumerate(code.splitlines(), line + 1):
                _, found, words = (" " + text).partition(" smoothloss ")
                if found and "python -m" not in text:
                    calls.append((f"{page.name}:{number}", shlex.split(words, comments=True)))
    return calls


@pytest.mark.parametrize("words", [pytest.param(words, id=place) for place, words in _commands()])
def test_commands_and_their_options_exist(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    cli = pytest.importorskip("smoothloss_trainer.cli")
    command = [word for word in words[:2] if word.isalpha()][: 2 if words[0] in ("table", "cache") else 1]
    recipe = [word for word in words[1:2] if words[0] == "train" and not word.endswith(".yaml")]
    for call in (command, [*command, *recipe]):  # a recipe has keys of its own
        try:
            status = cli.main([*call, "--help"])
        except SystemExit as end:  # argparse's own help
            status = end.code
        assert not status
    text = capsys.readouterr().out
    for option in (word.split("=")[0] for word in words if word.startswith("--") and word != "--help"):
        assert re.search(rf"{re.escape(option)}\b", text), f"{option} is no option of {command}"
