"""The shapes of a search's files, as far as `store.py` and reports read them; which file is which: `store.py`."""

from typing import Annotated, Any, Literal, NotRequired

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from workloads.runtime.json_files import ARRAY


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
    options: NotRequired[str]
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

    status: Literal["done", "stopped", "failed"]
    reason: str
    ended: float
    objective: float | None
    second: float | None
    loop_seconds: float
    host: str
    test: NotRequired[dict[str, dict[str, float | None]] | None]
    course: list[Annotated[tuple[int, dict[str, Any]], ARRAY]]
    history: list[Rung]
