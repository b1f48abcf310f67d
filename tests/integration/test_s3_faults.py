"""What a real S3 server can do to a run, and what the user sees. Nothing is lost; every run ends with equal bits."""

import subprocess
import time

import pytest

from tests.s3_user import Desk, leaks, through, wait_for
from tests.servers import start_server
from workloads.runtime.event_log import read_spool
from workloads.runtime.opener import MARKER


def check_told(desk: Desk) -> None:
    """One line at the end, no traceback, no secret."""
    assert "Traceback" not in desk.said
    assert "failed: s3://" in desk.last_line
    assert leaks(desk.server.env["AWS_SECRET_ACCESS_KEY"], desk.home) == []


def check_kept(desk: Desk) -> None:
    """There is a checkpoint, and whatever claims to be one is whole."""
    kept = [name for name, files in desk.checkpoints().items() if MARKER in files]
    assert kept
    for name in kept:
        desk.check_whole(name)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "0" * 40}, "AWS_SECRET_ACCESS_KEY does not belong to this AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "the store does not know this AWS_ACCESS_KEY_ID"),
        ({}, "there is no such bucket, create it first"),
    ],
    ids=["secret", "key", "bucket"],
)
def test_mistakes_are_told_before_anything_starts(desk, fault_table, wrong, words):
    storage = f"s3://{desk.bucket if wrong else 'no-such-bucket'}/runs"
    assert desk.antiphon("--storage", storage, env=wrong) == 2
    assert words in desk.last_line
    assert storage in desk.last_line
    assert desk.said.count("\n") == 1, desk.said
    assert desk.objects() == []
    assert not desk.spool.exists()
    fault_table(fault=f"S3: wrong {next(iter(wrong), 'bucket')}", seen=f"exit 2 before anything starts: {words}")


def test_a_connection_cut_in_mid_upload(desk, proxy, undisturbed, fault_table):
    proxy.cut_at("step-00000004-attempt-1/cnn.safetensors")
    assert desk.antiphon(env=through(proxy)) == 0, desk.said
    assert proxy.closed_at
    desk.check_ended_like(undisturbed)
    fault_table(
        fault="S3: connection cut in mid-upload",
        seen="nothing; that upload is repeated",
        seconds=desk.went_on(proxy.closed_at),
        repeated=0,
        equal=True,
    )


@pytest.mark.faults
@pytest.mark.parametrize("name", ["recipe.json", "attempts/1", "checkpoints/step-00000004-attempt-1/COMMITTED.json"])
def test_the_answer_to_an_exclusive_create_gets_lost(desk, proxy, undisturbed, name):
    """The store has done it, and refuses the repeated request: what is there already is our own."""
    proxy.lose_answer_to(f"PUT /{desk.bucket}/runs/r/{name}")
    assert desk.antiphon(env=through(proxy)) == 0, desk.said
    assert proxy.closed_at
    desk.check_ended_like(undisturbed)


@pytest.mark.faults
def test_a_server_that_is_killed_and_comes_back(desk, kill_server, undisturbed, fault_table):
    run = desk.begin()
    wait_for(lambda: desk.saved() >= 2, run)
    kill_server()
    wait_for(lambda: "trying again" in desk.said, run)
    start_server(desk.server)
    back = time.time()
    run.join()
    assert run.exitcode == 0, desk.said
    desk.check_ended_like(undisturbed)
    fault_table(
        fault="S3: all daemons killed (SIGKILL), started again",
        seen="waits: s3://...: Could not connect to the endpoint URL ...; trying again",
        seconds=desk.went_on(back),
        repeated=0,
        equal=True,
    )


@pytest.mark.faults
def test_a_server_that_is_killed_and_comes_back_on_ray(desk, kill_server, undisturbed, fault_table):
    run = desk.begin_on_ray()
    try:
        wait_for(lambda: desk.saved() >= 2, run)
        kill_server()
        start_server(desk.server)
        back = time.time()
        assert run.wait() == 0, desk.said
    finally:
        run.kill()
    desk.check_ended_like(undisturbed)
    fault_table(
        fault="S3, on Ray: all daemons killed (SIGKILL), started again",
        seen="nothing; it trains on, uploads wait (seconds: to the end of the run)",
        seconds=max(0.0, ended(desk) - back),
        repeated=0,
        equal=True,
    )


def ended(desk: Desk) -> float:
    """When the run had its last word (time.time)."""
    return read_spool(desk.spool)[-1]["t"] / 1000


@pytest.mark.faults
def test_a_server_that_does_not_come_back_in_time(desk, kill_server, undisturbed, fault_table):
    run = desk.begin("--patience", "2")
    wait_for(lambda: desk.saved() >= 2, run)
    kill_server()
    run.join()
    assert run.exitcode == 1
    check_told(desk)
    assert "Could not connect" in desk.last_line
    start_server(desk.server)
    check_kept(desk)
    since = time.time()
    assert desk.antiphon("--resume", "r") == 0, desk.said
    repeated = desk.steps_repeated()
    assert repeated <= 8
    desk.check_ended_like(undisturbed)
    fault_table(
        fault="S3: gone for longer than --patience; then `--resume`",
        seen="exit 1: failed: s3://...: Could not connect to the endpoint URL ...",
        seconds=desk.went_on(since),
        repeated=repeated,
        equal=True,
    )


@pytest.mark.faults
def test_a_request_that_is_never_answered(desk, proxy, undisturbed, fault_table):
    proxy.hold_at("step-00000004-attempt-1/cnn.safetensors")
    assert desk.antiphon(env=through(proxy)) == 0, desk.said
    assert proxy.held.is_set()
    desk.check_ended_like(undisturbed)
    fault_table(
        fault="S3: an upload stands still for ever",
        seen="nothing; after 15 s that upload is repeated",
        seconds=desk.went_on(proxy.closed_at),
        repeated=0,
        equal=True,
    )


@pytest.mark.faults
def test_slow_answers(desk, proxy, undisturbed, fault_table):
    proxy.delay_s = 0.1
    assert desk.antiphon(env=through(proxy)) == 0, desk.said
    desk.check_ended_like(undisturbed)
    fault_table(fault="S3: every answer 0.1 s late", seen="nothing", repeated=0, equal=True)


@pytest.mark.faults
def test_no_space(desk, undisturbed, fault_table):
    """There is room for the first checkpoint and half of the second."""
    quota(desk, "set", "--max-size", "1800000")
    quota(desk, "enable")
    assert desk.antiphon() == 1
    check_told(desk)
    assert "QuotaExceeded: no space left, the quota is used up" in desk.last_line
    assert "trying again" not in desk.said
    check_kept(desk)
    quota(desk, "disable")
    since = time.time()
    assert desk.antiphon("--resume", "r") == 0, desk.said
    repeated = desk.steps_repeated()
    desk.check_ended_like(undisturbed)
    fault_table(
        fault="S3: no space (quota); then room and `--resume`",
        seen="exit 1: failed: s3://...: QuotaExceeded: no space left, the quota is used up",
        seconds=desk.went_on(since),
        repeated=repeated,
        equal=True,
    )


def quota(desk: Desk, action: str, *more: str) -> None:
    conf = ["-c", str(desk.server.folder / "rgw" / "ceph.conf")]
    which = ["--quota-scope", "bucket", "--bucket", desk.bucket]
    subprocess.run(["radosgw-admin", *conf, "quota", action, *which, *more], check=True, capture_output=True)
