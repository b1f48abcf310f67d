"""docs/cluster.md lists every field of a spec, with its default, and no other."""

import json
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from cluster.spec import Spec
from cluster.spec_nodes import Toleration

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"


def documented() -> dict[str, str]:
    """Field -> default, as the table has them."""
    found = {}
    for line in PAGE.read_text().partition("### The fields")[2].partition("\n### ")[0].splitlines():
        if not line.startswith("| `"):
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for name in re.findall(r"`([^`]+)`", cells[0]):
            assert name not in found, f"{name} is there twice"
            assert cells[2], f"{name} is not explained"
            found[name] = cells[1].strip("`")
    return found


def existing(table: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Field -> default, of a table and the tables in it."""
    types_of = get_type_hints(table)
    for field in fields(table):
        path = f"{prefix}{field.name}"
        inner = inner_table(types_of[field.name])
        if inner is None or inner is Toleration:
            yield path, default_of(field)
        else:
            yield from existing(inner, f"{path}.NAME." if get_origin(types_of[field.name]) is Mapping else f"{path}.")


def inner_table(kind: Any) -> Any:
    """The dataclass that a field holds, or holds several of; None for plain values."""
    if is_dataclass(kind):
        return kind
    several = get_origin(kind) in (Mapping, tuple, types.UnionType)
    return next((each for each in get_args(kind) if is_dataclass(each)), None) if several else None


def default_of(field: Field[Any]) -> str:
    if field.default_factory is not MISSING:
        return json.dumps(field.default_factory())
    return "required" if field.default is MISSING else json.dumps(field.default)


def test_every_field_is_documented_with_its_default() -> None:
    expected = dict(existing(Spec)) | dict(existing(Toleration, "tolerations."))
    assert documented() == expected
    assert len(expected) > 60
