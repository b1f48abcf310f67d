"""Faults of a real S3 server during a run, and what the user sees. Nothing is lost; every run ends with equal bits."""

import re
import subprocess
import time

import pytest

from tests.s3_user import S3User, leaks, through, wait_for
from tests.servers import start_server
from workloads.runtime.checkpoint_store import MARKER
from workloads.runtime.event_log import read_event_log


def check_reported(user: S3User) -> None:
    """The last line reports what happened; no traceback is printed, and no file contains the secret."""
    assert "Traceback" not in user.stderr
    assert re.match("(failed|unavailable): s3://", user.last_line)
    assert leaks(user.server.env["AWS_SECRET_ACCESS_KEY"], user.home) == []


def check_committed(user: S3User) -> None:
    """There is a committed checkpoint, and every committed one is intact."""
    committed = [name for name, files in user.checkpoints().items() if MARKER in files]
    assert committed
    for name in committed:
        user.check_intact(name)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "0" * 40}, "AWS_SECRET_ACCESS_KEY does not belong to this AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "the store does not know this AWS_ACCESS_KEY_ID"),
        ({}, "there is no such bucket, create it first"),
    ],
    ids=["secret", "key", "bucket"],
)
def test_mistakes_are_reported_before_anything_starts(user, fault_table, wrong, message):
    storage = f"s3://{user.bucket if wrong else 'no-such-bucket'}/runs"
    assert user.antiphon("--storage", storage, env=wrong) == 2
    assert message in user.last_line
    assert storage in user.last_line
    assert user.stderr.count("\n") == 1, user.stderr
    assert user.objects() == []
    assert not user.event_log.exists()
    fault_table(fault=f"S3: wrong {next(iter(wrong), 'bucket')}", seen=f"exit 2 before anything starts: {message}")


def test_a_connection_cut_during_an_upload(user, proxy, undisturbed, fault_table):
    proxy.cut_at("step-00000004-attempt-1/cnn.safetensors")
    assert user.antiphon(env=through(proxy)) == 0, user.stderr
    assert proxy.applied_at
    user.check_same_result(undisturbed)
    fault_table(
        fault="S3: connection cut during an upload",
        seen="nothing; that upload is repeated",
        seconds=user.seconds_to_next_step(proxy.applied_at),
        repeated=0,
        equal=True,
    )


@pytest.mark.faults
@pytest.mark.parametrize("name", ["recipe.json", "attempts/1", "checkpoints/step-00000004-attempt-1/COMMITTED.json"])
def test_the_answer_to_an_exclusive_create_is_lost(user, proxy, undisturbed, name):
    """The store has created the object and refuses the repeated request: the run recognises the object as its own."""
    proxy.lose_answer_to(f"PUT /{user.bucket}/runs/r/{name}")
    assert user.antiphon(env=through(proxy)) == 0, user.stderr
    assert proxy.applied_at
    user.check_same_result(undisturbed)


@pytest.mark.faults
def test_a_server_that_is_killed_and_restarted(user, kill_server, undisturbed, fault_table):
    run = user.start()
    wait_for(lambda: user.num_checkpoints() >= 2, run)
    kill_server()
    wait_for(lambda: "trying again" in user.stderr, run)
    start_server(user.server)
    restarted_at = time.time()
    run.join()
    assert run.exitcode == 0, user.stderr
    user.check_same_result(undisturbed)
    fault_table(
        fault="S3: all daemons killed (SIGKILL), started again",
        seen="waits: s3://...: Could not connect to the endpoint URL ...; trying again",
        seconds=user.seconds_to_next_step(restarted_at),
        repeated=0,
        equal=True,
    )


@pytest.mark.faults
def test_a_server_that_is_killed_and_restarted_on_ray(user, kill_server, undisturbed, fault_table):
    run = user.start_on_ray()
    try:
        wait_for(lambda: user.num_checkpoints() >= 2, run)
        kill_server()
        start_server(user.server)
        restarted_at = time.time()
        assert run.wait() == 0, user.stderr
    finally:
        run.kill()
    user.check_same_result(undisturbed)
    fault_table(
        fault="S3, on Ray: all daemons killed (SIGKILL), started again",
        seen="nothing; training continues, uploads wait (seconds: to the end of the run)",
        seconds=max(0.0, last_record_time(user) - restarted_at),
        repeated=0,
        equal=True,
    )


def last_record_time(user: S3User) -> float:
    """The time of the run's last record (of time.time)."""
    return read_event_log(user.event_log)[-1]["t"] / 1000


@pytest.mark.faults
def test_a_server_that_is_unavailable_for_too_long(user, kill_server, undisturbed, fault_table):
    run = user.start("--patience", "2")
    wait_for(lambda: user.num_checkpoints() >= 2, run)
    kill_server()
    run.join()
    assert run.exitcode == 75
    check_reported(user)
    assert "Could not connect" in user.last_line
    start_server(user.server)
    check_committed(user)
    resumed_at = time.time()
    assert user.antiphon("--resume", "r") == 0, user.stderr
    repeated = user.steps_repeated()
    assert repeated <= 8
    user.check_same_result(undisturbed)
    fault_table(
        fault="S3: unavailable for longer than `--patience`; then `--resume`",
        seen="exit 75: unavailable: s3://...: Could not connect to the endpoint URL ...",
        seconds=user.seconds_to_next_step(resumed_at),
        repeated=repeated,
        equal=True,
    )


@pytest.mark.faults
def test_a_request_that_is_never_answered(user, proxy, undisturbed, fault_table):
    proxy.hold_at("step-00000004-attempt-1/cnn.safetensors")
    assert user.antiphon(env=through(proxy)) == 0, user.stderr
    assert proxy.held.is_set()
    user.check_same_result(undisturbed)
    fault_table(
        fault="S3: an upload hangs for ever",
        seen="nothing; after 15 s that upload is repeated",
        seconds=user.seconds_to_next_step(proxy.applied_at),
        repeated=0,
        equal=True,
    )


@pytest.mark.faults
def test_slow_answers(user, proxy, undisturbed, fault_table):
    proxy.delay_s = 0.1
    assert user.antiphon(env=through(proxy)) == 0, user.stderr
    user.check_same_result(undisturbed)
    fault_table(fault="S3: every answer 0.1 s late", seen="nothing", repeated=0, equal=True)


@pytest.mark.faults
def test_no_space(user, undisturbed, fault_table):
    """The quota holds the first checkpoint and half of the second."""
    quota(user, "set", "--max-size", "1800000")
    quota(user, "enable")
    assert user.antiphon() == 1
    check_reported(user)
    assert "QuotaExceeded: no space left, the quota is used up" in user.last_line
    assert "trying again" not in user.stderr
    check_committed(user)
    quota(user, "disable")
    resumed_at = time.time()
    assert user.antiphon("--resume", "r") == 0, user.stderr
    repeated = user.steps_repeated()
    user.check_same_result(undisturbed)
    fault_table(
        fault="S3: no space (quota); then room and `--resume`",
        seen="exit 1: failed: s3://...: QuotaExceeded: no space left, the quota is used up",
        seconds=user.seconds_to_next_step(resumed_at),
        repeated=repeated,
        equal=True,
    )


def quota(user: S3User, action: str, *more: str) -> None:
    conf = ["-c", str(user.server.folder / "rgw" / "ceph.conf")]
    which = ["--quota-scope", "bucket", "--bucket", user.bucket]
    subprocess.run(["radosgw-admin", *conf, "quota", action, *which, *more], check=True, capture_output=True)
