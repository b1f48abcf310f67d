"""What the page of a run and the page of a search share: templates, figures as JSON, and writing a file whole.

A page opens without a network: it carries Plotly's 4.8 MB of JavaScript. Text from files is escaped, never markup.
"""

import os
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs


def render(template: str, **values: Any) -> str:
    """A template of this folder with these values; a value that the template names and nobody gave is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
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


def write_whole(page: str, out: Path) -> None:
    """Write a page so that a reader, or a kill, never sees half of it."""
    temporary = out.with_name(out.name + ".tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, out)
