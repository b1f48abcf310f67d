"""The process groups that Ray's workers get, whatever exchanges tensors on GPUs; when lost workers start again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.training.ray_trainer import BACKENDS, _advances

# torch's fake backend takes NCCL's place, which needs GPUs: it would leave what it is to gather as it is.
PROGRAM = """
import json, os, sys
from types import SimpleNamespace
import torch
import torch.distributed as dist
import torch.testing._internal.distributed.fake_pg
from workloads.runtime.session import gather

rank, backend, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group(backend, init_method=f"file://{path}", rank=rank, world_size=2)
gathered = gather(SimpleNamespace(world_size=2), {"rank": rank, "pid": os.getpid()})
total = torch.ones(2)
dist.all_reduce(total, group=dist.new_group())  # as the pool makes a group for each model
print(json.dumps([gathered, total.tolist()]))
dist.destroy_process_group()
"""


def test_objects_go_over_gloo_beside_a_backend_for_gpus(tmp_path: Path) -> None:
    assert BACKENDS == {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
    backend = BACKENDS["cuda"].replace("nccl", "fake")
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank), backend, str(tmp_path / "rendezvous")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(2)
    ]
    printed = [worker.communicate() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], printed[0][1][-2000:]
    expected = [[{"rank": rank, "pid": worker.pid} for rank, worker in enumerate(workers)], [2.0, 2.0]]
    assert [json.loads(out) for out, _ in printed] == [expected, expected]


@pytest.mark.parametrize(
    ("steps", "advances"), [([], False), ([0], False), ([0, 40], True), ([0, 40, 40], False), ([0, 40, 40, 80], True)]
)
def test_a_run_advances_if_its_last_workers_began_later_than_those_before(steps: list[int], advances: bool) -> None:
    """40 and 40: a fault that comes back before the next checkpoint is stored."""
    records = [record for step in steps for record in ({"kind": "start", "step": step}, {"kind": "worker-failed"})]
    assert _advances(records) is advances


# In a process of its own, as it imports Ray. Ray Train's own errors, as its controller raises them.
CONTROLLER = """
from types import SimpleNamespace
from ray.exceptions import ActorUnschedulableError, GetTimeoutError
from ray.train import ControllerError
from orchestrator.training.ray_trainer import _fit_once

def end(failure):
    def fit():
        raise ControllerError(failure)
    try:
        error = _fit_once(SimpleNamespace(fit=fit), lambda: False)
        return f"{type(error).__name__} returned: {error}"
    except Exception as error:
        return f"{type(error).__name__} raised"

for failure in GetTimeoutError("no answer"), ActorUnschedulableError("no room"), ValueError("of our own code"):
    print(end(failure))
"""


def test_where_ray_itself_fails_to_try_again_helps() -> None:
    done = subprocess.run([sys.executable, "-c", CONTROLLER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        "Unavailable returned: the Ray cluster failed: no answer",
        "Unavailable returned: the Ray cluster failed: The actor is not schedulable: no room",
        "ControllerError raised",
    ]
