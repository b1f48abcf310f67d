"""What all pages share: templates, figures as JSON, and writing a file atomically.

A page needs no network: it carries Plotly's JavaScript, compressed; browsers unpack it when the page is opened. Text
from files is escaped, never markup.
"""

import base64
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup

from orchestrator.reports.figure_style import IN_DARK
from orchestrator.reports.figure_summary import summary_of
from workloads.runtime.atomic_files import replace_text
from workloads.runtime.redaction import redacted

HERE = Path(__file__).parent
TEMPLATE_FOLDERS = (HERE / "templates", HERE / "search" / "templates")
HEADING = re.compile(r'<h2 id="([\w-]+)">(.*?)</h2>')


class DrawnFigure(NamedTuple):
    """A figure for the macro of `figure.html.j2`."""

    json: Markup
    summary: str  # one sentence, for screen readers
    height: int  # pixels, kept free until it is drawn


def render(template: str, **values: Any) -> str:
    """A template of the report folders, filled with `values` without their secrets; an undefined name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE_FOLDERS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: redacted(value) if type(value) is str else value,  # markup is ours, or redacted already
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["headings"] = _headings
    environment.globals["in_dark"] = IN_DARK
    return environment.get_template(template).render(**values)


def _headings(body: Markup) -> list[tuple[str, Markup]]:
    """(id, title) of the sections of a page's body, which is rendered and so escaped already."""
    return [(name, Markup(title)) for name, title in HEADING.findall(str(body))]


@cache
def plotly_script() -> Markup:
    """Plotly's JavaScript for lines, bars and heatmaps: gzip in base64, 0.66 MB.

    Plotly's Python package has the whole library only. This is its "cartesian" bundle of the same version, as Plotly
    publishes it for npm (plotly.js-cartesian-dist-min).
    """
    return Markup(base64.b64encode((HERE / "plotly" / "plotly-cartesian.min.js.gz").read_bytes()).decode())


def drawn(figure: go.Figure) -> DrawnFigure:
    """A figure for a page: nothing in its JSON can end the script element that holds it."""
    return DrawnFigure(Markup(figure.to_json().replace("<", "\\u003c")), summary_of(figure), figure.layout.height)


def write_page(page: str, out: Path) -> None:
    """Write a page atomically: a reader sees the old file or the new one, also if the process is killed."""
    replace_text(out, page)
