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

from workloads.config.recipe import MAX_CLIP_SECONDS
from workloads.runtime.redaction import redacted_values

MAX_RATE = 192_000  # Hz
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


class TaggerState(TypedDict):
    """state.json of a published tagger: what is needed to build it."""

    kind: str
    name: str
    model: dict[str, Any]
    tags: list[str]
    labels: Literal["single", "multi"]
    clip_seconds: Annotated[float, Interval(gt=0, le=MAX_CLIP_SECONDS)]
    clip_rate: Annotated[int, Interval(gt=0, le=MAX_RATE)]
    long_clips: Literal["windows", "start"]


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


class Scores(TypedDict):
    """state.json of a checkpoint: what decides whether it is kept."""

    best_for: NotRequired[dict[str, float]]


class Outcome(TypedDict):
    """outcome.json of a run."""

    status: str
    tracking: NotRequired[str]
    resumed_from_step: NotRequired[int]
    steps_run: NotRequired[int]


class Record(TypedDict):
    """A line of an event log; what else it holds depends on its kind."""

    kind: str
    t: NotRequired[int]
    step: NotRequired[int]
    values: NotRequired[dict[str, float | None]]
    models: NotRequired[dict[str, Any] | list[str]]
    tags: NotRequired[dict[str, str] | list[str]]


class RunRecord(TypedDict):
    """The first line of an event log."""

    kind: str
    t: int
    run_id: str
    experiment: str
    name: str
    params: dict[str, str]
    tags: dict[str, str]


class EdgeFields(TypedDict):
    """An edge in recipe.json and in a record of a phase."""

    teacher: str
    student: str
    weight: float
    temperature: float
    source: str
    view: str
    gate: str


class PhaseRecord(TypedDict):
    """A line of an event log: a phase begins."""

    kind: str
    step: int
    index: int
    steps: int
    trains: list[str]
    edges: list[EdgeFields]
    total: NotRequired[int]


class MetricsRecord(TypedDict):
    """A line of an event log: values of a step."""

    kind: str
    step: int
    values: dict[str, float | None]


class StartRecord(TypedDict):
    """A line of an event log: an attempt begins."""

    kind: str
    step: int
    attempt: int
    damaged: list[str]


class ModelResult(TypedDict):
    """A model's row in the `result` record: sizes, steps, scores by metric, and what was delivered."""

    params: int
    steps_taught: int
    steps_learned: int
    val: dict[str, float | None]
    test: dict[str, float | None]
    checkpoint: str
    weights_sha256: str


class ResultRecord(TypedDict):
    """A line of an event log: the run is trained, scored and delivered."""

    kind: str
    steps: int
    models: dict[str, ModelResult]


class EndRecord(TypedDict):
    """A line of an event log: an attempt has ended."""

    kind: str
    status: str


RECORDS = {
    "run": RunRecord,
    "phase": PhaseRecord,
    "metrics": MetricsRecord,
    "start": StartRecord,
    "result": ResultRecord,
    "end": EndRecord,
}


class Offset(TypedDict):
    """The file beside an event log that holds how far its records were sent."""

    whom: str
    start: Annotated[int, Interval(ge=0, lt=2**62)]
    end: Annotated[int, Interval(ge=0, lt=2**62)]
    sha256: str


class ArchFields(TypedDict):
    """An architecture in recipe.json, as far as reports read it."""

    family: str


class ModelFields(TypedDict):
    """A model in recipe.json, as far as reports read it."""

    arch: ArchFields


class RecipeData(TypedDict):
    """The data table of recipe.json, as far as reports read it."""

    labels: str


class RecipeFile(TypedDict):
    """recipe.json of a run: the resolved recipe, as far as reports read it; resuming compares all of it."""

    name: str
    models: dict[str, ModelFields]
    edges: list[EdgeFields]
    data: RecipeData


class SearchTable(TypedDict):
    """The search table of a resolved recipe, as far as reports read it."""

    space: dict[str, dict[str, Any]]
    searcher: str
    scheduler: str
    metric: str
    trials: int
    rungs: int
    seed: int


class SearchedRecipe(TypedDict):
    """The recipe of a search, as far as reports read it."""

    search: SearchTable


class Definition(TypedDict):
    """search.json."""

    search_id: str
    created: float
    command: str
    recipe: SearchedRecipe
    tracking: str


class SearchCluster(TypedDict):
    """cluster.json of a search."""

    slots: int
    dashboard: str
    trials: int


class SearchOutcome(TypedDict):
    """outcome.json and earlier.json of a search."""

    search_id: str
    status: str
    seconds: float


class Rung(TypedDict):
    """An entry of the history of a trial."""

    step: int
    objective: float | None
    values: NotRequired[dict[str, float | None]]


class Rungs(TypedDict):
    """rungs.json of a search's trial."""

    history: list[Rung]
    began: float
    loop_seconds: float
    told: float


class TaskSettings(TypedDict):
    """settings.json of a search's trial."""

    kind: str
    number: int
    settings: dict[str, Any]
    seed: int | None
    slot: NotRequired[int | None]
    began: float


class TaskResult(TaskSettings):
    """result.json of a search's trial."""

    status: str
    ended: float
    reason: NotRequired[str]
    objective: NotRequired[float | None]
    second: NotRequired[float | None]
    loop_seconds: NotRequired[float | None]
    host: NotRequired[str | None]
    test: NotRequired[dict[str, dict[str, float | None]] | None]
    course: NotRequired[list[Annotated[tuple[int, dict[str, Any]], ARRAY]]]
    history: list[Rung]


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
