"""Runs killed during an upload to a real S3 server: a partial checkpoint is not used, and its files are removed."""

import time
from typing import Any

import psutil
import pytest

from tests import killed
from tests.s3_user import S3User, publish_200_mb, through, wait_for
from workloads.runtime.checkpoint_store import MARKER

pytestmark = pytest.mark.faults


def partial_checkpoint(user: S3User) -> str:
    """The name of the one checkpoint that has files, but no marker."""
    (partial,) = [name for name, files in user.checkpoints().items() if MARKER not in files]
    return partial


def test_killed_during_an_upload(user, proxy, undisturbed, fault_table):
    proxy.hold_at("step-00000008-attempt-1/vit.safetensors")
    run = user.start(env=through(proxy))
    wait_for(proxy.held.is_set, run)
    run.kill()
    run.join()
    assert run.exitcode == -9
    partial = partial_checkpoint(user)
    resumed_at = time.time()
    assert user.antiphon("--resume", "r") == 0, user.stderr
    assert user.outcome["resumed_from_step"] == 4
    repeated = user.steps_repeated()
    assert partial not in user.checkpoints()
    user.check_same_result(undisturbed)
    fault_table(
        fault="S3: run killed (SIGKILL) during an upload; then `--resume`",
        seen="nothing; the partial upload is removed",
        seconds=user.seconds_to_next_step(resumed_at),
        repeated=repeated,
        equal=True,
    )


def test_killed_during_an_upload_on_ray(user, proxy, undisturbed, fault_table):
    """Driver, controller, worker and Ray's own processes are killed while the worker uploads the second checkpoint."""
    proxy.hold_at("step-00000008-attempt-2/vit.safetensors")
    run = user.start_on_ray(env=through(proxy))
    processes = [psutil.Process(run.pid)]
    try:
        wait_for(proxy.held.is_set, run)
    finally:
        processes += processes[0].children(recursive=True)
        for process in processes:
            process.kill()
        run.wait()
    psutil.wait_procs(processes, timeout=10)
    partial = partial_checkpoint(user)
    resumed_at = time.time()
    assert user.start_on_ray("--resume", "r").wait() == 0, user.stderr
    repeated = 8 - user.outcome["resumed_from_step"]  # a lower bound: training does not wait for uploads
    assert repeated == 4
    assert partial not in user.checkpoints()
    user.check_same_result(undisturbed)
    fault_table(
        fault="S3, on Ray: driver, controller and worker killed during an upload; then `--resume`",
        seen="nothing; the partial upload is removed",
        seconds=user.seconds_to_next_step(resumed_at),
        repeated=repeated,
        equal=True,
    )


def test_a_large_checkpoint(user, proxy, fault_table):
    """200 MB, uploaded in parts of 50: undisturbed, with the connection cut, and with the process killed."""
    publish(user, step=1, env={})
    rates = user.outcome
    proxy.cut_at("partNumber=2")
    publish(user, step=2, env=through(proxy))
    assert proxy.applied_at
    assert num_unfinished_uploads(user) == 0
    proxy.hold_at("partNumber=3")
    process = start_publishing(user, step=3, env=through(proxy))
    wait_for(proxy.held.is_set, process)
    process.kill()
    process.join()
    assert num_unfinished_uploads(user) == 1
    publish(user, step=4, env={})
    assert num_unfinished_uploads(user) == 0
    assert {name: len(files) for name, files in user.checkpoints().items()} == {
        f"step-0000000{step}-attempt-{step}": 3 for step in (1, 2, 4)
    }
    print(f"\n200 MB through CheckpointStore: {rates['up']:.0f} MB/s up, {rates['down']:.0f} MB/s down")
    fault_table(
        fault="S3: 200 MB checkpoint; connection cut, and process killed, during the upload",
        seen="nothing; that part is repeated, and no parts are left behind",
        equal=True,
    )


def start_publishing(user: S3User, *, step: int, env: dict[str, str]) -> Any:
    return killed.start_process(publish_200_mb, {**user.env, **env}, f"s3://{user.bucket}/runs/r", user.home, step)


def publish(user: S3User, *, step: int, env: dict[str, str]) -> None:
    process = start_publishing(user, step=step, env=env)
    process.join()
    assert process.exitcode == 0


def num_unfinished_uploads(user: S3User) -> int:
    return len(user.server.client().list_multipart_uploads(Bucket=user.bucket).get("Uploads", []))
