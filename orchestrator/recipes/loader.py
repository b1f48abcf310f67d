"""Recipe files: reads TOML or JSON into a checked `Recipe`, `TeachRecipe` or `Study`, and writes a recipe as JSON.

Imports nothing heavy.

A recipe may extend another (`extends = "demo"`): tables merge key by key, lists and single values replace. A table
whose `kind` or `family` differs from that of the base, and which therefore has other keys, replaces it completely.
"""

import json
import math
import tomllib
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import asdict
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from orchestrator.recipes.controls import expand_controls
from orchestrator.recipes.merge import merge
from workloads.config.data import Data
from workloads.config.mistakes import MAX_SHOWN, first_mistake, path_of
from workloads.config.nearest import did_you_mean
from workloads.config.recipe import Recipe
from workloads.config.study import Study
from workloads.config.teach import TeachRecipe
from workloads.runtime.opener import read_bounded
from workloads.runtime.redaction import require_no_secret
from workloads.runtime.text import decode_text

SHIPPED = resources.files("orchestrator.recipes")
MAX_BYTES = 2**20  # of a recipe's file
MAX_DEPTH = 100  # of a recipe's nested tables, of which it has about six
KNOWN_KEYS = {  # kind of recipe -> where its keys are found
    Recipe: "`antiphon run ... --dry-run` prints those that exist",
    TeachRecipe: "docs/stores.md lists those that exist",
    Study: "docs/studies.md lists those that exist",
}
RUN, TEACH, STUDY = "run", "teach", "study"  # what a file is for
Loaded = TypeVar("Loaded", Recipe, TeachRecipe, Study)


def shipped_names() -> list[str]:
    """The names of the recipes of runs and searches that come with Antiphon."""
    return [name for name, purpose in _shipped().items() if purpose == RUN]


def shipped_teach_names() -> list[str]:
    """The names of the recipes of stores that come with Antiphon."""
    return [name for name, purpose in _shipped().items() if purpose == TEACH]


def shipped_study_names() -> list[str]:
    """The names of the studies that come with Antiphon."""
    return [name for name, purpose in _shipped().items() if purpose == STUDY]


@cache
def _shipped() -> dict[str, str]:
    """Name -> what it is for."""
    names = sorted(entry.name.removesuffix(".toml") for entry in SHIPPED.iterdir() if entry.name.endswith(".toml"))
    return {name: _purpose(tomllib.loads((SHIPPED / f"{name}.toml").read_text())) for name in names}


def _purpose(values: dict[str, Any]) -> str:
    """Only the recipe of a store has teachers, only a study has folds and builds on a recipe that it names."""
    if "teachers" in values:
        return TEACH
    return STUDY if {"recipe", "folds"} & values.keys() else RUN


def header(name: str) -> list[str]:
    """The comment lines at the top of a shipped recipe: its command, and its measured or published results."""
    lines = (SHIPPED / f"{name}.toml").read_text().splitlines()
    end = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.lstrip("# ") for line in lines[:end]]


def load_recipe(
    name_or_path: str, settings: list[str] | None = None, *, tables: dict[str, Any] | None = None
) -> Recipe:
    """Load a shipped recipe or a file, merge `tables` into it, and apply `a.b=value` settings in order.

    Raises ValueError, one line long, with the value, the rule and the fix.
    """
    return _load(name_or_path, settings, Recipe, tables)


def load_teach_recipe(name_or_path: str, settings: list[str] | None = None) -> TeachRecipe:
    """The same for the recipe of a store."""
    return _load(name_or_path, settings, TeachRecipe)


def load_study(name_or_path: str) -> Study:
    """Load a shipped study or a file; raises as `load_recipe`."""
    return _load(name_or_path, None, Study)


def load_data(name_or_path: str, settings: list[str] | None = None) -> Data:
    """The data set of a recipe of either kind."""
    is_of_store = "teachers" in _read(name_or_path, seen=())
    return (load_teach_recipe if is_of_store else load_recipe)(name_or_path, settings).data


def _load(
    name_or_path: str, settings: list[str] | None, kind: type[Loaded], tables: dict[str, Any] | None = None
) -> Loaded:
    values = _read(name_or_path, seen=())
    _require_kind(values, name_or_path, kind)
    values = merge(values, deepcopy(tables or {}))  # settings are applied in place
    _require_near_models(values, settings or [])
    texts = dict(_apply_setting(values, setting) for setting in settings or [])
    try:
        return _validate(values, kind)
    except ValidationError as error:
        # a field that holds text gets the text as it was typed: `data.root=2024` is a folder, no number
        meant = [path_of(mistake) for mistake in error.errors(include_url=False) if mistake["type"] == "string_type"]
        for path in texts.keys() & meant:
            _set_at(values, path, texts[path], setting=path)
    return _checked(values, kind)


def _require_near_models(values: dict[str, Any], settings: list[str]) -> None:
    """ValueError for a setting within a model that the recipe does not have, where it has one of nearly that name.

    A setting of the whole model adds one.
    """
    models = values.get("models", {})
    for setting in settings:
        table, _, path = setting.partition("=")[0].partition(".")
        name, inner, _ = path.partition(".")
        if table == "models" and inner and name not in models and (meant := did_you_mean(name, models)):
            raise ValueError(f"--set {setting!r}: the recipe has no model {name!r}{meant}")


def _require_kind(values: dict[str, Any], name_or_path: str, kind: type[Any]) -> None:
    """ValueError for the recipe of a store where one of a run is wanted, or a study, and the other way round."""
    wanted = {Recipe: RUN, TeachRecipe: TEACH, Study: STUDY}[kind]
    purpose = _purpose(values)
    if wanted == RUN and purpose == TEACH:
        raise ValueError(f"recipe {name_or_path!r}: has teachers, so it fills a store: use `antiphon teach`")
    if wanted == RUN and purpose == STUDY:
        raise ValueError(f"recipe {name_or_path!r}: has folds of its own, so it is a study: use `antiphon study`")
    if wanted != RUN and "models" in values:
        raise ValueError(f"recipe {name_or_path!r}: has models, so it is a run's: use `antiphon run` or `search`")


def parse(values: Any) -> Recipe:
    """Convert plain values (parsed TOML or resolved JSON) to a checked recipe; ValueError for the first mistake."""
    return _checked(values, Recipe)


def _checked(values: Any, kind: type[Loaded]) -> Loaded:
    try:
        return _validate(values, kind)
    except ValidationError as error:
        raise ValueError(first_mistake(error, KNOWN_KEYS[kind], kind)) from None


def _validate(values: Any, kind: type[Loaded]) -> Loaded:
    _require_storable(values)
    expanded = expand_controls(values) if kind is Recipe and isinstance(values, dict) else values
    return TypeAdapter(kind).validate_python(expanded)


def _require_storable(values: Any, path: str = "", *, depth: int = 0) -> None:
    """ValueError for what TOML has and no setting can be: inf, nan, integers beyond 64 bits, hundreds of levels.

    And for secrets, since recipes are stored.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"{path[:60]}...: is nested too deeply to be a setting")
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        _require_storable(value, f"{path}.{key}" if path else str(key), depth=depth + 1)
    if isinstance(values, float) and not math.isfinite(values):
        raise ValueError(f"{path} = {values}: must be a finite number")
    if isinstance(values, int) and values.bit_length() > 63:
        raise ValueError(f"{path} = {values:#x}"[:MAX_SHOWN] + ": is an integer beyond 64 bits; use a smaller one")
    if isinstance(values, str):
        require_no_secret(values, f"{path} =")


def resolve(recipe: Recipe) -> dict[str, Any]:
    """The whole recipe, defaults included, as values that JSON can hold; `parse` is the inverse."""
    return json.loads(json.dumps(asdict(recipe)))


def with_settings(recipe: Recipe, settings: dict[str, Any]) -> Recipe:
    """A copy of the recipe with the values at dotted paths replaced; ValueError if the result is invalid."""
    values = resolve(recipe)
    for path, value in settings.items():
        _set_at(values, path, value, setting=f"{path}={value}")
    return parse(values)


def with_options(recipe: Recipe, settings: list[str]) -> Recipe:
    """A copy of the recipe with `a.b=value` settings applied in order; ValueError if the result is invalid."""
    values = resolve(recipe)
    for setting in settings:
        _apply_setting(values, setting)
    return parse(values)


def tables_of(settings: list[str]) -> dict[str, Any]:
    """`a.b=value` settings as tables of their own, to see what they change; ValueError for one that is none."""
    values: dict[str, Any] = {}
    for setting in settings:
        _apply_setting(values, setting)
    return values


def flatten(values: Any, prefix: str = "") -> dict[str, str]:
    """Nested values as `a.b.c` -> text: the parameters that are sent to MLflow."""
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
        raise ValueError(f"extends = {name_or_path!r}: recipes extend each other in a circle; remove one `extends`")
    path = Path(name_or_path)
    if name_or_path in _shipped():
        content, name = (SHIPPED / f"{name_or_path}.toml").read_bytes(), name_or_path
    elif path.suffix in (".toml", ".json") and path.is_file():
        content, name = _content(path), path.stem
    else:
        raise ValueError(
            f"recipe {name_or_path!r}: neither a .toml or .json file nor shipped{_meant(path) or ';'} shipped are "
            f"{', '.join(_shipped())}"
        )
    text = decode_text(content, name_or_path)
    try:
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:  # also for an integer of thousands of digits
        raise ValueError(f"recipe {name_or_path!r}: not readable: {error}") from None
    except RecursionError:
        raise ValueError(f"recipe {name_or_path!r}: is nested too deeply to be a recipe") from None
    if not isinstance(values, dict):
        raise ValueError(f"recipe {name_or_path!r}: must be a table of keys and values, not {type(values).__name__}")
    _require_storable(values)  # before it is merged with others, level by level
    values.setdefault("name", name)
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ValueError(
            f"recipe {name_or_path!r}: extends = {base!r}: must be the name or path of one recipe, in quotes"
        )
    return merge(_read(base, seen=(*seen, name_or_path)), values)


def _meant(path: Path) -> str:
    """The shipped recipe, or the file beside it, that is most like a name that is none."""
    beside = (str(path.parent / other.name) for ending in ("toml", "json") for other in path.parent.glob(f"*.{ending}"))
    return did_you_mean(str(path), [*_shipped(), *beside])


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        content = read_bounded(file, MAX_BYTES)
    if content is None:
        raise ValueError(f"recipe {str(path)!r}: larger than {MAX_BYTES} bytes; is it a recipe?")
    return content


def _apply_setting(values: dict[str, Any], setting: str) -> tuple[str, str]:
    """Apply one `a.b=value`; list items are numbered (`edges.0.weight=0.3`); the value is TOML, else plain text.

    Returns the path and the text of the value as it was typed.
    """
    path, equals, text = setting.partition("=")
    if not equals or not path:
        raise ValueError(f"--set {setting!r}: must look like a.b=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    _set_at(values, path, value, setting=setting)
    return path, text


def _set_at(values: dict[str, Any], path: str, value: Any, *, setting: str) -> None:
    *parents, last = path.split(".")
    if len(parents) > MAX_DEPTH:
        raise ValueError(f"--set {setting[:60]!r}...: is nested too deeply to be a setting")
    table: Any = values
    try:
        for key in parents:
            table = table[int(key)] if isinstance(table, list) else table.setdefault(key, {})
        table[int(last) if isinstance(table, list) else last] = value
    except (ValueError, IndexError, TypeError, AttributeError):
        raise ValueError(
            f"--set {setting!r}: no such key in the recipe; `antiphon run ... --dry-run` prints the recipe"
        ) from None
