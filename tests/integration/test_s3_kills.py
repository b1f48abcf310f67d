"""Killed in the middle of an upload to a real S3 server: half a checkpoint is none, and nothing of it stays."""

import time
from typing import Any

import psutil
import pytest

from tests import killed
from tests.s3_user import S3User, publish_200_mb, through, wait_for
from workloads.runtime.checkpoint_store import MARKER

pytestmark = pytest.mark.faults


def half_saved(user: S3User) -> str:
    """The name of the one checkpoint that was not finished, which yet has some of its files."""
    (half,) = [name for name, files in user.checkpoints().items() if MARKER not in files]
    return half


def test_killed_in_mid_upload(user, proxy, undisturbed, fault_table):
    proxy.hold_at("step-00000008-attempt-1/vit.safetensors")
    run = user.begin(env=through(proxy))
    wait_for(proxy.held.is_set, run)
    run.kill()
    run.join()
    assert run.exitcode == -9
    half = half_saved(user)
    since = time.time()
    assert user.antiphon("--resume", "r") == 0, user.said
    assert user.outcome["resumed_from_step"] == 4
    repeated = user.steps_repeated()
    assert half not in user.checkpoints()
    user.check_ended_like(undisturbed)
    fault_table(
        fault="S3: run killed (SIGKILL) in mid-upload; then `--resume`",
        seen="nothing; what was uploaded by half is removed",
        seconds=user.went_on(since),
        repeated=repeated,
        equal=True,
    )


def test_killed_in_mid_upload_on_ray(user, proxy, undisturbed, fault_table):
    """Driver, controller, worker and Ray's own processes die while the worker uploads the second checkpoint."""
    proxy.hold_at("step-00000008-attempt-2/vit.safetensors")
    run = user.begin_on_ray(env=through(proxy))
    everybody = [psutil.Process(run.pid)]
    try:
        wait_for(proxy.held.is_set, run)
    finally:
        everybody += everybody[0].children(recursive=True)
        for process in everybody:
            process.kill()
        run.wait()
    psutil.wait_procs(everybody, timeout=10)
    half = half_saved(user)
    since = time.time()
    assert user.begin_on_ray("--resume", "r").wait() == 0, user.said
    repeated = 8 - user.outcome["resumed_from_step"]  # at least: uploads run behind the training
    assert repeated == 4
    assert half not in user.checkpoints()
    user.check_ended_like(undisturbed)
    fault_table(
        fault="S3, on Ray: driver, controller and worker killed in mid-upload; then `--resume`",
        seen="nothing; what was uploaded by half is removed",
        seconds=user.went_on(since),
        repeated=repeated,
        equal=True,
    )


def test_a_large_checkpoint(user, proxy, fault_table):
    """200 MB go up in parts of 50: straight, over a line that breaks, and over one where the process dies."""
    publish(user, step=1, env={})
    straight = user.outcome
    proxy.cut_at("partNumber=2")
    publish(user, step=2, env=through(proxy))
    assert proxy.applied_at
    assert unfinished_uploads(user) == 0
    proxy.hold_at("partNumber=3")
    dying = begin_publishing(user, step=3, env=through(proxy))
    wait_for(proxy.held.is_set, dying)
    dying.kill()
    dying.join()
    assert unfinished_uploads(user) == 1
    publish(user, step=4, env={})
    assert unfinished_uploads(user) == 0
    assert {name: len(files) for name, files in user.checkpoints().items()} == {
        f"step-0000000{step}-attempt-{step}": 3 for step in (1, 2, 4)
    }
    print(f"\n200 MB through CheckpointStore: {straight['up']:.0f} MB/s up, {straight['down']:.0f} MB/s down")
    fault_table(
        fault="S3: 200 MB checkpoint; line cut, and process killed, in mid-upload",
        seen="nothing; that part is repeated, and no parts are left behind",
        equal=True,
    )


def begin_publishing(user: S3User, *, step: int, env: dict[str, str]) -> Any:
    return killed.start_process(publish_200_mb, {**user.env, **env}, f"s3://{user.bucket}/runs/r", user.home, step)


def publish(user: S3User, *, step: int, env: dict[str, str]) -> None:
    process = begin_publishing(user, step=step, env=env)
    process.join()
    assert process.exitcode == 0


def unfinished_uploads(user: S3User) -> int:
    return len(user.server.client().list_multipart_uploads(Bucket=user.bucket).get("Uploads", []))
