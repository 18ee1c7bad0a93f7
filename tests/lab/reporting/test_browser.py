"""The page in a real browser: nothing leaves it, everything on it works, and everybody can read it.

Driven by Playwright, with the Chromium of the system; faults are looked for by axe-core.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import chromium
from znorm import lab
from znorm.lab.evidence.pairs import REFERENCE

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-playwright")

pytestmark = pytest.mark.slow

RESULTS = Path(__file__).parents[3] / "docs" / "results"
METHODS = ("baseline", "gradient_clipping", "znorm")
SCHEMES = ("light", "dark")
WIDTHS = (1400, 390)
# An A4 page without its margins of a centimetre, in CSS pixels.
PAPER = 718


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium.launched() as one:
        yield one


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small comparison, trained here."""
    root = tmp_path_factory.mktemp("runs")
    settings = {"epochs": 3, "limit": 96, "device": "cpu", "set": {"receipt": True}}
    lab.compare(out=root, methods=METHODS, seeds=2, **settings)
    return root


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("masks")
    settings = {"task": "phantom", "epochs": 1, "limit": 24, "device": "cpu"}
    lab.compare(out=root, methods=("baseline", "znorm"), seeds=1, **settings)
    return root


@pytest.fixture(params=["runs", "masks", "controls", "reduced"])
def page_file(request: pytest.FixtureRequest) -> Path:
    """Pages of runs made here, and two that the repository holds."""
    if request.param in ("runs", "masks"):
        root: Path = request.getfixturevalue(request.param)
        return root / "report.html"
    return RESULTS / request.param / "report.html"


class Opened:
    """A page in a window of its own, and what was heard of it."""

    def __init__(self, browser: Any, file: Path, **settings: Any) -> None:
        window = {"viewport": {"width": 1400, "height": 1000}, **settings}
        self.context = browser.new_context(**window)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.goto(file.as_uri())

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


def open_all(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")


def means(page: Any, table: str, column: int) -> list[str]:
    """The means in a column of the first such table, from above, as the reader sees them."""
    script = """([table, column]) => [...document.querySelector(table).tBodies[0].rows]
      .filter((row) => row.checkVisibility() && !row.classList.contains('floor'))
      .map((row) => (row.cells[column].querySelector('.mean, .label') ?? row.cells[column])
        .textContent.trim())"""
    found: list[str] = page.evaluate(script, [table, column])
    return found


def number(text: str) -> float:
    return float(text.partition(" ±")[0].replace("−", "-"))


def test_nothing_leaves_the_page_and_nothing_complains(browser: Any, page_file: Path) -> None:
    with Opened(browser, page_file) as opened:
        open_all(opened.page)
        opened.page.mouse.wheel(0, 100_000)
        opened.page.wait_for_timeout(200)
        files = [url for url in opened.asked if not url.startswith(("data:", "blob:"))]
        assert files == [page_file.as_uri()]
        assert opened.said == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_no_fault(browser: Any, page_file: Path, scheme: str, width: int) -> None:
    window = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    with Opened(browser, page_file, **window) as opened:
        open_all(opened.page)
        found = axe.Axe().run(opened.page)
        assert found.violations_count == 0, found.generate_report()
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width


def test_axe_would_find_a_fault(browser: Any, runs: Path) -> None:
    with Opened(browser, runs / "report.html") as opened:
        opened.page.add_style_tag(content=".soft { color: #a0a0a0 !important; }")
        opened.page.evaluate(
            "document.querySelector('svg[role=img]').removeAttribute('aria-label')"
        )
        found = axe.Axe().run(opened.page).response["violations"]
        assert {"color-contrast", "svg-img-alt"} <= {one["id"] for one in found}


def test_every_link_leads_somewhere(browser: Any, page_file: Path) -> None:
    with Opened(browser, page_file) as opened:
        links = opened.page.evaluate(
            "[...document.querySelectorAll('a[href]')].map((one) => one.getAttribute('href'))"
        )
        assert len(links) > 10
        names = set(
            opened.page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
        )
        repeated = opened.page.evaluate(
            "[...document.querySelectorAll('[id]')].length - "
            "new Set([...document.querySelectorAll('[id]')].map((one) => one.id)).size"
        )
        assert repeated == 0
    for link in set(links):
        parts = urlsplit(link)
        assert (parts.scheme, parts.netloc) == ("", ""), link
        if parts.path:
            assert (page_file.parent / unquote(parts.path)).exists(), link
        if parts.fragment:
            assert parts.fragment in names, link


def test_every_number_of_a_method_leads_to_its_runs(browser: Any, page_file: Path) -> None:
    """A cell with a mean of runs holds links to them, or stands in a row that holds one."""
    script = """[...document.querySelectorAll('table:not(.paper, .workloads) tbody tr')]
      .filter((row) => /[0-9]/.test([...row.cells].slice(1).map((c) => c.textContent).join('')))
      .filter((row) => !row.querySelector('a[href]') && !row.closest('.scroll')?.querySelector('a'))
      .filter((row) => !row.closest('.pairs, .readout'))
      .map((row) => row.textContent.trim().slice(0, 60))"""
    with Opened(browser, page_file) as opened:
        assert opened.page.evaluate(script) == []


def test_a_table_sorts_by_pointer_and_by_keyboard(browser: Any, runs: Path) -> None:
    with Opened(browser, runs / "report.html") as opened:
        page = opened.page
        first = means(page, "table.headline", 0)
        assert first == ["Baseline", "Gradient clipping", "ZNorm"]
        head = page.locator("table.headline thead th").nth(1)
        button = head.get_by_role("button")
        button.click()
        rising = [number(text) for text in means(page, "table.headline", 1)]
        assert rising == sorted(rising)
        assert head.get_attribute("aria-sort") == "ascending"
        button.focus()
        page.keyboard.press("Enter")
        falling = [number(text) for text in means(page, "table.headline", 1)]
        assert falling == sorted(falling, reverse=True)
        assert head.get_attribute("aria-sort") == "descending"
        page.keyboard.press("Space")
        assert means(page, "table.headline", 0) == first
        assert head.get_attribute("aria-sort") is None
        # What is no number stands last, whichever way.
        other = page.locator("table.headline thead th").nth(2).get_by_role("button")
        for _ in range(2):
            other.click()
            assert means(page, "table.headline", 0)[-1] == "Baseline"
        last = "document.querySelector('table.headline tbody').lastElementChild.className"
        assert page.evaluate(last) == "floor"


def test_a_narrow_table_sorts_by_its_list(browser: Any, runs: Path) -> None:
    window = {"viewport": {"width": 390, "height": 900}}
    with Opened(browser, runs / "report.html", **window) as opened:
        choice = opened.page.locator(".tools:has(+ table.headline) select")
        assert choice.is_visible()
        choice.select_option(label="Test accuracy, %, falling")
        falling = [number(text) for text in means(opened.page, "table.headline", 1)]
        assert falling == sorted(falling, reverse=True)


def test_rows_are_found_by_a_word(browser: Any) -> None:
    with Opened(browser, RESULTS / "controls" / "report.html") as opened:
        page = opened.page
        tools = page.locator(".tools:has(+ table.headline)").first
        tools.get_by_label("Find").fill("clip")
        assert means(page, "table.headline", 0) == ["Gradient clipping"]
        assert "of 10 rows" in tools.get_by_role("status").inner_text()
        tools.get_by_label("Find").fill("no such method")
        assert means(page, "table.headline", 0) == []
        tools.get_by_label("Find").fill("")
        assert len(means(page, "table.headline", 0)) == 9


def test_a_method_is_switched_off_and_on(browser: Any, runs: Path) -> None:
    shown = """(key) => [...document.querySelectorAll(`main [data-method="${key}"]`)]
      .filter((one) => one.tagName !== 'LABEL' && !one.closest('.readout'))
      .map((one) => getComputedStyle(one).display !== 'none')"""
    with Opened(browser, runs / "report.html") as opened:
        page = opened.page
        boxes = page.get_by_label("ZNorm", exact=True)
        assert boxes.count() >= 2
        before = page.evaluate(shown, "m2")
        assert len(before) > 8
        assert all(before)
        boxes.first.uncheck()
        assert not any(page.evaluate(shown, "m2"))
        assert all(page.evaluate(shown, "m0"))
        assert not boxes.last.is_checked()  # all legends of a section say the same
        assert means(page, "table.headline", 0) == ["Baseline", "Gradient clipping"]
        boxes.last.check()
        assert all(page.evaluate(shown, "m2"))


def of_events(root: Path, method: str, epoch: int) -> list[float]:
    """The train losses of a method's runs at an epoch."""
    found = []
    for events in sorted(root.glob(f"*/*/{method}__*/seed-*/events.jsonl")):
        for line in events.read_text().splitlines():
            event = json.loads(line)
            if event.get("epoch") == epoch:
                found.append(event["train_loss"])
    return found


def test_values_under_the_pointer_are_those_of_the_runs(browser: Any, runs: Path) -> None:
    with Opened(browser, runs / "report.html") as opened:
        page = opened.page
        panel = page.locator(".panel:has(svg[aria-label='Train loss by epoch'])")
        svg, readout = panel.locator("svg"), panel.locator(".readout")
        assert not readout.is_visible()
        svg.scroll_into_view_if_needed()
        box = svg.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.55, box["y"] + box["height"] / 2)
        assert readout.is_visible()
        text = readout.inner_text()
        assert "epoch 2" in text
        values = of_events(runs, REFERENCE, 2)
        assert len(set(values)) == 2
        mean = f"{statistics.fmean(values):#.4g}"
        assert f"{mean} ({min(values):#.4g} to {max(values):#.4g})" in text
        page.mouse.move(2, 2)
        assert not readout.is_visible()
        slider = panel.get_by_role("slider")
        slider.focus()
        page.keyboard.press("Home")
        said = slider.get_attribute("aria-valuetext")
        first = statistics.fmean(of_events(runs, "znorm", 1))
        assert said.startswith("epoch 1: Baseline ")
        assert f"ZNorm {first:#.4g}" in said
        assert readout.is_visible()
        page.keyboard.press("Escape")
        assert not readout.is_visible()


def test_texts_are_copied_and_saved(browser: Any, runs: Path) -> None:
    with Opened(browser, runs / "report.html") as opened:
        page = opened.page
        opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
        block = page.locator("details.copies").first
        block.locator("summary").click()
        pre = block.locator("pre").last
        block.get_by_role("button", name="Copy").last.click()
        block.get_by_role("button", name="Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == pre.text_content()
        with page.expect_download() as waiting:
            block.get_by_role("button", name="Save").last.click()
        assert waiting.value.suggested_filename == "runs-1-scores.csv"
        content = Path(waiting.value.path()).read_text()
    lines = list(csv.DictReader(io.StringIO(content)))
    kept = [json.loads(path.read_text()) for path in runs.glob("*/*/*/seed-*/result.json")]
    own = sorted(float(line["test_accuracy"]) for line in lines)
    assert own == sorted(one["metrics"]["test_accuracy"] for one in kept)


def test_without_scripts_all_numbers_are_there(browser: Any, page_file: Path) -> None:
    with Opened(browser, page_file, java_script_enabled=False) as opened:
        page = opened.page
        assert page.locator("button, input, select").count() == 0
        rows = page.locator("table:not(.readout table) tbody tr")
        assert rows.count() > 3
        assert page.locator("svg[role=img]").count() >= 2
        assert opened.said == []


def test_the_keyboard_reaches_the_results_first(browser: Any, runs: Path) -> None:
    with Opened(browser, runs / "report.html") as opened:
        opened.page.keyboard.press("Tab")
        skip = opened.page.locator(":focus")
        assert skip.inner_text() == "Skip to the results"
        assert skip.bounding_box()["x"] >= 0
        opened.page.keyboard.press("Enter")
        assert opened.page.evaluate("location.hash") == "#main"


def test_on_paper_nothing_is_cut_off(browser: Any, page_file: Path) -> None:
    outside = """[...document.querySelectorAll('main *')]
      .filter((one) => !one.closest('svg svg, details:not([open]), .confusions')
        && one.checkVisibility() && one.getBoundingClientRect().right > innerWidth + 1)
      .map((one) => one.outerHTML.slice(0, 100))"""
    window = {"viewport": {"width": PAPER, "height": 1000}}
    with Opened(browser, page_file, **window) as opened:
        page = opened.page
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate(outside) == []
        ink = page.evaluate("getComputedStyle(document.body).color")
        assert ink == "rgb(28, 30, 33)"  # on white paper, whatever the screen is like
        for control in (".slider", ".tools", "details.copies", ".skip"):
            assert not page.locator(control).first.is_visible()
        assert page.pdf(format="A4").startswith(b"%PDF")
