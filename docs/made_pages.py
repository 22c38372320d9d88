"""What the build makes beside the pages that are written: results, the playground, and pages from elsewhere.

Links are written as GitHub follows them. Where they lead to a file outside ``docs/``, `with_links` sends them to the
page or the figure that is made of it, and to the file itself, as a download, where there is none.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MADE = ROOT / "docs" / "made"
RESULTS = ROOT / "benchmarks" / "results"
# Pages that lie elsewhere because people look for them there.
ELSEWHERE = {
    "DESIGN.md": "design",
    "CONTRIBUTING.md": "contributing",
    "CHANGELOG.md": "changes",
    "SECURITY.md": "security",
    "benchmarks/NOTES.md": "notes",
    "examples/distillation/README.md": "distillation_example",
}
COMMANDS = {
    "distillation_coco": "python examples/distillation/distill.py",
    "host_time_cpu": "python -m benchmarks.host_time",
}
NAMES = {"cpu": "on CPUs", "h100": "on an H100", "avx512": "with AVX-512", "multi30k": "Multi30k", "coco": "COCO"}
SEED, SCENES = 2018, 1000  # as in the demo
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


def make(folder: Path = MADE) -> None:
    """Write all of it into the folder."""
    (folder / "results").mkdir(parents=True, exist_ok=True)
    for source, name in ELSEWHERE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        _write(folder / f"{name}.md", _moved(text, (ROOT / source).parent, folder))
    pages = [_result_page(path, folder / "results") for path in sorted(RESULTS.glob("*.json"))]
    _write(folder / "results.md", _results_index(pages))
    _write(folder / "playground.html", _playground())


def with_links(text: str, page: Path) -> str:
    """Return a page whose relative links lead where the site has what they name."""
    return LINK.sub(lambda found: f"{found[1]}{_target(found[2], page)}{found[3]}", text)


def _target(link: str, page: Path) -> str:
    if "://" in link or link.startswith("mailto:"):
        return link
    file = (page.parent / link).resolve()
    if ROOT / "docs" in file.parents or ROOT not in file.parents:
        return link
    name = file.relative_to(ROOT).as_posix()
    if name == "README.md":
        file = ROOT / "docs" / "index.md"
    elif name in ELSEWHERE:
        file = MADE / f"{ELSEWHERE[name]}.md"
    elif file.parent == RESULTS and file.suffix == ".json":
        file = MADE / "results" / f"{file.stem}.md"
    elif file.parent == RESULTS and file.suffix == ".png":
        file = MADE / "results" / file.name
    elif file == RESULTS:
        file = MADE / "results.md"
    return Path(os.path.relpath(file, page.parent)).as_posix()


def _moved(text: str, old: Path, new: Path) -> str:
    """Return a page's text with the relative links that are right in the folder that it is moved to."""

    def moved(found: re.Match[str]) -> str:
        link = found[2]
        if "://" not in link and not link.startswith("mailto:"):
            link = Path(os.path.relpath(old / link, new)).as_posix()
        return f"{found[1]}{link}{found[3]}"

    return LINK.sub(moved, text)


def _write(path: Path, text: str) -> None:
    """Write a file, unless it holds the text already: Sphinx reads again what is newer."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


# ---- results


def _results_index(pages: Sequence[tuple[str, str]]) -> str:
    rows = "\n".join(f"* [{title}](results/{name}.md)" for name, title in pages)
    names = "\n".join(f"results/{name}" for name, _ in pages)
    return f"""# Benchmarks, row by row

Made by the build from the files under `benchmarks/results`. Each page names the machine, the versions and the commit,
and most the command that measures it again. [Measurements](../measurements.md) says what the rows mean.

{rows}

```{{toctree}}
:hidden:

{names}
```
"""


def _result_page(path: Path, folder: Path) -> tuple[str, str]:
    """Write the page of a file of results; return its name and its title."""
    content: Any = json.loads(path.read_text(encoding="utf-8"))
    rows = content if isinstance(content, list) else content["rows"]
    described = content if isinstance(content, dict) else {}
    title = described.get("title") or _title(path.stem)
    command = _command(path.stem, rows)
    parts = [f"# {title}", *([f"```sh\n{command}\n```"] if command else [])]
    if "scores" in rows[0]:
        parts += _training(rows)
        parts += _curves(rows, folder / f"{path.stem}_curves.png")
    elif _is_suite(rows):
        parts += _timing(path, content, folder)
    else:
        flat = [{key: value for key, value in row.items() if not isinstance(value, dict | list)} for row in rows]
        parts.append(_table(flat))
    parts += _environment(described)
    _write(folder / f"{path.stem}.md", "\n\n".join(parts) + "\n")
    return path.stem, title


def _is_suite(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether these are what `python -m benchmarks` writes, which is drawn by shapes."""
    return {"suite", "shape"} <= rows[0].keys()


def _title(stem: str) -> str:
    words = [NAMES.get(word, word) for word in stem.split("_")]
    return " ".join([words[0][0].upper() + words[0][1:], *words[1:]])


def _command(stem: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """What makes the rows again: a suite, a table of runs, or what a script says of the file; else empty."""
    if _is_suite(rows):
        return f"python -m benchmarks --suite {' '.join(dict.fromkeys(row['suite'] for row in rows))}"
    if (ROOT / f"smoothloss_trainer/recipes/tables/{stem}.yaml").is_file():
        return f"smoothloss reproduce tables/{stem}"
    block = re.compile(rf"(?:^ *(?:smoothloss|python) .*\n)*^ *python .*results/{stem}\.json.*$", re.MULTILINE)
    scripts = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "examples").rglob("*.md")]
    found = next(filter(None, (block.search(path.read_text(encoding="utf-8")) for path in sorted(scripts))), None)
    return textwrap.dedent(found[0]) if found else COMMANDS.get(stem, "")


def _training(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of runs: the mean of the seeds, what the paper has, the difference to the baseline with its interval."""
    from smoothloss_trainer.report.tables import score_name

    table = []
    for row in rows:
        cells = {"loss": row["label"]}
        for name, values in row["scores"].items():
            cells[f"{score_name(name)}, mean of {len(values)}"] = f"{mean(values):.2f}"
        paper, difference = row["paper"], row["comparison"]
        cells |= {f"{score_name(name)}, paper": f"{value:.2f}" for name, value in paper.items()}
        if difference:
            cells["less the baseline"] = "{difference:+.2f} [{low:+.2f}, {high:+.2f}]".format(**difference)
        if row.get("step_ms"):
            cells["ms a step"] = f"{mean(row['step_ms']):.0f}"
        table.append(cells)
    return [_table(table)]


def _curves(rows: Sequence[Mapping[str, Any]], figure: Path) -> list[str]:
    """The learning curves, where the runs have them."""
    from benchmarks import curves

    return [f"![Validation by epoch]({figure.name})"] if curves.draw(rows, figure) else []


def _timing(path: Path, content: Mapping[str, Any], folder: Path) -> list[str]:
    """The figures of a suite, drawn here, each above its rows."""
    from benchmarks import plots
    from benchmarks.__main__ import MORE_COLUMNS

    parts = []
    for name, rows in plots.figures(content["rows"]).items():
        figure = folder / f"{path.stem}_{name}.png"
        if not figure.exists() or figure.stat().st_mtime < path.stat().st_mtime:
            plots.draw(rows, content["environment"]["device"], figure)
        shown = {"what": "what", "ms": "ms", "ms_p20": "20 %", "ms_p80": "80 %"} | MORE_COLUMNS
        table = [{shown[key]: row[key] for key in shown if row.get(key) is not None} for row in rows]
        parts += [f"## {name.replace('_', ' ')}", f"![Time of each row]({figure.name})", _table(table)]
    left_out = [row for row in content["rows"] if "ms" not in row]
    shapes: dict[tuple[str, str], dict[str, None]] = {}
    for row in left_out:
        found = shapes.setdefault((row["what"], row.get("not_run", "")), {})
        found[f"{row['shape']} {row['dtype']}"] = None
    texts = [f"{what}, {', '.join(found)}: {reason}" for (what, reason), found in sorted(shapes.items())]
    return [*parts, "## Not run", "\n".join(f"* {_cell(text)}" for text in texts)] if texts else parts


def _environment(described: Mapping[str, Any]) -> list[str]:
    found = described.get("environments") or [described.get("environment")]
    found = [each for each in (found.values() if isinstance(found, dict) else found) if each]
    flat = [{key: _shown(value) for key, value in each.items() if value is not None} for each in found]
    different = [each for number, each in enumerate(flat) if each not in flat[:number]]
    lists = ["\n".join(f"* {key}: {_cell(value)}" for key, value in each.items()) for each in different]
    return ["## Where it was measured", "\n\nand\n\n".join(lists)] if lists else []


def _shown(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in value.items() if each is not None)
    return value


def _table(rows: Iterable[Mapping[str, Any]]) -> str:
    """A table with a column for each key of any row, in the order in which they appear."""
    rows = list(rows)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    numbers = [all(isinstance(row.get(key), int | float | None) for row in rows) for key in keys]
    lines = [keys, ["--:" if number else "---" for number in numbers]]
    lines += [[_cell(row.get(key, "")) for key in keys] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(value: Any) -> str:
    text = "" if value is None else _rounded(value) if isinstance(value, float) else str(value)
    return re.sub(r"([|*_`<\[$])", r"\\\1", " ".join(text.split()))


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


# ---- the playground


def _playground() -> str:
    """The words of the demo's captions, with GloVe vectors of these captions, and what five people said of a scene."""
    from smoothloss import SimilarityTable
    from smoothloss.embeddings import train_glove
    from smoothloss_trainer.demo.grammar import make_captions
    from smoothloss_trainer.demo.run import WORDS
    from smoothloss_trainer.demo.scenes import make_scene
    from smoothloss_trainer.report.playground import html, playground
    from smoothloss_trainer.vocabulary import SPECIAL_TOKENS, Vocabulary

    captions = (make_captions(make_scene(SEED, number), SEED, number) for number in range(SCENES))
    said = [[text.split() for text in texts] for texts in captions]
    vocabulary = Vocabulary.build(sentence for sentences in said for sentence in sentences)
    # All captions of a scene are one text: in it words that say the same meet.
    texts = ([word for sentence in sentences for word in sentence] for sentences in said)
    vectors = train_glove(texts, vocabulary.words, dim=50, window=60).vectors
    table = SimilarityTable.from_embeddings(vectors, k=16, tau=0.12, exclude=SPECIAL_TOKENS)
    shown = playground(vocabulary.words, table, vocabulary.counts, chosen=WORDS, sentences=said[0])
    assert shown is not None
    return str(html(shown))
