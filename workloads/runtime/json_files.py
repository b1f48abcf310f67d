"""JSON on a disk or a store: one writer, which stores no secret, and one reader, with a shape for each kind of file.

A file may be damaged, cut off, or written by something else. Whoever reads one gets a value of its shape, or a
ValueError that names the file, the place in it and what belongs there. Keys that a shape does not name are kept.
"""

import functools
import json
from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal, NotRequired

from annotated_types import Interval
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from workloads.config.data import MAX_CLIP_SECONDS, MAX_RATE
from workloads.runtime.redaction import redacted_values

MAX_DEPTH = 100  # of nested values; our own files have about ten
TOO_DEEP = "is nested too deeply; it was damaged or written by something else"


class _FromArray:
    """Says of a tuple in a shape that it is an array in JSON, which strict checking would refuse."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core.core_schema import no_info_before_validator_function

        def from_array(value: Any) -> Any:
            return tuple(value) if isinstance(value, list) else value

        return no_info_before_validator_function(from_array, handler(source))


ARRAY = _FromArray()


class Marker(TypedDict):
    """COMMITTED.json: the SHA-256 of every file of a published folder."""

    files: dict[str, str]


class PartCounts(TypedDict):
    """The number of clips of each part of a data set."""

    train: int
    val: int
    test: int


class TrainedOn(TypedDict):
    """The data set that a tagger was trained on."""

    format: str
    fingerprint: str
    test_fold: int
    validation: NotRequired[dict[str, float | list[int]]]  # the settings that chose the validation clips
    clips: PartCounts


class TaggerState(TypedDict):
    """state.json of a published tagger: what builds it and, where a run has trained it, on what, and its scores."""

    kind: str
    name: str
    model: dict[str, Any]
    tags: list[str]
    labels: Literal["single", "multi"]
    clip_seconds: Annotated[float, Interval(gt=0, le=MAX_CLIP_SECONDS)]
    clip_rate: Annotated[int, Interval(gt=0, le=MAX_RATE)]
    long_clips: Literal["windows", "start"]
    data: NotRequired[TrainedOn]
    recipe: NotRequired[str]
    val: NotRequired[dict[str, float]]
    test: NotRequired[dict[str, float]]


class TrainingState(TypedDict):
    """state.json of a checkpoint: what a run is resumed from."""

    step: int
    scores: dict[str, float]
    validated: dict[str, Annotated[tuple[int, float], ARRAY]]
    best_for: dict[str, float]
    data: str
    taught: dict[str, int]
    members: dict[str, dict[str, Any]]
    snapshots: list[str]


class Record(TypedDict):
    """A line of an event log; what else it holds depends on its kind."""

    kind: str
    t: NotRequired[int]  # milliseconds since the epoch
    step: NotRequired[int]
    values: NotRequired[dict[str, float | None]]
    models: NotRequired[dict[str, Any] | list[str]]
    tags: NotRequired[dict[str, str] | list[str]]


def json_text(value: Any, *, indent: int | None = None) -> str:
    """A value as the text of a JSON file, or of a line of one; secrets in its texts are replaced (`redaction.py`)."""
    return json.dumps(redacted_values(value), indent=indent)


def parse_json(content: str | bytes, name: str, shape: Any = dict[str, Any]) -> Any:
    """The value of a JSON file called `name`, which has this shape; ValueError where it is no JSON or has another."""
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError(f"{name}: {TOO_DEEP}") from None
    except ValueError as error:  # also for bytes that are no text
        raise ValueError(f"{name}: is not JSON ({error}); it was damaged or written by something else") from None
    _require_shallow(content, value, name)
    require_shape(value, name, shape)
    return value


def _require_shallow(content: str | bytes, value: Any, name: str) -> None:
    """ValueError where values are nested in more levels than code that walks through them can go down."""
    content = content.encode() if isinstance(content, str) else content
    if content.count(b"[") + content.count(b"{") <= MAX_DEPTH:
        return
    level, depth = [value], 0
    while level := [item for outer in level for item in _items(outer)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"{name}: {TOO_DEEP}")


def _items(value: Any) -> Collection[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def require_shape(value: Any, name: str, shape: Any) -> None:
    """Raise ValueError, naming the first place that differs, where a value of a JSON file does not have this shape.

    A text of digits is no number: the value is used as it is, not converted. An integer passes where a float belongs.
    """
    from pydantic import ValidationError  # not at the top: `antiphon --help` stays light

    try:
        _validator(shape)(value, strict=True)
    except ValidationError as error:
        mistake = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in mistake["loc"]) or "its content"
        raise ValueError(
            f"{name}: {place}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}; it was damaged or written by something "
            "else"
        ) from None


@functools.cache
def _validator(shape: Any) -> Callable[..., Any]:
    """Building one takes a thousand times as long as using it, and an event log has a line for every few steps."""
    from pydantic import TypeAdapter

    return TypeAdapter(shape).validate_python


def parse_marker(content: str | bytes, name: str) -> dict[str, str]:
    """File name -> SHA-256 of a published folder, from its marker.

    ValueError too where the marker does not list the state and weights, or lists a file of another folder: what it does
    not list would pass as verified.
    """
    files: dict[str, str] = parse_json(content, name, Marker)["files"]
    if "state.json" not in files or not any(file.endswith(".safetensors") for file in files):
        raise ValueError(f"{name}: does not list state.json and weights, so they cannot be verified; choose another")
    if strange := [file for file in files if "/" in file or "\\" in file or file.startswith(".")]:
        raise ValueError(f"{name}: lists {strange[0]!r}, which is no file of this folder; choose another")
    return files
