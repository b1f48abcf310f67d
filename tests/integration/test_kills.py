"""A run killed with SIGKILL at any instant and resumed ends with the same bits as an uninterrupted one."""

import random
from pathlib import Path

import pytest

from tests import small
from tests.faults import recovery
from tests.killed import POINTS, Kill, antiphon, outcome
from workloads.runtime.event_log import read_event_log

TOTAL = 36
PLAN = ["schedule.burn_in=12", "schedule.period=12", "schedule.turns=2", "train.checkpoint_every=5"]
STATEFUL = ["edges.0.source=ema", "edges.1.source=snapshot", "models.cnn.arch.dropout=0.2"]  # state beyond the weights
MAX_COUNT = {  # the largest `Kill.count` that is drawn for a point
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
    values = [*small.SIZES, *small.TWO_MODELS, *PLAN, *STATEFUL, f"data.cache={tmp_path_factory.mktemp('clips')}"]
    return ["run", "demo", "--local", "--json", "--tracking", "none", *(word for v in values for word in ("--set", v))]


@pytest.fixture(scope="module")
def uninterrupted(command, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("whole")
    assert antiphon([*command, "--storage", str(folder)], folder / "out") == 0
    return outcome(folder / "out")


def kill_repeatedly(command: list[str], uninterrupted: dict, folder: Path, *, seed: int, kills: int) -> int:
    """Kill a run up to `kills` times at random points, resume it, compare its end; returns the number of kills."""
    draw = random.Random(seed)
    folder.mkdir(exist_ok=True)
    where = ["--storage", str(folder / "runs"), "--resume", "auto"]
    num_kills = 0
    while num_kills < kills:
        point = draw.choice(POINTS)
        code = antiphon([*command, *where], folder / "out", Kill(point, draw.randint(1, MAX_COUNT[point])))
        if code == 0:  # it finished before it reached that point
            break
        assert code == -9, (folder / "out.err").read_text()
        num_kills += 1
    assert antiphon([*command, *where[:2], "--resume", run_id_in(folder)], folder / "out") == 0
    check_equal(outcome(folder / "out"), uninterrupted)
    return num_kills


def run_id_in(folder: Path) -> str:
    (run,) = [path.name for path in (folder / "runs").glob("[!.]*")]
    return run


def check_equal(result: dict, uninterrupted: dict) -> None:
    assert result["status"] == "done"
    assert result["resumed_from_step"] + result["steps_run"] == TOTAL
    for name, row in uninterrupted["models"].items():
        assert result["models"][name] | {"checkpoint": ""} == row | {"checkpoint": ""}
    records = read_event_log(Path(result["report"]).parent / "events.jsonl")
    steps = {record["step"] for record in records if record["kind"] == "metrics"}
    assert steps == set(range(1, TOTAL + 1))
    committed = {path.name for path in (Path(result["report"]).parent / "checkpoints").glob("*/COMMITTED.json")}
    assert committed


@pytest.mark.faults
def test_killed_at_random_points(command, uninterrupted, tmp_path, fault_table):
    kills = 30
    num_kills, seed = 0, kills
    while num_kills < kills:  # a run may finish before it reaches its last kill point
        num_kills += kill_repeatedly(
            command, uninterrupted, tmp_path / str(seed), seed=seed, kills=min(3, kills - num_kills)
        )
        seed += 1
    assert num_kills == kills  # each run was compared with the uninterrupted one at its end
    fault_table(
        fault=f"process killed {kills} times: mid-step, mid-line, mid-file, around the marker",
        seen="nothing; `--resume auto` continues",
        **recovery(tmp_path / str(seed - 1) / "runs" / run_id_in(tmp_path / str(seed - 1)) / "events.jsonl"),
        equal=True,
    )


@pytest.mark.parametrize(("point", "count"), [("half-part", 8), ("remove", 1), ("finish", 2)])
def test_killed_at_the_worst_moments(command, uninterrupted, tmp_path, point, count):
    """While a file is copied; between removing a marker and its folder; once one of two models is delivered."""
    where = ["--storage", str(tmp_path / "runs")]
    assert antiphon([*command, *where], tmp_path / "out", Kill(point, count)) == -9
    assert antiphon([*command, *where, "--resume", run_id_in(tmp_path)], tmp_path / "out") == 0
    result = outcome(tmp_path / "out")
    assert result["resumed_from_step"] > 0
    check_equal(result, uninterrupted)
    checkpoints = Path(result["report"]).parent / "checkpoints"
    assert all((path / "COMMITTED.json").is_file() for path in checkpoints.iterdir())  # no garbage is left
