"""The playground in a browser: what it shows is what the library computes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import WIDTHS, check_page, chromium, open_page

from smoothloss import SimilarityTable, targets
from smoothloss.sampling import effective_sample_size, importance_weights
from smoothloss_trainer import report
from smoothloss_trainer.report.playground import Start, html, playground

from .conftest import MakeRun, Page, read

WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "a", "the", "dog", "puppy", "hound", "runs", "walks", "red", "blue"]
WORDS += ["</script>", "<!--", "&", "moon", "star", "of"]
COUNTS = [0.0, 0, 0, 0, 900, 700, 60, 5, 0, 40, 30, 20, 20, 3, 2, 1, 8, 9, 300]
SENTENCES = [["a", "dog", "runs"], ["the", "red", "dog", "runs", "of", "moon"], ["a", "puppy", "walks"]]


@pytest.fixture(scope="module")
def vectors() -> torch.Tensor:
    return torch.randn(len(WORDS), 6, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def piece(vectors: torch.Tensor) -> str:
    table = SimilarityTable.from_embeddings(vectors, k=4, tau=0.1, exclude=range(4))
    made = playground(WORDS, table, COUNTS, chosen=["dog"], sentences=SENTENCES, start=Start(0.12, 0.1, 5, 0.4))
    assert made is not None and made.choices[0] == (6, "dog")
    return html(made)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def page(browser: Any, piece: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("page") / "playground.html"
    file.write_text(f'<!doctype html><html lang="en"><meta charset="utf-8"><title>t</title><body>{piece}</body></html>')
    return open_page(browser, file, 420)


def shown(page: Any, table: str) -> list[list[str]]:
    return page.eval_on_selector_all(
        f"#pg-{table} tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.textContent.trim()))"
    )


def percent(mass: float) -> str:
    return f"{100 * mass:.2f} %" if mass == 0 or mass >= 0.00005 else "<0.01 %"


def press(page: Any, name: str, key: str, times: int) -> None:
    page.focus(f"#pg-{name}")
    for _ in range(times):
        page.keyboard.press(key)


@pytest.mark.parametrize("tail", ["uniform", "renormalize", "exact"])
def test_word_and_sliders_give_the_targets_of_the_library(page: Any, vectors: torch.Tensor, tail: str) -> None:
    for word, key in (("moon", "ArrowRight"), ("hound", "ArrowLeft")):  # hound was never seen
        page.select_option("#pg-word", label=word)
        page.select_option("#pg-tail", tail)
        for slider, times in (("tau", 3), ("beta", 4), ("kept", 2), ("alpha", 7)):
            press(page, slider, key, times)
        tau, beta, kept, alpha = (float(page.inner_text(f"#pg-{n}-value")) for n in ("tau", "beta", "kept", "alpha"))
        table = SimilarityTable.from_embeddings(
            vectors, k=int(kept), tau=tau, beta=beta, counts=COUNTS, tail=tail, exclude=range(4)
        )
        y = torch.tensor([WORDS.index(word)])
        target = targets.token(y, table, alpha).dense(len(WORDS))[0].double()
        even = (1 - alpha) * torch.nn.functional.one_hot(y, len(WORDS))[0] + alpha / len(WORDS)
        *rows, rest = shown(page, "target")
        assert rows[0][0] == word and len({row[0] for row in rows}) == len(rows) > 3
        for name, mass, smoothed in rows:
            token = WORDS.index(name)
            assert (name, mass, smoothed) == (name, percent(float(target[token])), percent(float(even[token])))
        others = [token for token in range(len(WORDS)) if WORDS[token] not in {row[0] for row in rows}]
        assert rest[0] == f"the other {len(others)} together"
        assert rest[1] == percent(float(target[others].sum()))
        assert rest[2] == percent(float(even[others].sum()))
        assert percent(float(table.kept_mass[y])) in page.inner_text("#pg-said")
    check_page(page)


def test_weights_of_the_samples_are_those_of_the_library(page: Any) -> None:
    content = json.loads(page.text_content(".pg-data"))
    for pool in ("the vocabulary", "similar words"):
        page.select_option("#pg-pool", pool)
        press(page, "sentence-tau", "ArrowRight", 1)
        draws = {str(draw["tau"]): draw for draw in content["sentence"]["pools"][pool]}
        draw = draws[page.inner_text("#pg-sentence-tau-value")]
        for reward, divide in (("", True), ("BLEU-4", True), ("ROUGE-L", False)):
            page.select_option("#pg-reward", reward)
            page.set_checked("#pg-divide", divide)
            press(page, "reward-tau", "ArrowLeft", 1)
            scores = torch.tensor([draw["rewards"][reward] if reward else draw["log_prob"]]).double().T
            log_prob = torch.tensor([draw["log_prob"]]).double().T
            tau = float(page.inner_text("#pg-reward-tau-value")) if reward else 1.0
            omega = importance_weights(scores, log_prob * divide, tau=tau)
            rows = shown(page, "samples")
            assert [row[3] for row in rows] == [percent(float(weight)) for weight in omega]
            assert f"{float(effective_sample_size(omega)):.2f} equal ones" in page.inner_text("#pg-sentence-said")
        words = [WORDS[token] for token in content["sentence"]["tokens"]]
        assert words == SENTENCES[1]
        for (text, distance, *_), tokens in zip(rows, draw["tokens"], strict=True):
            assert text == " ".join(WORDS[token] for token in tokens)
            assert int(distance) == sum(WORDS[token] != word for token, word in zip(tokens, words, strict=True))
    check_page(page)


def test_what_the_page_holds_is_sound_html_and_every_control_has_a_name(piece: str) -> None:
    page = Page(piece)
    ids = page.attributes("id")
    assert len(ids) == len(set(ids)) and set(page.attributes("for")) <= set(ids)
    controls = [found for tag, found in page.tags if tag in ("select", "input")]
    assert len(controls) == 11 and all(found["id"] in page.attributes("for") for found in controls)
    assert not re.search(r"https?:|//\w|@import|url\(|javascript:| on\w+=", piece)


def test_a_report_has_it_and_is_quiet_at_both_widths(browser: Any, make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run("plain"), make_run("smooth & co", table=True)]
    times = {"MLE": [0.010, 0.012, 0.011], "Seq, exact $5^2$": [0.022, 0.025]}
    report.write(runs, tmp_path / "r.html", step_times=times)
    assert "Play with the table" in read(tmp_path / "r.html").text
    for width in WIDTHS:
        page = open_page(browser, tmp_path / "r.html", width)
        assert page.is_visible("#pg-word") and len(shown(page, "target")) > 2 and len(shown(page, "samples")) == 8
        assert page.input_value("#pg-alpha") == "0.25"


def test_a_table_without_neighbours_or_too_large_is_left_out() -> None:
    vectors = torch.zeros(6, 3)
    assert playground(WORDS[:6], SimilarityTable.from_embeddings(vectors, k=2, tau=0.1)) is None
