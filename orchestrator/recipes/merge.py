"""How two tables of a recipe merge: key by key, own values replace those of the base."""

from typing import Any

from workloads.config.mistakes import SELECTORS


def merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The base with the own values; a table with another `kind` or `family`, which has other keys, replaces it whole.

    Lists and single values replace.
    """
    if any(key in own and key in base and own[key] != base[key] for key in SELECTORS):
        return own
    merged = dict(base)
    for key, value in own.items():
        both_tables = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = merge(base[key], value) if both_tables else value
    return merged
