"""What a real S3 server can do to a run, and what the user sees. Nothing is lost; every run ends with equal bits."""

import subprocess
import time

import pytest

from tests.s3_user import S3User, leaks, through, wait_for
from tests.servers import start_server
from workloads.runtime.checkpoint_store import MARKER
from workloads.runtime.event_log import read_event_log


def check_told(user: S3User) -> None:
    """One line at the end, no traceback, no secret."""
    assert "Traceback" not in user.said
    assert "failed: s3://" in user.last_line
    assert leaks(user.server.env["AWS_SECRET_ACCESS_KEY"], user.home) == []


def check_kept(user: S3User) -> None:
    """There is a checkpoint, and whatever claims to be one is whole."""
    kept = [name for name, files in user.checkpoints().items() if MARKER in files]
    assert kept
    for name in kept:
        user.check_whole(name)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "0" * 40}, "AWS_SECRET_ACCESS_KEY does not belong to this AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "the store does not know this AWS_ACCESS_KEY_ID"),
        ({}, "there is no such bucket, create it first"),
    ],
    ids=["secret", "key", "bucket"],
)
def test_mistakes_are_told_before_anything_starts(user, fault_table, wrong, words):
    storage = f"s3://{user.bucket if wrong else 'no-such-bucket'}/runs"
    assert user.antiphon("--storage", storage, env=wrong) == 2
    assert words in user.last_line
    assert storage in user.last_line
    assert user.said.count("\n") == 1, user.said
    assert user.objects() == []
    assert not user.event_log.exists()
    fault_table(fault=f"S3: wrong {next(iter(wrong), 'bucket')}", seen=f"exit 2 before anything starts: {words}")


def test_a_connection_cut_in_mid_upload(user, proxy, undisturbed, fault_table):
    proxy.cut_at("step-00000004-attempt-1/cnn.safetensors")
    assert user.antiphon(env=through(proxy)) == 0, user.said
    assert proxy.applied_at
    user.check_ended_like(undisturbed)
    fault_table(
        fault="S3: connection cut in mid-upload",
        seen="nothing; that upload is repeated",
        seconds=user.went_on(proxy.applied_at),
        repeated=0,
        equal=True,
    )


@pytest.mark.faults
@pytest.mark.parametrize("name", ["recipe.json", "attempts/1", "checkpoints/step-00000004-attempt-1/COMMITTED.json"])
def test_the_answer_to_an_exclusive_create_gets_lost(user, proxy, undisturbed, name):
    """The store has done it, and refuses the repeated request: what is there already is our own."""
    proxy.lose_answer_to(f"PUT /{user.bucket}/runs/r/{name}")
    assert user.antiphon(env=through(proxy)) == 0, user.said
    assert proxy.applied_at
    user.check_ended_like(undisturbed)


@pytest.mark.faults
def test_a_server_that_is_killed_and_comes_back(user, kill_server, undisturbed, fault_table):
    run = user.begin()
    wait_for(lambda: user.saved() >= 2, run)
    kill_server()
    wait_for(lambda: "trying again" in user.said, run)
    start_server(user.server)
    back = time.time()
    run.join()
    assert run.exitcode == 0, user.said
    user.check_ended_like(undisturbed)
    fault_table(
        fault="S3: all daemons killed (SIGKILL), started again",
        seen="waits: s3://...: Could not connect to the endpoint URL ...; trying again",
        seconds=user.went_on(back),
        repeated=0,
        equal=True,
    )


@pytest.mark.faults
def test_a_server_that_is_killed_and_comes_back_on_ray(user, kill_server, undisturbed, fault_table):
    run = user.begin_on_ray()
    try:
        wait_for(lambda: user.saved() >= 2, run)
        kill_server()
        start_server(user.server)
        back = time.time()
        assert run.wait() == 0, user.said
    finally:
        run.kill()
    user.check_ended_like(undisturbed)
    fault_table(
        fault="S3, on Ray: all daemons killed (SIGKILL), started again",
        seen="nothing; it trains on, uploads wait (seconds: to the end of the run)",
        seconds=max(0.0, ended(user) - back),
        repeated=0,
        equal=True,
    )


def ended(user: S3User) -> float:
    """When the run had its last word (time.time)."""
    return read_event_log(user.event_log)[-1]["t"] / 1000


@pytest.mark.faults
def test_a_server_that_does_not_come_back_in_time(user, kill_server, undisturbed, fault_table):
    run = user.begin("--patience", "2")
    wait_for(lambda: user.saved() >= 2, run)
    kill_server()
    run.join()
    assert run.exitcode == 1
    check_told(user)
    assert "Could not connect" in user.last_line
    start_server(user.server)
    check_kept(user)
    since = time.time()
    assert user.antiphon("--resume", "r") == 0, user.said
    repeated = user.steps_repeated()
    assert repeated <= 8
    user.check_ended_like(undisturbed)
    fault_table(
        fault="S3: gone for longer than --patience; then `--resume`",
        seen="exit 1: failed: s3://...: Could not connect to the endpoint URL ...",
        seconds=user.went_on(since),
        repeated=repeated,
        equal=True,
    )


@pytest.mark.faults
def test_a_request_that_is_never_answered(user, proxy, undisturbed, fault_table):
    proxy.hold_at("step-00000004-attempt-1/cnn.safetensors")
    assert user.antiphon(env=through(proxy)) == 0, user.said
    assert proxy.held.is_set()
    user.check_ended_like(undisturbed)
    fault_table(
        fault="S3: an upload stands still for ever",
        seen="nothing; after 15 s that upload is repeated",
        seconds=user.went_on(proxy.applied_at),
        repeated=0,
        equal=True,
    )


@pytest.mark.faults
def test_slow_answers(user, proxy, undisturbed, fault_table):
    proxy.delay_s = 0.1
    assert user.antiphon(env=through(proxy)) == 0, user.said
    user.check_ended_like(undisturbed)
    fault_table(fault="S3: every answer 0.1 s late", seen="nothing", repeated=0, equal=True)


@pytest.mark.faults
def test_no_space(user, undisturbed, fault_table):
    """There is room for the first checkpoint and half of the second."""
    quota(user, "set", "--max-size", "1800000")
    quota(user, "enable")
    assert user.antiphon() == 1
    check_told(user)
    assert "QuotaExceeded: no space left, the quota is used up" in user.last_line
    assert "trying again" not in user.said
    check_kept(user)
    quota(user, "disable")
    since = time.time()
    assert user.antiphon("--resume", "r") == 0, user.said
    repeated = user.steps_repeated()
    user.check_ended_like(undisturbed)
    fault_table(
        fault="S3: no space (quota); then room and `--resume`",
        seen="exit 1: failed: s3://...: QuotaExceeded: no space left, the quota is used up",
        seconds=user.went_on(since),
        repeated=repeated,
        equal=True,
    )


def quota(user: S3User, action: str, *more: str) -> None:
    conf = ["-c", str(user.server.folder / "rgw" / "ceph.conf")]
    which = ["--quota-scope", "bucket", "--bucket", user.bucket]
    subprocess.run(["radosgw-admin", *conf, "quota", action, *which, *more], check=True, capture_output=True)
