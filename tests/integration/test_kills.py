"""A run killed with SIGKILL at any instant and resumed ends with the bits of one that was never interrupted."""

import random
from pathlib import Path

import pytest

from tests import small
from tests.faults import recovery
from tests.killed import POINTS, Kill, antiphon, outcome
from workloads.runtime.event_log import read_event_log

TOTAL = 36
PLAN = ["schedule.burn_in=12", "schedule.period=12", "schedule.turns=2", "train.checkpoint_every=5"]
HARD = ["edges.0.source=ema", "edges.1.source=snapshot", "models.cnn.arch.dropout=0.2"]  # state beyond the weights
MOST = {
    "step": 40,
    "event-log": 60,
    "part": 40,
    "half-part": 40,
    "before-marker": 8,
    "after-marker": 8,
    "remove": 5,
    "finish": 2,
}


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    values = [*small.SIZES, *small.TWO_MODELS, *PLAN, *HARD, f"data.cache={tmp_path_factory.mktemp('clips')}"]
    return ["run", "demo", "--local", "--json", "--tracking", "none", *(word for v in values for word in ("--set", v))]


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("whole")
    assert antiphon([*command, "--storage", str(folder)], folder / "out") == 0
    return outcome(folder / "out")


def killed_again_and_again(command: list[str], whole: dict, folder: Path, *, seed: int, kills: int) -> int:
    """Kill one run `kills` times at random points, then let it end; returns the steps that were done twice."""
    draw = random.Random(seed)
    folder.mkdir(exist_ok=True)
    where = ["--storage", str(folder / "runs"), "--resume", "auto"]
    died = 0
    while died < kills:
        point = draw.choice(POINTS)
        code = antiphon([*command, *where], folder / "out", Kill(point, draw.randint(1, MOST[point])))
        if code == 0:  # it was done before it came to that point
            break
        assert code == -9, (folder / "out.err").read_text()
        died += 1
    assert antiphon([*command, *where[:2], "--resume", the_run(folder)], folder / "out") == 0
    check_equal(outcome(folder / "out"), whole)
    return died


def the_run(folder: Path) -> str:
    (run,) = [path.name for path in (folder / "runs").iterdir()]
    return run


def check_equal(ended: dict, whole: dict) -> None:
    assert ended["status"] == "done"
    assert ended["resumed_from_step"] + ended["steps_run"] == TOTAL
    for name, row in whole["models"].items():
        assert ended["models"][name] | {"checkpoint": ""} == row | {"checkpoint": ""}
    records = read_event_log(Path(ended["report"]).parent / "events.jsonl")
    steps = {record["step"] for record in records if record["kind"] == "metrics"}
    assert steps == set(range(1, TOTAL + 1))
    left = {path.name for path in (Path(ended["report"]).parent / "checkpoints").glob("*/COMMITTED.json")}
    assert left


@pytest.mark.parametrize("kills", [5, pytest.param(30, marks=pytest.mark.faults)])
def test_killed_at_random_points(command, whole, tmp_path, kills, fault_table):
    died, seed = 0, kills
    while died < kills:  # a run may be done before it comes to its last killing point
        died += killed_again_and_again(command, whole, tmp_path / str(seed), seed=seed, kills=min(3, kills - died))
        seed += 1
    assert died == kills  # each run was compared with the whole one at its end
    fault_table(
        fault=f"process killed {kills} times: mid-step, mid-line, mid-file, around the marker",
        seen="nothing; `--resume auto` goes on",
        **recovery(tmp_path / str(seed - 1) / "runs" / the_run(tmp_path / str(seed - 1)) / "events.jsonl"),
        equal=True,
    )


@pytest.mark.parametrize(("point", "count"), [("half-part", 8), ("remove", 1), ("finish", 2)])
def test_killed_at_the_worst_moments(command, whole, tmp_path, point, count):
    """In the middle of a file, between a marker's removal and its folder's, after one model of two was delivered."""
    where = ["--storage", str(tmp_path / "runs")]
    assert antiphon([*command, *where], tmp_path / "out", Kill(point, count)) == -9
    assert antiphon([*command, *where, "--resume", the_run(tmp_path)], tmp_path / "out") == 0
    ended = outcome(tmp_path / "out")
    assert ended["resumed_from_step"] > 0
    check_equal(ended, whole)
    checkpoints = Path(ended["report"]).parent / "checkpoints"
    assert all((path / "COMMITTED.json").is_file() for path in checkpoints.iterdir())  # no garbage is left
