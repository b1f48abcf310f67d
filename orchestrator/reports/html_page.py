"""What the page of a run and the page of a search share: templates, figures as JSON, and writing a file atomically.

A page needs no network: it carries Plotly's JavaScript, compressed; browsers unpack it when the page is opened. Text
from files is escaped, never markup.
"""

import base64
import gzip
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from workloads.runtime.atomic_files import replace_text
from workloads.runtime.redaction import redacted

HERE = Path(__file__).parent
TEMPLATE_FOLDERS = (HERE / "templates", HERE / "search" / "templates")


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
    return environment.get_template(template).render(**values)


@cache
def plotly_script() -> Markup:
    """Plotly's JavaScript for lines, bars and heatmaps: gzip in base64, 0.66 MB.

    Plotly's Python package has the whole library only. This is its "cartesian" bundle of the same version, as Plotly
    publishes it for npm (plotly.js-cartesian-dist-min).
    """
    return Markup(base64.b64encode((HERE / "plotly" / "plotly-cartesian.min.js.gz").read_bytes()).decode())


@cache
def whole_plotly_script() -> Markup:
    """The same of the whole library, 1.96 MB: for parallel coordinates."""
    return Markup(base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode())


def figure_json(figure: go.Figure) -> Markup:
    """A figure for a script element: nothing in it can end the element."""
    return Markup(figure.to_json().replace("<", "\\u003c"))


def write_page(page: str, out: Path) -> None:
    """Write a page atomically: a reader sees the old file or the new one, also if the process is killed."""
    replace_text(out, page)
