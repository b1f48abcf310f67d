"""pydantic's findings about a config value as one line, with the value, the rule and the fix. Imports nothing heavy."""

from typing import Any

from pydantic import ValidationError

from workloads.config.nearest import did_you_mean, keys_at

SELECTORS = ("kind", "family")  # keys that determine which other keys a table may have
COLLECTIONS = {  # pydantic's type of mistake -> what is to be written instead, of a single value
    "tuple_type": "must be a list, such as [{}]",
    "list_type": "must be a list, such as [{}]",
    "dict_type": "must be a table, {{ key = value, ... }}",
    "dataclass_type": "must be a table, {{ key = value, ... }}",
}
MAX_SHOWN = 200  # characters of a wrong value that a message repeats


def first_mistake(error: ValidationError, known_keys: str, kind: type[Any]) -> str:
    """The first mistake in one line; of alternatives, only the mistakes of the one that a selector chose count.

    `known_keys` says, of an unknown key, which ones exist; `kind` is what was to be read.
    """
    mistakes = error.errors(include_url=False)
    wrong_branches = {m["loc"][:-1] for m in mistakes if m["type"] == "literal_error" and m["loc"][-1] in SELECTORS}
    chosen = [m for m in mistakes if not any(m["loc"][: len(branch)] == branch for branch in wrong_branches)]
    if chosen:  # a value out of range says more than keys that another alternative would have
        return _describe(next((m for m in chosen if m["type"] == "value_error"), chosen[0]), known_keys, kind)
    # no alternative was chosen: the selector itself is the mistake
    selectors = [m for m in mistakes if m["loc"][:-1] in wrong_branches and m["loc"][-1] in SELECTORS]
    known = [str(m["ctx"]["expected"]) for m in selectors]
    given = selectors[0]["input"]
    meant = did_you_mean(str(given), [name.strip("'") for name in known])
    return f"{path_of(selectors[0])} = {given!r}: must be one of {', '.join(known)}{meant}"


def _describe(mistake: Any, known_keys: str, kind: type[Any]) -> str:
    path = path_of(mistake)
    if mistake["type"] == "value_error":
        text = str(mistake["ctx"]["error"])
        return f"{path}.{text}" if path else text
    if mistake["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        *table, key = mistake["loc"]
        return f"{path}: unknown key; {known_keys}{did_you_mean(str(key), keys_at(kind, table))}"
    if mistake["type"] in ("missing", "missing_argument"):
        return f"{path}: is missing; add it to the recipe or --set it"
    value = repr(mistake["input"])
    shown = value if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]}..."
    if mistake["type"] in COLLECTIONS:
        return f"{path} = {shown}: {COLLECTIONS[mistake['type']].format(shown)}"
    return f"{path} = {shown}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}"


def path_of(mistake: Any) -> str:
    """The mistake's dotted path in the recipe, without pydantic's parts for the class names of alternatives."""
    return ".".join(str(part) for part in mistake["loc"] if not str(part)[:1].isupper())
