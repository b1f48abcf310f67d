"""The model card beside an exported file: prints what `export.py` measured and what the checkpoint's state holds."""

import html
import json
import platform
import re
from pathlib import Path
from typing import Any

import jinja2

from orchestrator.artifacts.hub_folder import AS_CARD
from workloads.evaluate import metrics
from workloads.models.front_end import KINDS
from workloads.runtime.redaction import redacted

# Hugging Face's names of licences; a tagger's may be in SPDX's capitals, or come from a card of the hub's
LICENCES = (
    *("mit", "apache-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0"),
    *("cc-by-sa-4.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-3.0"),
    *("cc-by-nc-sa-4.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "openrail", "unlicense", "unknown"),
)


def write_card(report: dict[str, Any], state: dict[str, Any], out: Path, *, template: str = "card.md.j2") -> None:
    """Write the card to `out` from the export's `report` and the checkpoint's `state`."""
    origin, first = state.get("origin"), state.get("first_weights")
    licence = (origin or first or {}).get("licence")
    card = (
        card_environment()
        .get_template(template)
        .render(
            report=report,
            facts=report["facts"],
            arch=state["model"]["arch"],
            recipe=state.get("recipe"),
            init=state["model"]["init"],
            origin=origin,
            first=first,
            licence=_hub_licence(licence),
            licence_name=licence,
            data=state.get("data"),
            scores={part: state[part] for part in ("val", "test") if state.get(part)},
            interval=report["interval"],
            primary=metrics.primary(state["labels"]),
            hears_padding=KINDS[state["model"]["front_end"]["kind"]].hears_padding,
            machine=platform.processor() or platform.machine(),
        )
    )
    out.write_text(redacted(card), encoding="utf-8")


def card_environment() -> jinja2.Environment:
    """The templates of what lies beside exported weights: cards, and code for the hub."""
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
    return environment


def _hub_licence(licence: str | None) -> str:
    """Hugging Face's name of a licence; "other" of those that have none, "unknown" where nobody said which it is."""
    if not licence or licence == AS_CARD:
        return "unknown"
    return licence.lower() if licence.lower() in LICENCES else "other"


def _markdown(text: object) -> str:
    """A name as Markdown text: neither Markdown's marks nor HTML in it mean anything."""
    escaped = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", html.escape(str(text), quote=False))
    return " ".join(escaped.split())
