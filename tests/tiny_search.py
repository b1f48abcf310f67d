"""Searches by the command line whose trials take a second or two, and their results. A plugin for its fixture."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests import small

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))
PLAN = ("schedule.burn_in=4", "schedule.period=2", "schedule.turns=4")  # 12 steps
RECIPE = """
extends = "demo"
name = "tiny"
[search]
searcher = "random"
scheduler = "asha"
trials = 4
slices = 1
rungs = 3
halving = 2
repeats = 2
[search.space]
"edges.0.weight" = {{ low = 0.1, high = 0.9 }}
"models.vit.optimizer.lr" = {{ low = 1e-4, high = {high}, log = true }}
"""


@pytest.fixture
def searching(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Builds the arguments of `antiphon search` for a recipe whose trials take a second or two."""

    def command(*more: str, high: str = "1e-2") -> list[str]:
        return search_command(tmp_path, tmp_path_factory.getbasetemp() / "clips", *more, high=high)

    return command


def search_command(folder: Path, cache: Path, *more: str, high: str = "1e-2") -> list[str]:
    """A search whose recipe and results lie in a folder."""
    recipe = folder / "tiny.toml"
    recipe.write_text(RECIPE.format(high=high))
    values = [*small.SIZES, *small.TWO_MODELS, *PLAN, f"data.cache={cache}"]
    return [ANTIPHON, "search", str(recipe), "--storage", str(folder / "runs"), *sets(*values), *more]


def sets(*values: str) -> list[str]:
    """`--set` before each value."""
    return [argument for value in values for argument in ("--set", value)]


def run(command: list[str], *, code: int = 0) -> dict[str, Any]:
    """Run the command, which must exit with this code; returns the object that it prints."""
    done = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert done.returncode == code, done.stderr[-3000:]
    return json.loads(done.stdout)


def results(folder: Path, kind: str = "trials") -> dict[str, dict[str, Any]]:
    """The results in a search's folder, by task name."""
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob(f"{kind}/*/result.json"))}


def wait_until_replayed(folder: Path) -> None:
    """Wait for the replayer, which holds this lock while it works and may be behind on a busy machine."""
    with FileLock(folder / "events.jsonl.lock", timeout=240):
        pass


def expected_settings(searching: Any, tmp_path: Path, *more: str) -> dict[str, dict[str, Any]]:
    """The settings that the search tries, by task name."""
    from orchestrator.recipes.loader import load_recipe
    from orchestrator.search.samplers import planned_settings

    command = searching()
    values = [value for argument, value in itertools.pairwise(command) if argument == "--set"] + [*more]
    search = load_recipe(str(tmp_path / "tiny.toml"), values).search
    assert search is not None
    return {f"{number:04}": settings for number, settings in enumerate(planned_settings(search) or [])}
