"""A real browser for tests of pages; they are skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (1400, 420)


@contextmanager
def chromium() -> Iterator[Any]:
    """The system's Chromium, or the one that playwright has installed."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra [docs])")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except api.Error as error:
            pytest.skip(f"no Chromium that can be started: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


def open_page(browser: Any, file: Path, width: int) -> Any:
    """Open a file in a window of its own, which notes what the console complains of and what is fetched."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.complaints = []
    page.on("console", lambda said: page.complaints.append(said.text) if said.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or page.complaints.append(asked.url))
    visit(page, file)
    return page


def visit(page: Any, file: Path) -> None:
    """Go to a file; fail on complaints, and on a page that is too wide."""
    page.goto(file.as_uri())
    check_page(page)


def check_page(page: Any) -> None:
    """Fail on complaints up to now, and on a page that is too wide."""
    assert page.complaints == [], page.url
    root = "document.documentElement"
    assert page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth"), f"{page.url} is too wide"
