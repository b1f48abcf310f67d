"""What all pages have in common: small, drawn by the JavaScript they carry, readable by keyboard, ear and eye."""

import base64
import gzip
import itertools
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs_version

from orchestrator.reports import figure_style
from orchestrator.reports.diff_page import write_diff_page
from orchestrator.reports.html_page import plotly_script
from orchestrator.reports.run_page import write_report
from orchestrator.reports.search.page import render_body, render_page, write_search_report
from orchestrator.reports.search.snapshot import read_search
from orchestrator.reports.study_page import write_study_page
from tests import searches
from tests.browser import browser_tab
from tests.orchestrator.reports.test_run_page import recipe, run_records
from tests.orchestrator.reports.test_study_figures import outcome
from tests.pages import Page

LARGEST = 1_500_000  # bytes of any page
CARTESIAN = {"scatter", "bar", "heatmap"}  # of what the bundle draws, what pages have
SERVER_PAGE = Path(__file__).parents[3] / "orchestrator" / "serving" / "templates" / "page.html"
KINDS = ("run", "run of several tags", "search", "live search", "study", "differences", "server")
BACKGROUNDS = {"light": "#ffffff", "dark": "#12161d"}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of each kind."""
    folder = tmp_path_factory.mktemp("pages")
    files = {kind: folder / f"{kind.replace(' ', '-')}.html" for kind in KINDS}
    write_report(run_records(), recipe("single"), run_id="demo-1", uri="/runs/demo-1", out=files["run"])
    several = files["run of several tags"]
    write_report(run_records(labels="multi"), recipe("multi"), run_id="demo-2", uri="/runs/demo-2", out=several)
    searches.write_finished_search(str(folder / "search"), scheduler="none", second="macs")
    search = read_search(str(folder / "search"))
    write_search_report(search, files["search"])
    files["live search"].write_text(render_page(search, body=render_body(search), poll_s=5.0, stamp="1"))
    write_study_page(outcome(), files["study"])
    write_diff_page(differences(), files["differences"])
    files["server"].write_bytes(SERVER_PAGE.read_bytes())
    return files


def differences() -> dict[str, Any]:
    """What `diff_runs` finds, in small."""
    score = {"model": "cnn", "part": "test", "metric": "accuracy"}
    rows = [{"value": value, "interval": None} for value in (0.5, 0.6)]
    facts = {"status": ["done", "done"], "steps": [100, 200]}
    compared = {"run": "b", "model": "cnn", "metric": "accuracy", "difference": 0.1, "interval": [-0.1, 0.3]}
    found = {"runs": ["a", "b"], "facts": facts, "recipe": {"train.lr": ["0.1", "0.2"]}, "equal": 200}
    return found | {"scores": [score | {"runs": rows}], "compared": [compared], "not_compared": {}}


def unpacked(script: str) -> str:
    return gzip.decompress(base64.b64decode(script)).decode()


def test_the_bundle_is_of_the_version_that_the_figures_are_for() -> None:
    assert f"plotly.js (cartesian - minified) v{get_plotlyjs_version()}" in unpacked(plotly_script())[:200]


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_small_and_has_figures_that_the_bundle_draws(pages: dict[str, Path], kind: str) -> None:
    assert pages[kind].stat().st_size < LARGEST
    figures = Page(pages[kind].read_text()).figures
    assert bool(figures) == (kind not in ("differences", "server"))
    assert {trace.get("type", "scatter") for figure in figures.values() for trace in figure["data"]} <= CARTESIAN


class Outline(HTMLParser):
    """What a reader who does not see a page is told of it: start tags in order, and the names of things."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open_tables: list[set[str]] = []
        self.tables: list[set[str]] = []  # of each table, what it holds
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "table":
            self.open_tables.append(set())
        elif self.open_tables:
            self.open_tables[-1].add(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.tables.append(self.open_tables.pop())

    def of(self, *tags: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_can_be_read_by_ear_and_keyboard(pages: dict[str, Path], kind: str) -> None:
    text = pages[kind].read_text()
    outline = Outline(text)
    assert outline.of("html") == [{"lang": "en"}]
    assert re.search(r"<title>[^<]{5,}</title>", text)
    assert len(outline.of("main")) == 1
    levels = [int(tag[1]) for tag, _ in outline.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all("caption" in held for held in outline.tables)
    assert all(attributes.get("scope") in ("col", "row") for attributes in outline.of("th"))
    names = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(set(names)) == len(names)
    images = [attributes for _, attributes in outline.elements if attributes.get("role") == "img"]
    assert len(images) >= len(Page(text).figures)
    assert all(len(attributes["aria-label"]) > 3 for attributes in images)
    links = {attributes["href"][1:] for attributes in outline.of("a") if attributes.get("href", "").startswith("#")}
    assert links <= set(names)
    assert "main" in links or not outline.of("nav")  # past the list of sections
    assert not [attributes for _, attributes in outline.elements if "onclick" in attributes]
    for _, attributes in outline.elements:
        if "wide" in attributes.get("class", "").split() and "tabindex" in attributes:
            assert attributes["role"] == "region"
            assert attributes.get("aria-label") or attributes["aria-labelledby"] in names


def test_a_figure_is_told_in_a_sentence(pages: dict[str, Path]) -> None:
    labels = {own.get("id"): own.get("aria-label") for own in Outline(pages["run"].read_text()).of("div")}
    assert re.fullmatch(r"Figure over step: training: \d+ blocks; teaching: \d+ blocks\.", labels["schedule"] or "")
    assert "a matrix of 5 rows by 5 columns" in (labels["matrix-cnn"] or "")
    assert re.search(r"training loss, loss \(nats\) from [\d.]+ to [\d.]+;", labels["curves-cnn"] or "")


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours (WCAG 2.2)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_known_colours() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_colours_of_figures_can_be_told_from_light_and_dark_pages() -> None:
    lines = [*figure_style.PALETTE, figure_style.GREEN, figure_style.AMBER, figure_style.RED, figure_style.BROWN]
    for background in BACKGROUNDS.values():
        assert min(contrast(colour, background) for colour in lines) >= 3
    blocks = [colour for colour in lines if colour != figure_style.BROWN]  # which is for lines
    assert min(contrast(colour, figure_style.BLOCK_TEXT["color"]) for colour in blocks) >= 4.5
    dark = figure_style.IN_DARK
    for cell in (figure_style.LOW_CELL, figure_style.HIGH_CELL):
        assert contrast(cell, figure_style.CELL_TEXT) >= 4.5
        assert contrast(dark[cell], dark[figure_style.CELL_TEXT]) >= 4.5
    for shade in figure_style.SHADES:
        assert contrast(shade, BACKGROUNDS["light"]) >= 3
        assert contrast(dark[shade], BACKGROUNDS["dark"]) >= 3


@pytest.mark.parametrize("kind", ["run", "search", "study", "differences", "server"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_of_pages_have_contrast(pages: dict[str, Path], kind: str, scheme: str) -> None:
    """Of every pair of text and background that the page's styles combine."""
    rules = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", pages[kind].read_text().split("@media")[0]))
    dark = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", pages[kind].read_text().split("@media")[1]))
    assert dark.keys() == rules.keys()
    colours = rules if scheme == "light" else dark
    texts = [name for name in colours if name not in ("background", "card", "grid")]
    assert {"text", "muted"} <= set(texts)
    for text in texts:
        for behind in ("background", "card"):
            assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)


@pytest.mark.parametrize("kind", ["run", "search", "study"])
def test_a_browser_draws_it_in_the_colours_that_the_reader_prefers(
    pages: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    """Without a network, at the width of a phone, and again when the preference changes while the page is open."""
    with browser_tab(tmp_path / "browser") as tab:
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        tab.open(pages[kind].as_uri(), width=390, height=844)
        figures = len(Page(pages[kind].read_text()).figures)
        drawn = "[...document.querySelectorAll('.figure')].filter((one) => one.querySelector('.main-svg')).length"
        tab.wait_for(f"{drawn} === {figures}")
        colour = "getComputedStyle(document.querySelector('.xtick text')).fill"
        assert tab.evaluate(colour) == "rgb(230, 234, 241)"
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "light"}])
        tab.wait_for(f"{colour} === 'rgb(26, 33, 48)'")
        assert tab.evaluate("document.documentElement.scrollWidth") == 390  # what is wider scrolls within the page
        assert [url for url in tab.requested if not url.startswith(("file:", "data:", "blob:"))] == []
        assert tab.errors == []
        skip = "document.activeElement.className === 'skip' && getComputedStyle(document.activeElement).outlineStyle"
        for kind_of_event in ("keyDown", "keyUp"):
            tab.call("Input.dispatchKeyEvent", type=kind_of_event, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        assert tab.evaluate(skip) == "solid"  # the first stop of the keyboard, and seen


def test_chromium_draws_a_report_by_itself(pages: dict[str, Path], tmp_path: Path) -> None:
    """As the pictures of the documents are made, with no DevTools attached."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium in PATH; on Debian: apt-get install chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
    options += ["--disable-background-networking", "--virtual-time-budget=8000", "--enable-logging=stderr"]
    command = [chromium, *options, "--dump-dom", pages["run"].as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    for complaint in ("Uncaught", "Refused to", "SyntaxError", "Content Security Policy"):
        assert complaint not in done.stderr
    assert done.stdout.count('class="main-svg"') >= len(Page(pages["run"].read_text()).figures)
