"""What the orchestration costs: `make bench`. Prints numbers and asserts none: these machines are shared.

With `--local` and on Ray the same recipe runs in turns on the same machine; compare the ratio of the medians.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workloads.runtime.event_log import read_event_log

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))
PAIRS = 3
SETTINGS = ["compare=false", "schedule.burn_in=60", "schedule.period=30", "schedule.turns=2", "train.eval_every=1000"]

pytestmark = pytest.mark.bench


def records_of(arguments: list[str], folder: Path, *, env: dict[str, str] | None = None) -> list[dict]:
    """The records of one run, whose files are below `folder`."""
    command = [ANTIPHON, "run", *arguments, "--json", "--tracking", "none"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **(env or {}), "HOME": str(folder)}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (event_log,) = folder.rglob(f"{json.loads(done.stdout)['run_id']}/events.jsonl")
    return read_event_log(event_log)


def measure_run(folder: Path, *mode: str) -> dict[str, float]:
    """A run's optimizer steps per second after its first logged step, seconds until that step, and per checkpoint."""
    words = [word for value in SETTINGS for word in ("--set", value)]
    started = time.time()
    records = records_of(["demo", "--storage", str(folder / "runs"), *mode, *words], folder)
    steps = [record for record in records if record["kind"] == "metrics"]
    seconds = (steps[-1]["t"] - steps[0]["t"]) / 1000
    return {
        "steps/s": (steps[-1]["step"] - steps[0]["step"]) / seconds,
        "first step": steps[0]["t"] / 1000 - started,
        "checkpoint": statistics.median(record["seconds"] for record in records if record["kind"] == "checkpoint"),
    }


def test_ray_against_the_bare_loop(tmp_path, capsys):
    runs: dict[str, list[dict[str, float]]] = {"bare loop": [], "ray, 1 worker": []}
    for _ in range(PAIRS):
        runs["bare loop"].append(measure_run(tmp_path, "--local"))
        runs["ray, 1 worker"].append(measure_run(tmp_path))
    medians = {
        name: {key: statistics.median(run[key] for run in several) for key in several[0]}
        for name, several in runs.items()
    }
    ratio = medians["ray, 1 worker"]["steps/s"] / medians["bare loop"]["steps/s"]
    with capsys.disabled():
        print(f"\nmedians of {PAIRS} runs in turns")
        for name, row in medians.items():
            print(
                f"  {name:14} {row['steps/s']:6.2f} optimizer steps/s   first step after {row['first step']:5.1f} s"
                f"   checkpoint {row['checkpoint'] * 1000:.0f} ms"
            )
        print(f"  ratio of steps/s, ray to bare: {ratio:.3f}")
    assert all(run["steps/s"] > 0 for several in runs.values() for run in several)


def test_checkpoints_on_an_object_store(rgw_server, tmp_path, capsys):
    """The mutual recipe's one long phase, with a checkpoint every 40 steps and with one at its end, in turns."""
    rgw_server.client().create_bucket(Bucket="bench")
    steady = ["compare=false", "schedule.burn_in=0", "schedule.steps=240", "train.log_every=1", "train.eval_every=1000"]
    where = ["mutual", "--local", "--storage", "s3://bench/runs", *(word for v in steady for word in ("--set", v))]
    taken: dict[int, list[float]] = {40: [], 240: []}
    pauses: list[float] = []
    for _ in range(PAIRS):
        for every, seconds in taken.items():
            records = records_of([*where, "--set", f"train.checkpoint_every={every}"], tmp_path, env=rgw_server.env)
            at = [
                record["t"] / 1000
                for record in records
                if record["kind"] == "metrics" and "cnn/loss" in record["values"]
            ]
            assert len(at) == 240
            seconds.append(at[-1] - at[0])
            gaps = [later - earlier for earlier, later in itertools.pairwise(at)]
            saved = [record["step"] for record in records if record["kind"] == "checkpoint" and record["step"] < 240]
            pauses += [gaps[step - 1] - statistics.median(gaps) for step in saved]
    ratios = [often / once for often, once in zip(taken[40], taken[240], strict=True)]
    with capsys.disabled():
        print(
            f"\n240 steps with 5 checkpoints on S3 against none: "
            f"median ratio of {PAIRS} pairs {statistics.median(ratios):.3f}"
        )
        print(f"  all {[round(ratio, 3) for ratio in ratios]}, longest single pause {max(pauses) * 1000:.0f} ms")
