"""The JavaScript that pages carry: of the version that plotly's figures are for, small, and with what they need."""

import base64
import gzip
import shutil
import subprocess
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs, get_plotlyjs_version

from orchestrator.reports.html_page import plotly_script, whole_plotly_script
from orchestrator.reports.run_page import write_report
from tests.orchestrator.reports.test_run_page import recipe, run_records
from tests.pages import Page

CARTESIAN = {"scatter", "bar", "heatmap"}  # of what the bundle draws, what the pages of runs and studies have


def unpacked(script: str) -> str:
    return gzip.decompress(base64.b64decode(script)).decode()


def test_the_bundle_is_of_the_version_that_the_figures_are_for() -> None:
    assert f"plotly.js (cartesian - minified) v{get_plotlyjs_version()}" in unpacked(plotly_script())[:200]
    assert unpacked(whole_plotly_script()) == get_plotlyjs()


def test_a_report_is_small_and_has_figures_that_the_bundle_draws(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report(run_records(), recipe("single"), run_id="demo-1", uri="/runs/demo-1", out=out)
    assert out.stat().st_size < 1_000_000
    figures = Page(out.read_text()).figures
    assert {trace.get("type", "scatter") for figure in figures.values() for trace in figure["data"]} <= CARTESIAN


def test_a_browser_unpacks_it_and_draws(tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium in PATH; on Debian: apt-get install chromium")
    out = tmp_path / "report.html"
    write_report(run_records(), recipe("single"), run_id="demo-1", uri="/runs/demo-1", out=out)
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
    command = [chromium, *options, "--virtual-time-budget=8000", "--enable-logging=stderr", "--dump-dom", out.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    for complaint in ("Uncaught", "Refused to", "SyntaxError", "Content Security Policy"):
        assert complaint not in done.stderr
    assert done.stdout.count('class="main-svg"') >= len(Page(out.read_text()).figures)
