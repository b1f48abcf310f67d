"""What the page of a run and the page of a search share: templates, figures as JSON, and writing a file atomically.

A page needs no network: it carries Plotly's 4.8 MB of JavaScript. Text from files is escaped, never markup.
"""

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


def plotly_script() -> Markup:
    """Plotly's JavaScript for an inline script element."""
    return Markup(get_plotlyjs().replace("</script", "<\\/script"))


def figure_json(figure: go.Figure) -> Markup:
    """A figure for a script element: nothing in it can end the element."""
    return Markup(figure.to_json().replace("<", "\\u003c"))


def write_page(page: str, out: Path) -> None:
    """Write a page atomically: a reader sees the old file or the new one, also if the process is killed."""
    replace_text(out, page)
