"""What reporting a run's metrics costs a worker, in an actor of a Ray of its own."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.bench
PROGRAM = """
import json, time
from orchestrator.training.ray_cluster import connect, prepare_environment
address = prepare_environment("")
import ray
connect(ray, address, at_least=1)

@ray.remote
def microseconds(times):
    import torch
    from orchestrator.training.ray_metrics import RunMetrics
    from workloads.runtime.session import StepTimes
    metrics = RunMetrics("bench", 0, torch.device("cpu"))
    losses = {"kind": "metrics", "values": {"cnn/loss": 0.5, "vit/loss": 0.5}}
    step = StepTimes(step=0.3, data_wait=0.01, teacher=0.02, clips=8, exchange={"cnn": 0.1, "vit": 0.1})
    metrics.on_records([losses])
    found = {}
    for name, call in (("step", lambda: metrics.on_step(1, step)), ("refresh", metrics.set_gauges)):
        began = time.thread_time()
        for _ in range(times):
            call()
        found[name] = (time.thread_time() - began) / times * 1e6
    return found

print(json.dumps(ray.get(microseconds.remote(10_000))))
ray.shutdown()
"""


def test_what_a_workers_metrics_cost():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"\nCPU of a worker for its metrics: {found['step']:.1f} us a step, {found['refresh']:.1f} us a second")
