"""JSON files of a stack's folder, read into a dataclass and checked once. Does not depend on what they record."""

import json
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")


def read_record(path: Path, kind: type[Value], *, fix: str) -> Value:
    """The content of a JSON file as this type; ValueError with the file, the place in it and the `fix`."""
    from pydantic import TypeAdapter, ValidationError  # not at the top: `antiphon --help` stays light

    try:
        content: Any = json.loads(path.read_bytes())
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        place = ".".join(map(str, mistake["loc"])) or "its content"
        reason = f"{place}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}"
    except RecursionError:
        reason = "is nested too deeply"
    except FileNotFoundError:
        raise ValueError(f"{path}: is missing; it was removed, or another version made its folder: {fix}") from None
    except ValueError as error:  # also for bytes that are no text
        reason = f"is not JSON ({error})"
    raise ValueError(f"{path}: {reason}; it was damaged or written by something else: {fix}")
