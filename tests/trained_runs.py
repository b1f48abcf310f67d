"""Runs that are trained in the test's process, and what is read of them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from orchestrator.training import driver
from orchestrator.training.request import RunRequest
from workloads.config.recipe import Recipe
from workloads.models.profiles import TimeGrid
from workloads.run import Run
from workloads.train import advance


@contextmanager
def no_progress(location: Any) -> Iterator[None]:
    """For drivers: nothing of a run is shown."""
    yield


def run_once(recipe: Recipe, storage: Path, run_id: str) -> Path:
    """The folder of a finished run of a recipe, by the driver in this process; trained where it is not there yet."""
    if not (storage / run_id).exists():
        request = RunRequest(
            recipe, "antiphon run demo", storage=str(storage), tracking="none", local=True, run_id=run_id
        )
        driver.run(request, show_progress=no_progress, warn=print)
    return storage / run_id


def values(run: Run) -> list[dict[str, float]]:
    """The values of each record of metrics of a run in this process."""
    records = (run.session.work_dir / "events.jsonl").read_text().splitlines()
    return [record["values"] for record in map(json.loads, records) if record["kind"] == "metrics"]


def trained(run: Run, name: str = "cnn") -> dict[str, Tensor]:
    """All tensors of a model's training state after the run's steps."""
    for _ in advance(run):
        pass
    return {key: tensor.clone() for key, tensor in run.pool.train_state(name).tensors().items()}


def grid(count: int, seconds: float = 1.0, first: float = 0.0) -> TimeGrid:
    """So many equal steps of a clip of so many seconds."""
    return TimeGrid(first, seconds / count, count)
