"""Files of specs: reads TOML into a checked `Spec`. Knows what a mistake in one looks like, and no target."""

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cluster.spec import Spec

SHIPPED = resources.files("cluster").joinpath("specs")
MAX_BYTES = 2**20  # of a spec's file
MAX_SHOWN = 200  # characters of a wrong value that a message repeats
KNOWN_KEYS = "docs/cluster.md lists those that exist"


def shipped_specs() -> list[str]:
    """The names of the specs that come with Antiphon."""
    return sorted(entry.name.removesuffix(".toml") for entry in SHIPPED.iterdir() if entry.name.endswith(".toml"))


def read_spec(name_or_path: str) -> dict[str, Any]:
    """The values of a shipped spec or a file; ValueError where it is not readable as TOML."""
    path = Path(name_or_path)
    if name_or_path in shipped_specs():
        content = SHIPPED.joinpath(f"{name_or_path}.toml").read_bytes()
    elif path.suffix == ".toml" and path.is_file():
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    else:
        raise ValueError(
            f"spec {name_or_path!r}: neither a .toml file nor shipped; shipped are {', '.join(shipped_specs())}"
        )
    if len(content) > MAX_BYTES:
        raise ValueError(f"spec {name_or_path!r}: larger than {MAX_BYTES} bytes; is it a spec?")
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        raise ValueError(f"spec {name_or_path!r}: not readable as TOML: {error}") from None


def parse_spec(values: Mapping[str, Any]) -> Spec:
    """Convert plain values to a checked spec; ValueError, one line long, for the first mistake."""
    try:
        return TypeAdapter(Spec).validate_python(values)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
        # a key that is not known is most often a misspelled one, and then the right one is missing too
        unknown = next((mistake for mistake in mistakes if mistake["type"] == "unexpected_keyword_argument"), None)
        raise ValueError(_describe(unknown or mistakes[0])) from None


def load_spec(name_or_path: str) -> Spec:
    """Load a shipped spec or a file."""
    return parse_spec(read_spec(name_or_path))


def _describe(mistake: Any) -> str:
    path = ".".join(map(str, mistake["loc"]))
    if mistake["type"] == "value_error":
        text = str(mistake["ctx"]["error"])
        return f"{path}.{text}" if path else text
    if mistake["type"] == "unexpected_keyword_argument":
        return f"{path}: unknown key; {KNOWN_KEYS}"
    if mistake["type"] in ("missing", "missing_argument"):
        return f"{path}: is missing; add it to the spec"
    shown = repr(mistake["input"])
    shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}..."
    return f"{path} = {shown}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}"
