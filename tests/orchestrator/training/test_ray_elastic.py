"""How many workers Ray's controller starts, and when it changes their number, by what it is told of the cluster.

In a process of its own, which may import Ray; a cluster that changes: tests/integration/test_nodes.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import json, time
from types import SimpleNamespace as Some
import ray
from ray.train.v2._internal.execution.scaling_policy import NoopDecision
from ray.train.v2.api.config import ScalingConfig
from orchestrator.training import ray_elastic
from orchestrator.training.worker_resources import WorkerNeeds

cluster = {"a": 4.0, "b": 4.0}  # node -> CPUs that Ray has reserved
free = {"a": {"CPU": 4.0}, "b": {"CPU": 4.0}}
leaving, asked = {}, []
ray.nodes = lambda: [{"NodeID": name, "Alive": True, "Labels": {}} for name in "ab"]
ray._private.state.state.get_draining_nodes = lambda: leaving
ray_elastic.available_resources_per_node = lambda: {name: dict(values) for name, values in free.items()}

class Policy(ray_elastic.DivisorScalingPolicy):
    def _get_reserved_resources(self):
        return {name: {"CPU": cpus} for name, cpus in cluster.items()}

    def _maybe_send_resource_request(self):
        pass

def policy(placement="PACK"):
    config = ScalingConfig(num_workers=(1, 4), resources_per_worker={"CPU": 1}, elastic_resize_monitor_interval_s=0)
    return Policy(config, WorkerNeeds({"CPU": 1.0}, placement=placement), (1, 2, 4))

def started(chosen):
    return chosen.make_decision_for_non_running_worker_group().num_workers

def group(workers):
    members = [Some(execute_async=asked.append, metadata=Some(node_id="a")) for _ in range(workers)]
    return Some(workers=members, num_workers=workers, start_time=time.monotonic())

def polled(*saved):
    said = [{"records": []} | ({ray_elastic.SAVED: True} if rank in saved else {}) for rank in range(2)]
    return Some(worker_statuses={rank: Some(training_report=Some(metrics=each)) for rank, each in enumerate(said)})

def decided(chosen, state, *saved):
    decision = chosen.make_decision_for_running_worker_group(state, polled(*saved))
    return 0 if isinstance(decision, NoopDecision) else decision.num_workers

found = {}
found["eight CPUs"] = started(policy())
cluster.update(a=1.0, b=2.0)
found["three CPUs"] = started(policy())
found["three CPUs, one node"] = started(policy("STRICT_PACK"))
leaving["b"] = 0
found["b leaves"] = started(policy())
leaving.clear()
cluster.clear()
found["none"] = started(policy())
cluster.update(a=4.0, b=4.0)
busy = policy()
free["b"]["CPU"] = free["a"]["CPU"] = 1.0  # others use the rest, of which Ray's reservation does not know
found["first attempt"], found["second attempt"] = started(busy), started(busy)

free["a"]["CPU"], free["b"]["CPU"] = 0.0, 0.0  # two of ours are on a, others on b
growing, two = policy(), group(2)
found["no room to grow"] = [decided(growing, two), len(asked)]
free["b"]["CPU"] = 2.0
found["room"] = [decided(growing, two), [function.__name__ for function in asked]]
found["one has saved"] = decided(growing, two, 1)
found["asked once"] = len(asked)
found["both have"] = decided(growing, two, 0)
found["as many"] = [decided(growing, group(4)), len(asked)]
cluster.clear()
found["fewer than the least"] = [decided(growing, group(2)), len(asked)]
print(json.dumps(found))
"""


def test_the_number_divides_the_shards_and_changes_once_all_workers_have_saved() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "RAY_TRAIN_V2_ENABLED": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "eight CPUs": 4,
        "three CPUs": 2,
        "three CPUs, one node": 2,
        "b leaves": 1,
        "none": 1,
        "first attempt": 4,
        "second attempt": 2,
        "no room to grow": [0, 0],
        "room": [0, ["request_resize"]],
        "one has saved": 0,
        "asked once": 1,
        "both have": 4,
        "as many": [0, 1],
        "fewer than the least": [0, 1],
    }
