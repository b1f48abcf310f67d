"""recipe.json of a run, as far as what compares runs reads it; of a file that is no recipe errors name the place."""

from typing import Any

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from orchestrator.runs.resume import RECIPE
from orchestrator.storage import object_store


class _Data(TypedDict):
    labels: str
    test_fold: int


class _Optimizer(TypedDict):
    lr: float


class _Arch(TypedDict):
    family: str


class _Model(TypedDict):
    arch: _Arch
    optimizer: _Optimizer
    control_of: str


class _Edge(TypedDict):
    teacher: str
    student: str
    weight: float


class _Train(TypedDict):
    seed: int
    score_test: bool


class RecipeFile(TypedDict):
    """What is read by name; of all else only the values are compared."""

    data: _Data
    models: dict[str, _Model]
    edges: list[_Edge]
    train: _Train


def read_recipe(run_uri: str) -> dict[str, Any] | None:
    """The resolved recipe of a run; None where the folder has none. ValueError where the file is no run's recipe."""
    uri = object_store.join(run_uri, RECIPE)
    if not object_store.exists(uri):
        return None
    recipe: dict[str, Any] = object_store.read_json(uri, RecipeFile)
    return recipe
