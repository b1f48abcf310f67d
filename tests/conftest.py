"""Fixtures for all tests."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.recipes.loader import load_recipe
from tests import small
from workloads.config.recipe import Recipe
from workloads.run import Run, set_up
from workloads.runtime.checkpoint_store import LocalCheckpointStore
from workloads.runtime.event_log import EventLog
from workloads.runtime.opener import LocalFiles, Opener
from workloads.runtime.session import LocalSession

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.pop("RAY_ADDRESS", None)  # a developer's cluster is not where tests run

pytest_plugins = ["tests.servers", "tests.faults", "tests.s3_user", "tests.commands", "tests.tiny_search"]

SMALL_MODELS = {
    "generations": (f"models.cnn0.arch={small.MN}", f"models.vit1.arch={small.VIT}", f"models.cnn1.arch={small.MN}"),
    "frames-demo": (f"models.teacher.arch={small.FRAME_MN}", f"models.student.arch={small.FRAME_MN}"),
    "control-same-family": (f"models.teacher.arch={small.VIT}", f"models.vit.arch={small.VIT}"),
}


def pytest_collection_finish() -> None:
    """Ray reads its tokens once, when it is imported: a test module that imports it breaks those that start a Ray."""
    if "ray" in sys.modules:
        raise pytest.UsageError("a test module imports Ray, itself or by what it imports: import it within a process")


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A home folder for this session: what a run leaves in `~/.cache` must not meet that of an earlier session."""
    os.environ["HOME"] = str(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def esc10() -> Path:
    """A folder of real audio in ESC-50's layout; tests that need it are skipped where it does not exist."""
    default = Path(__file__).parents[1].parent / "shared" / "data" / "esc10"
    folder = Path(os.environ.get("ANTIPHON_ESC10", default))
    if not (folder / "meta" / "esc50.csv").is_file():
        pytest.skip(f"no real audio at {folder}; set ANTIPHON_ESC10 to a folder in ESC-50's layout")
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tests share few cores, and results on one thread are the same on every machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def own_s3_clients() -> None:
    """s3fs keeps clients with the endpoint they were created with: a test must not reach another test's server."""
    if "s3fs" in sys.modules:
        sys.modules["s3fs"].S3FileSystem.clear_instance_cache()


@pytest.fixture
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Recipe]:
    """Any shipped recipe, made small: clips of one second, models of a few thousand weights."""
    cache = tmp_path_factory.getbasetemp() / "clips"

    def make(name: str = "demo", *settings: str) -> Recipe:
        sizes = [*small.SIZES, f"data.cache={cache}", "train.checkpoint_every=100"]
        return load_recipe(name, [*sizes, *(SMALL_MODELS.get(name, small.TWO_MODELS)), *settings])

    return make


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Run]:
    """Set up a run in this process; its event log and checkpoints are in the folder above `run.session.work_dir`.

    With `checkpoints_of` it has the checkpoints of another run, and so resumes it.
    """

    def begin(recipe: Recipe, *, checkpoints_of: Run | None = None, files: Opener | None = None, **options: Any) -> Run:
        folder = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        event_log = EventLog(folder / "events.jsonl")
        store = LocalCheckpointStore(checkpoints_of.session.work_dir.parent if checkpoints_of else folder)
        session = LocalSession(work_dir=folder / "scratch", event_log=event_log, store=store, **options)
        return set_up(recipe, session, files=files or LocalFiles())

    return begin
