"""Settings of a search in words, as its page, its pictures and its headline say them."""

import html
import json
from collections.abc import Mapping
from typing import Any

from orchestrator.reports.search.snapshot import Search


def in_words(search: Search, name: str, value: Any) -> str:
    """A value of a place in the space; of a table (a whole schedule), its kind and what tells it from others of it."""
    choices = search.space.get(name, {}).get("choices", ())
    if not isinstance(value, Mapping) or not all(isinstance(choice, Mapping) for choice in choices):
        return shown(value)
    alike = [choice for choice in choices if choice.get("kind") == value.get("kind")]
    telling = [key for key in value if any(choice.get(key) != value[key] for choice in alike)]
    kind = [str(value["kind"])] if len(alike) < len(choices) else []
    return ", ".join([*kind, *(f"{key} {shown(value[key])}" for key in telling)]) or shown(value)


def line(search: Search, values: Mapping[str, Any]) -> str:
    """All settings of a trial in one line."""
    return ", ".join(f"{name} {in_words(search, name, value)}" for name, value in values.items()) or "nothing set"


def shown(value: Any) -> str:
    """A value as people read it: numbers with three digits, anything else as it is."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


def escaped(text: str) -> str:
    """Text as Plotly wants it: it reads some HTML, but shows &quot; as it stands."""
    return html.escape(text, quote=False)
