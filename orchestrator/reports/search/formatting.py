"""How the settings and statuses of a search's trials are printed on its page, in its figures and in its summary."""

import json
from collections.abc import Mapping
from typing import Any

from orchestrator.reports.search.snapshot import DONE, FAILED, INTERRUPTED, RUNNING, STOPPED, SearchSnapshot

STATUS_LABELS = {
    DONE: "completed",
    STOPPED: "stopped early",
    RUNNING: "running",
    INTERRUPTED: "interrupted",
    FAILED: "failed",
}  # in the order of the leaderboard


def format_setting(search: SearchSnapshot, name: str, value: Any) -> str:
    """A value of the parameter `name`; of a table (a whole schedule), its kind and the keys in which choices differ."""
    choices = search.space.get(name, {}).get("choices", ())
    if not isinstance(value, Mapping) or not all(isinstance(choice, Mapping) for choice in choices):
        return format_value(value)
    same_kind = [choice for choice in choices if choice.get("kind") == value.get("kind")]
    distinguishing = [key for key in value if any(choice.get(key) != value[key] for choice in same_kind)]
    kind = [str(value["kind"])] if len(same_kind) < len(choices) else []
    parts = [*kind, *(f"{key} {format_value(value[key])}" for key in distinguishing)]
    return ", ".join(parts) or format_value(value)


def format_settings(search: SearchSnapshot, settings: Mapping[str, Any]) -> str:
    """All settings of a trial on one line."""
    return ", ".join(f"{name} {format_setting(search, name, value)}" for name, value in settings.items()) or "none"


def format_value(value: Any) -> str:
    """Floats with three digits, or six from 1000; strings as they are; anything else as JSON."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)
