"""What `antiphon plan --cluster` predicts for 1, 2 and 4 workers on this machine, beside what they reach: `make bench`.

Prints ratios and asserts no time. The workers are processes of one thread each that exchange over gloo, without Ray,
and train the same steps of `mutual` with its own models. Groups of 1, 2 and 4 take turns of a few steps, since other
work on the machine comes and goes. The inputs of the model are measured too: rate and spread with one worker, what a
step takes whatever its clips from the same worker with half of them, bandwidth and latency of gloo with two.
"""

import itertools
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.spec_nodes import Workers
from cluster.spec_speed import Speed, StorageSpeed
from orchestrator.planning.cost import count_clips, learn_and_teach_flops, model_sizes, plan_cost
from orchestrator.planning.exchange import GBIT
from orchestrator.planning.fetching import Source
from orchestrator.planning.scale import Cluster, ScaleModel
from orchestrator.recipes.loader import load_recipe
from workloads.config.recipe import Recipe
from workloads.distill.schedule import plan_phases
from workloads.runtime.opener import LocalFiles

pytestmark = pytest.mark.bench

TURNS, STEPS, SHARDS = 10, 5, 4
WORKERS, HALF = (1, 2, 4), 0  # the group HALF: one worker with half of the shards

WORKER = """
import json, sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from orchestrator.recipes.loader import load_recipe
from workloads.runtime.checkpoint_store import LocalCheckpointStore
from workloads.runtime.event_log import EventLog
from workloads.runtime.opener import LocalFiles
from workloads.runtime.session import LocalSession
from workloads.run import set_up
from workloads.train_step import train_step

rank, workers, folder, settings = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4])
own = folder / str(rank)

def steps(run, sources, number):
    ends = [(time.perf_counter(), time.process_time())]
    for _ in range(number):
        train_step(run, run.phases[0], sources)
        run.step += 1
        ends.append((time.perf_counter(), time.process_time()))
    return ends

def all_reduce_seconds(numbers, repeats=50):
    tensor = torch.ones(numbers)
    dist.all_reduce(tensor)
    began = time.perf_counter()
    for _ in range(repeats):
        dist.all_reduce(tensor)
    return (time.perf_counter() - began) / repeats

with EventLog(own / "events.jsonl") as log:
    session = LocalSession(work_dir=own / "work", event_log=log, store=LocalCheckpointStore(own))
    session.rank, session.world_size = rank, workers
    if workers > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=workers)
    run = set_up(load_recipe("mutual", settings), session, files=LocalFiles())
    sources = run.pool.enter_phase(run.phases[0])
    for line in sys.stdin:  # "steps N", "reduce"
        what, *number = line.split()
        found = steps(run, sources, int(number[0])) if what == "steps" else [all_reduce_seconds(n) for n in (1, 2**20)]
        print(json.dumps(found), flush=True)
"""


class Group:
    """Workers of one run, which do what they are told and wait for it without using a processor."""

    def __init__(self, workers: int, folder: Path, settings: list[str]) -> None:
        folder.mkdir()
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(rank), str(workers), str(folder), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[2],
                env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            )
            for rank in range(workers)
        ]

    def ask(self, line: str) -> list[Any]:
        """What each worker answers."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(line + "\n")
            process.stdin.flush()
        return [json.loads(process.stdout.readline()) for process in self._processes if process.stdout]

    def steps(self) -> "Turn":
        return Turn(self.ask(f"steps {STEPS}"))

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


class Turn:
    """The seconds of some steps of a group."""

    def __init__(self, found: list[list[list[float]]]) -> None:
        self.wall, self.busy = (_slowest(found, clock) for clock in (0, 1))


def _slowest(found: list[list[list[float]]], clock: int) -> list[float]:
    """Of each step: seconds of the wall's clock (0), or of the processor (1), of the worker with the most."""
    of_worker = [[end[clock] for end in ends] for ends in found]
    taken = [[later - earlier for earlier, later in itertools.pairwise(ends)] for ends in of_worker]
    return [max(seconds) for seconds in zip(*taken, strict=True)]


def settings_of(folder: Path, shards: int, clips: int) -> list[str]:
    """`mutual` with its own models and batches of so many shards of so many clips."""
    plan = ["schedule.burn_in=0", "schedule.steps=1000", "schedule.ramp=0", "compare=false"]
    train = [f"train.shards={shards}", f"train.shard_size={clips}", "train.threads=1"]
    return [*plan, *train, f"data.cache={folder}/clips"]


def predicted_step(recipe: Recipe, workers: int, speed: Speed, cores: int) -> float:
    """Seconds of a step; workers that share a core have so much less of it. Reading is in the measured rate."""
    phases = plan_phases(recipe)
    clips = count_clips(recipe, LocalFiles(), clips=None, tags=None)
    sizes = model_sizes(recipe, tags=clips.tags)
    share = min(1.0, cores / workers)
    speed = Speed(**vars(speed) | {"tflops": speed.tflops * share, "optimizer_ms": speed.optimizer_ms / share})
    nodes = Workers(cpus=cores, memory_gb=8, min=1, max=1, speed=speed)
    cluster = Cluster(group="here", nodes=nodes, storage=StorageSpeed(), tflops=speed.tflops, per_node=workers)
    source = Source(clips=clips.train, num_bytes=0, cache_bytes=1e9)
    (row,) = ScaleModel(recipe, phases, sizes, plan_cost(recipe, phases, clips, sizes), cluster, source).rows(
        (workers,)
    )
    assert row.seconds_per_step is not None
    return row.seconds_per_step


def measured_speed(recipe: Recipe, alone: list[Turn], half: list[Turn], small: float, large: float) -> Speed:
    """The model's inputs: from one worker's turns with all and with half of the shards, and from all-reduces of two.

    `small` and `large` are the seconds of one over 4 bytes and over 4 MiB. A step's seconds are a line over its shards,
    whose start is told by processor times: other work on the machine changes them little.
    """
    clips = count_clips(recipe, LocalFiles(), clips=None, tags=None)
    flops = sum(learn_and_teach_flops(recipe, plan_phases(recipe)[0], model_sizes(recipe, tags=clips.tags)))
    steps = [seconds for turn in alone for seconds in turn.wall]
    whole, less = (statistics.median(sum(turn.busy) for turn in turns) for turns in (alone, half))
    fixed = max(0.0, 2 * less / whole - 1) * statistics.median(steps)
    return Speed(
        tflops=flops / (statistics.median(steps) - fixed) / 1e12,
        optimizer_ms=1000 * fixed,
        spread=math.sqrt(math.expm1(statistics.variance(map(math.log, steps)))),
        load_ms=0,
        disk_mb_s=1e9,
        local_gbps=4 * 2**20 / max(1e-9, large - small) / GBIT,  # two rounds of half the bytes
        latency_us=1e6 * small / 2,  # two rounds
    )


@pytest.mark.parametrize("clips", [8, 16, 32])
def test_predicted_against_measured_speed_up(clips: int, tmp_path: Path, capsys: Any) -> None:
    settings, cores = settings_of(tmp_path, SHARDS, clips), len(os.sched_getaffinity(0))
    recipe, loads = load_recipe("mutual", settings), [os.getloadavg()[0]]
    groups = {workers: Group(workers, tmp_path / str(workers), settings) for workers in WORKERS}
    groups[HALF] = Group(1, tmp_path / "half", settings_of(tmp_path, SHARDS // 2, clips))
    try:
        for group in groups.values():
            group.steps()  # warms up
        turns = [{workers: group.steps() for workers, group in groups.items()} for _ in range(TURNS)]
        small, large = groups[2].ask("reduce")[0]
    finally:
        for group in groups.values():
            group.close()
    loads.append(os.getloadavg()[0])
    speed = measured_speed(recipe, [turn[1] for turn in turns], [turn[HALF] for turn in turns], small, large)
    planned = {workers: predicted_step(recipe, workers, speed, cores) for workers in WORKERS}
    alone = statistics.median(seconds for turn in turns for seconds in turn[1].wall)
    with capsys.disabled():
        print(f"\nmutual, batches of {SHARDS} x {clips} clips, one thread a worker, {cores} cores, load {loads}")
        print(
            f"  one worker: {alone:.3f} s a step, {speed.tflops * 1000:.1f} GFLOP/s, {speed.optimizer_ms:.1f} ms "
            f"whatever its clips, spread {speed.spread:.2f}; gloo: {speed.local_gbps:.1f} Gbit/s, "
            f"{speed.latency_us:.0f} us"
        )
        print(f"  speed-up predicted; measured, quartiles of {TURNS} turns; the same by the workers' processor time")
        for workers in WORKERS[1:]:
            wall = [sum(turn[1].wall) / sum(turn[workers].wall) for turn in turns]
            busy = [sum(turn[1].busy) / sum(turn[workers].busy) for turn in turns]
            columns = (", ".join(f"{value:.2f}" for value in statistics.quantiles(column)) for column in (wall, busy))
            print(f"  {workers} workers: {planned[1] / planned[workers]:.2f}; {'; '.join(columns)}")
    assert all(seconds > 0 for turn in turns for group in turn.values() for seconds in group.wall)
