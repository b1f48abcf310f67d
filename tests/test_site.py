"""The site of the documents: built with no warning, and its pages fetch nothing from other hosts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FETCHED = re.compile(
    r"<(?:script|img|iframe|source)[^>]* src=\"?(https?:[^\" >]+)|<link[^>]* href=\"?(https?:[^\" >]+)"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Strict: a warning, as of a dead link or heading, or of a page that the navigation leaves out, is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # a note of the theme's authors on its successor
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


def test_every_document_is_a_page(site: Path) -> None:
    pages = {path.stem for path in site.glob("*.html")}
    assert pages == {"404", "index", "contributing", "changelog", *(path.stem for path in ROOT.glob("docs/*.md"))}
    assert (site / "LICENSE.txt").read_text() == (ROOT / "LICENSE").read_text()
    assert "Audio taggers that teach each other" in (site / "index.html").read_text()


def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    assert FETCHED.findall('<script src="https://unpkg.com/x"></script>'), "the pattern finds what it must"
    for page in site.glob("*.html"):
        allowed = {"https://squidfunk.github.io/mkdocs-material/"}
        assert {"".join(found) for found in FETCHED.findall(page.read_text())} - allowed == set(), page.name
