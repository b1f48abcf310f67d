"""Recipes: hand-written TOML in, a checked `Recipe` and resolved JSON out. Imports nothing heavy.

A recipe may build on another (`extends = "demo"`): tables merge key by key, lists and single values replace. A table
whose `kind`, `family` or `format` differs from the one below it replaces it whole.
"""

import json
import tomllib
from collections.abc import Iterable
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from workloads.config.recipe import Recipe

SHIPPED = resources.files("orchestrator.recipes")
SELECTORS = ("kind", "family", "format")  # keys that choose which other keys a table may have


def shipped_names() -> list[str]:
    """The names of the recipes that come with Antiphon."""
    return sorted(entry.name.removesuffix(".toml") for entry in SHIPPED.iterdir() if entry.name.endswith(".toml"))


def header(name: str) -> list[str]:
    """The comment lines that open a shipped recipe: its command, and what was measured of it."""
    lines = (SHIPPED / f"{name}.toml").read_text().splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.lstrip("# ") for line in lines[:end]]


def load_recipe(name_or_path: str, settings: list[str] | None = None) -> Recipe:
    """A shipped recipe or a file, with `a.b=value` settings on top.

    Raises ValueError, one line long, with the value, the rule and the fix.
    """
    values = _read(name_or_path, seen=())
    for setting in settings or []:
        _set(values, setting)
    return parse(values)


def parse(values: dict[str, Any]) -> Recipe:
    """Plain values (parsed TOML or resolved JSON) to a checked recipe; ValueError for the first mistake."""
    try:
        return TypeAdapter(Recipe).validate_python(values)
    except ValidationError as error:
        raise ValueError(_explain(error)) from None


def resolve(recipe: Recipe) -> dict[str, Any]:
    """The whole recipe, defaults included, as JSON-ready values; `parse` takes it back."""
    return json.loads(json.dumps(asdict(recipe)))


def changed(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """The recipe with values at dotted places replaced; ValueError where they make no recipe."""
    values = resolve(recipe)
    for place, value in settings.items():
        _place_value(values, place, value, said=f"{place}={value}")
    return parse(values)


def flatten(values: Any, prefix: str = "") -> dict[str, str]:
    """Nested values as `a.b.c` -> text, for tracking's parameters."""
    if isinstance(values, dict) and values:
        items: Iterable[tuple[Any, Any]] = values.items()
    elif isinstance(values, list) and values and isinstance(values[0], dict):
        items = enumerate(values)
    else:
        return {prefix: values if isinstance(values, str) else json.dumps(values)}
    flat: dict[str, str] = {}
    for key, value in items:
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _read(name_or_path: str, *, seen: tuple[str, ...]) -> dict[str, Any]:
    if name_or_path in seen:
        raise ValueError(f"extends = {name_or_path!r}: recipes extend each other in a circle; cut it")
    path = Path(name_or_path)
    if name_or_path in shipped_names():
        text, name = (SHIPPED / f"{name_or_path}.toml").read_text(), name_or_path
    elif path.suffix in (".toml", ".json") and path.is_file():
        text, name = path.read_text(), path.stem
    else:
        raise ValueError(
            f"recipe {name_or_path!r}: neither a .toml or .json file nor shipped; "
            f"shipped are {', '.join(shipped_names())}"
        )
    try:
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"recipe {name_or_path!r}: not readable: {error}") from None
    values.setdefault("name", name)
    base = values.pop("extends", None)
    return values if base is None else _merge(_read(base, seen=(*seen, name_or_path)), values)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    if any(key in above and key in below and above[key] != below[key] for key in SELECTORS):
        return above
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _merge(below[key], value) if both else value
    return merged


def _set(values: dict[str, Any], setting: str) -> None:
    """Apply one `a.b=value`; list items go by number (`edges.0.weight=0.3`); the value is TOML, else plain text."""
    path, equals, text = setting.partition("=")
    if not equals or not path:
        raise ValueError(f"--set {setting!r}: must look like a.b=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    _place_value(values, path, value, said=setting)


def _place_value(values: dict[str, Any], path: str, value: Any, *, said: str) -> None:
    *parents, last = path.split(".")
    table: Any = values
    try:
        for key in parents:
            table = table[int(key)] if isinstance(table, list) else table.setdefault(key, {})
        table[int(last) if isinstance(table, list) else last] = value
    except (ValueError, IndexError, TypeError, AttributeError):
        raise ValueError(
            f"--set {said!r}: no such place in the recipe; `antiphon run ... --dry-run` prints it"
        ) from None


def _explain(error: ValidationError) -> str:
    """The first mistake in one line; where a value may be of several kinds, only the chosen kind's mistakes count."""
    mistakes = error.errors(include_url=False)
    wrong_branches = {m["loc"][:-1] for m in mistakes if m["type"] == "literal_error" and m["loc"][-1] in SELECTORS}
    chosen = [m for m in mistakes if not any(m["loc"][: len(branch)] == branch for branch in wrong_branches)]
    if not chosen:  # no kind was chosen: the selector itself is the mistake
        selectors = [m for m in mistakes if m["loc"][:-1] in wrong_branches and m["loc"][-1] in SELECTORS]
        known = ", ".join(str(m["ctx"]["expected"]) for m in selectors)
        return f"{_place(selectors[0])} = {selectors[0]['input']!r}: must be one of {known}"
    first = chosen[0]
    if first["type"] == "value_error":
        where = _place(first)
        text = str(first["ctx"]["error"])
        return f"{where}.{text}" if where else text
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{_place(first)}: unknown key; `antiphon run ... --dry-run` prints those that exist"
    if first["type"] in ("missing", "missing_argument"):
        return f"{_place(first)}: is missing; add it to the recipe or --set it"
    return f"{_place(first)} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _place(mistake: Any) -> str:
    """The mistake's place as the recipe writes it: class names of alternatives are pydantic's, not the user's."""
    return ".".join(str(part) for part in mistake["loc"] if not str(part)[:1].isupper())
