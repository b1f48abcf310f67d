"""What a misspelt name was meant to be: of the names that there are, and of the keys of config values."""

from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The words that suggest the known name that is most like `name`; empty where none is like it."""
    found = get_close_matches(name.casefold(), {other.casefold(): other for other in known}, n=1)
    meant = next((other for other in known if found and other.casefold() == found[0]), "")
    return f"; did you mean {meant!r}?" if meant else ""


def keys_at(kind: Any, place: Sequence[int | str]) -> list[str]:
    """The keys of the table at `place`, as pydantic says it, within values of the type `kind`; empty where none is."""
    for part in place:
        kind = _inner(kind, part)
    kind = _without_none(kind)
    return [field.name for field in fields(kind)] if is_dataclass(kind) else []


def _inner(kind: Any, part: int | str) -> Any:
    """The type below a key, an item's number, or the name by which pydantic tells the alternatives of a union."""
    kind = _without_none(kind)
    if is_dataclass(kind):
        return get_type_hints(kind).get(str(part))
    if get_origin(kind) in (Union, UnionType):
        return next((other for other in get_args(kind) if getattr(other, "__name__", "") == part), None)
    values = get_args(kind)
    return values[-1] if get_origin(kind) is dict else next(iter(values), None)


def _without_none(kind: Any) -> Any:
    """The type itself of one that may be missing: pydantic's places do not name it."""
    others = [other for other in get_args(kind) if other is not NoneType]
    return others[0] if get_origin(kind) in (Union, UnionType) and len(others) == 1 else kind
