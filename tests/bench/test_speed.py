"""What the orchestration costs: `make bench`. Prints numbers and asserts none of them: these machines are shared.

Both doors run the same recipe in turns on the same machine; the ratio of their medians is what can be compared.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workloads.spool import read_spool

ANTIPHON = str(Path(sys.executable).with_name("antiphon"))
PAIRS = 3
SETTINGS = ["schedule.burn_in=60", "schedule.period=30", "schedule.turns=2", "train.eval_every=1000"]

pytestmark = pytest.mark.bench


def measured(folder: Path, *door: str) -> dict[str, float]:
    """One run: optimizer steps per second from its first logged step on, seconds to that, seconds a checkpoint."""
    words = [word for value in SETTINGS for word in ("--set", value)]
    began = time.time()
    command = [ANTIPHON, "run", "demo", "--json", "--tracking", "none", "--storage", str(folder), *door, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    records = read_spool(Path(json.loads(done.stdout)["report"]).parent / "spool.jsonl")
    steps = [record for record in records if record["kind"] == "metrics"]
    seconds = (steps[-1]["t"] - steps[0]["t"]) / 1000
    return {
        "steps/s": (steps[-1]["step"] - steps[0]["step"]) / seconds,
        "first step": steps[0]["t"] / 1000 - began,
        "checkpoint": statistics.median(record["seconds"] for record in records if record["kind"] == "checkpoint"),
    }


def test_ray_against_the_bare_loop(tmp_path, capsys):
    runs: dict[str, list[dict[str, float]]] = {"bare loop": [], "ray, 1 worker": []}
    for _ in range(PAIRS):
        runs["bare loop"].append(measured(tmp_path, "--local"))
        runs["ray, 1 worker"].append(measured(tmp_path))
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
