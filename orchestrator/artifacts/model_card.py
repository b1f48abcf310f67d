"""The model card beside an exported file: prints what `export.py` measured and what the checkpoint's state holds."""

import html
import json
import platform
import re
from pathlib import Path
from typing import Any

import jinja2

from workloads.evaluate import metrics
from workloads.models.front_end import KINDS
from workloads.runtime.redaction import redacted

# Hugging Face's names of licences, for those that `workloads/models/official` names
LICENCES = {"MIT": "mit", "BSD-3-Clause": "bsd-3-clause"}


def write_card(report: dict[str, Any], state: dict[str, Any], out: Path, *, template: str = "card.md.j2") -> None:
    """Write the card to `out` from the export's `report` and the checkpoint's `state`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["yaml"] = json.dumps  # YAML reads JSON's strings
    environment.filters["python"] = repr
    environment.filters["text"] = _markdown
    origin, first = state.get("origin"), state.get("first_weights")
    licence = (origin or first or {}).get("licence")
    card = environment.get_template(template).render(
        report=report,
        facts=report["facts"],
        arch=state["model"]["arch"],
        recipe=state.get("recipe"),
        init=state["model"]["init"],
        origin=origin,
        first=first,
        licence=LICENCES.get(licence, "other") if licence else "unknown",
        licence_name=licence,
        data=state.get("data"),
        scores={part: state[part] for part in ("val", "test") if state.get(part)},
        interval=report["interval"],
        primary=metrics.primary(state["labels"]),
        hears_padding=KINDS[state["model"]["front_end"]["kind"]].hears_padding,
        machine=platform.processor() or platform.machine(),
    )
    out.write_text(redacted(card), encoding="utf-8")


def _markdown(text: object) -> str:
    """A name as Markdown text: neither Markdown's marks nor HTML in it mean anything."""
    escaped = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(str(text), quote=False))
    return " ".join(escaped.split())
