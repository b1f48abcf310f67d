"""A step under the three placements, and the bytes that it sends: `make bench`. Prints ratios and asserts no time.

The processes have one thread each and exchange over gloo, without Ray: two workers with all models, two with a family
each, one with a server of teachers beside it. Each trains the same global batch; all take turns of a few steps, since
other work on the machine comes and goes.
"""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.planning.cost import model_sizes
from orchestrator.planning.exchange import step_traffic
from orchestrator.recipes.loader import load_recipe
from workloads.distill.schedule import plan_phases

pytestmark = pytest.mark.bench

TURNS, STEPS, TAGS = 6, 3, 10
BOTH = "both learn"
ONE = "one teaches"
SETTINGS = {BOTH: ["schedule.burn_in=0"], ONE: ["schedule.teacher_steps=1", "schedule.steps=1000"]}
RECIPES = {BOTH: "mutual", ONE: "one-way"}
PLACEMENTS = {BOTH: ("colocated", "split"), ONE: ("colocated", "split", "service")}

WORKER = """
import json, sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from orchestrator.recipes.loader import load_recipe
from tests.placed import ServersInProcesses
from workloads.runtime.checkpoint_store import LocalCheckpointStore
from workloads.runtime.event_log import EventLog
from workloads.runtime.opener import LocalFiles
from workloads.runtime.session import LocalSession
from workloads.run import set_up
from workloads.train_step import train_step

if __name__ == "__main__":
    rank, workers, folder, name = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    recipe, own = load_recipe(name, json.loads(sys.argv[5])), folder / str(rank)
    log = EventLog(own / "events.jsonl")
    session = LocalSession(work_dir=own / "work", event_log=log, store=LocalCheckpointStore(own))
    session.rank, session.world_size = rank, workers
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=workers)
    if recipe.placement == "service":
        session.teachers = ServersInProcesses(recipe)
    run = set_up(recipe, session, files=LocalFiles())
    phase = run.phases[-1]
    run.step = phase.start
    sources = run.pool.enter_phase(phase)
    print("ready", flush=True)
    for line in sys.stdin:
        began, worked = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            train_step(run, phase, sources)
            run.step += 1
        seconds, worked = time.perf_counter() - began, time.process_time() - worked
        passed = run.pool.exchange.bytes_sent + (run.pool.answers.bytes_received if run.pool.answers else 0)
        print(json.dumps([seconds, worked, passed / (run.step - phase.start)]), flush=True)
    if session.teachers:
        session.teachers.close()
"""


class Group:
    """The workers of one placement, which train when they are told to."""

    def __init__(self, folder: Path, recipe: str, settings: list[str]) -> None:
        folder.mkdir()
        script = folder / "worker.py"
        script.write_text(WORKER)
        workers = 1 if "placement=service" in settings else 2
        self._processes = [
            subprocess.Popen(
                [sys.executable, str(script), str(rank), str(workers), str(folder), recipe, json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={
                    **os.environ,
                    "PYTHONPATH": str(Path(__file__).parents[2]),
                    "GLOO_SOCKET_IFNAME": "lo",
                    "OMP_NUM_THREADS": "1",
                },
            )
            for rank in range(workers)
        ]
        self._answers("ready")

    def _answers(self, expected: str = "") -> list[Any]:
        lines = [process.stdout.readline() for process in self._processes if process.stdout]
        return [] if expected else [json.loads(line) for line in lines]

    def train(self, steps: int) -> tuple[float, float, float]:
        """Of a step: its seconds, the CPU seconds of the busiest worker, the bytes passed between the processes."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
        seconds, worked, passed = zip(*self._answers(), strict=True)
        return max(seconds) / steps, max(worked) / steps, sum(passed)

    def close(self) -> None:
        for process in self._processes:
            process.communicate()


@pytest.mark.parametrize("roles", RECIPES)
def test_placements(tmp_path: Path, roles: str) -> None:
    common = [*SETTINGS[roles], "compare=false", "train.shards=2", "train.threads=1", f"data.cache={tmp_path}/clips"]
    recipe = load_recipe(RECIPES[roles], common)
    sizes = model_sizes(recipe, tags=TAGS)
    gradients = step_traffic(recipe, plan_phases(recipe)[-1], sizes).num_bytes  # two workers: each sends that much
    groups = {
        placement: Group(tmp_path / placement, RECIPES[roles], [*common, f"placement={placement}"])
        for placement in PLACEMENTS[roles]
    }
    times: dict[str, list[tuple[float, float]]] = {placement: [] for placement in groups}
    passed: dict[str, float] = {}
    for turn in range(TURNS + 1):
        for placement, group in groups.items():
            seconds, worked, passed[placement] = group.train(STEPS)
            if turn:  # the first one warms up
                times[placement].append((seconds, worked))
    for group in groups.values():
        group.close()
    passed["colocated"] = 2 * gradients
    print()
    for placement, own in times.items():
        said = [f"{passed[placement]:,.0f} bytes a step"]
        for what, number in (("seconds", 0), ("CPU seconds of the busiest worker", 1)):
            ratios = [one[number] / other[number] for one, other in zip(own, times["colocated"], strict=True)]
            median = statistics.median(one[number] for one in own)
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            said.append(f"{median:.3f} {what}, {statistics.median(ratios):.2f} of colocated's ({spread})")
        print(f"{roles}: {placement}: {'; '.join(said)}")
    edges, clips = plan_phases(recipe)[-1].edges, recipe.train.batch_size
    assert passed["split"] == len(edges) * clips * TAGS * 4
