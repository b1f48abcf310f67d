"""Attempts: which one may commit, how it is taken over, and how its driver is known to have ended."""

import subprocess
import threading
from dataclasses import replace

import pytest

from orchestrator.runs import lease, process_identity
from orchestrator.runs.lease import (
    Driver,
    DriverState,
    beating,
    is_driven_by,
    last_driver,
    request_stop,
    stop_requested,
    take_next,
    take_over,
    take_unconditionally,
)
from orchestrator.storage import object_store
from tests.drivers import driver_on_another_host, ended_process
from workloads.runtime.checkpoint_store import AlreadyDriven, Superseded


def test_attempts_are_numbered_and_only_the_newest_may_commit(storage):
    run, first, second = object_store.join(storage, "run"), ended_process(), Driver()
    one = take_over(run, first)
    one.check_newest()
    two = take_over(run, second)
    assert (one.number, two.number) == (1, 2)
    two.check_newest()
    with pytest.raises(Superseded, match=rf"process {second.pid} on .* has resumed this run"):
        one.check_newest()
    assert is_driven_by(run, second)
    assert not is_driven_by(run, first)


def test_a_run_is_not_taken_over_from_a_running_process(storage):
    run = object_store.join(storage, "run")
    take_over(run, Driver())
    with pytest.raises(AlreadyDriven, match="is still working on it"):
        take_over(run, Driver())


@pytest.mark.parametrize("content", ["", '{"claim": ', "[]"])
def test_a_run_whose_claim_a_power_cut_has_emptied_is_taken_over(storage, content, capfd):
    run = object_store.join(storage, "run")
    first = take_over(run, Driver())
    object_store.put_text(object_store.join(run, "attempts", "1"), content)
    assert take_over(run, Driver()).number == 2
    assert "attempts/1" in capfd.readouterr().err
    with pytest.raises(Superseded):  # should it live all the same
        first.check_newest()


def test_another_process_with_the_same_pid_is_not_the_driver(storage):
    run = object_store.join(storage, "run")
    take_over(run, replace(Driver(), since_boot=1.0))
    assert take_over(run, Driver()).number == 2


def test_a_driver_that_ends_while_it_is_looked_at_has_ended(monkeypatch):
    """The file of a process can be opened and, once the process is gone, no longer read: another error than of none."""
    child = subprocess.Popen(["sleep", "600"])
    driver = replace(Driver(), pid=child.pid, since_boot=process_identity.started(child.pid))
    assert driver.exists()
    read = process_identity.Path.read_text

    def end_and_read(path, **options):
        with path.open() as file:
            child.kill()
            child.wait()
            return file.read()

    monkeypatch.setattr(process_identity.Path, "read_text", end_and_read)
    assert not driver.exists()
    monkeypatch.setattr(process_identity.Path, "read_text", read)
    assert not driver.exists()
    with pytest.raises(ProcessLookupError, match=f"there is no process {child.pid}"):
        process_identity.started(child.pid)


def test_drivers_are_told_apart_without_linux_s_proc(storage, monkeypatch):
    """As on macOS: by when they started, of which psutil knows."""
    monkeypatch.setattr(process_identity.sys, "platform", "darwin")
    run, ended = object_store.join(storage, "run"), ended_process()
    assert (ended.boot, ended.processes) != ("", "")
    take_over(run, replace(ended, boot="", processes=""))
    assert last_driver(run).state is DriverState.KILLED
    me = Driver()
    assert (me.boot, me.processes) == ("", "")
    assert (me.here(), me.exists(), replace(me, since_boot=me.since_boot - 1).exists()) == (True, True, False)
    assert take_over(run, me).number == 2
    with pytest.raises(AlreadyDriven, match="is still working on it"):
        take_over(run, Driver())


def test_a_driver_on_another_host_has_ended_after_one_interval_without_heartbeat(storage):
    run, remote = object_store.join(storage, "run"), driver_on_another_host()
    take_over(run, remote)
    heartbeat_uri, stop = object_store.join(run, "attempts", f"{remote.token}.beat"), threading.Event()

    def send_heartbeats() -> None:
        count = 0
        while not stop.wait(0.05):
            count += 1
            object_store.put_text(heartbeat_uri, str(count))

    thread = threading.Thread(target=send_heartbeats)
    thread.start()
    try:
        with pytest.raises(AlreadyDriven, match="still working on it"):
            take_over(run, Driver(), silence_s=20)
    finally:
        stop.set()
        thread.join()
    assert take_over(run, Driver(), silence_s=0.3).number == 2


def test_a_driver_that_recorded_its_end_is_not_waited_for(storage):
    run, remote = object_store.join(storage, "run"), driver_on_another_host()
    take_over(run, remote)
    with beating(run, remote):
        pass
    assert take_over(run, Driver(), silence_s=3600).number == 2


def test_of_several_drivers_that_resume_at_once_one_takes_over(storage):
    run = object_store.join(storage, "run")
    take_over(run, ended_process())
    answers: list[object] = []

    def resume() -> None:
        try:
            answers.append(take_over(run, Driver()).number)
        except AlreadyDriven as error:
            answers.append(str(error))

    threads = [threading.Thread(target=resume) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count(2) == 1
    assert all("just resumed it" in str(answer) or "still working" in str(answer) for answer in answers if answer != 2)


def test_restarted_workers_take_a_new_attempt_while_their_driver_has_the_run(storage):
    run, first, second = object_store.join(storage, "run"), ended_process(), Driver()
    take_over(run, first)
    workers = take_next(run, first)
    restarted = take_next(run, first)
    assert (workers.number, restarted.number) == (2, 3)
    with pytest.raises(Superseded):
        workers.check_newest()
    take_over(run, second)
    with pytest.raises(Superseded, match="these workers stop"):
        take_next(run, first)


def test_a_stop_request_reaches_only_the_workers_of_its_driver(storage):
    run, first, second = object_store.join(storage, "run"), Driver(), Driver()
    request_stop(run, first)
    assert stop_requested(run, first)
    assert not stop_requested(run, second)


def test_unconditional_claims_at_once_all_succeed_one_after_the_other(storage):
    """Two processes that Tune starts for one trial must not make it fail: the later claim makes the earlier void."""
    trial, claims = object_store.join(storage, "trials", "0000"), []
    threads = [threading.Thread(target=lambda: claims.append(take_unconditionally(trial, Driver()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claim.number for claim in claims) == [1, 2, 3, 4]
    *older, newest = sorted(claims, key=lambda claim: claim.number)
    newest.check_newest()
    for claim in older:
        with pytest.raises(Superseded):
            claim.check_newest()


def test_what_is_known_of_a_driver_at_once(storage, monkeypatch):
    """Here from its process, elsewhere from its note or the age of its newest sign of life."""
    run, names = object_store.join(storage, "run"), iter("abcd")

    def state(driver: Driver) -> DriverState:
        run = object_store.join(storage, next(names))
        take_over(run, driver)
        last = last_driver(run)
        assert last is not None
        assert last.here == driver.here()
        assert last.quiet_s < 60
        return last.state

    assert last_driver(run) is None
    assert state(Driver()) == "running"
    assert state(ended_process()) == "killed"
    assert state(driver_on_another_host()) == "running"
    monkeypatch.setattr(lease, "SILENCE_S", -1.0)
    assert state(driver_on_another_host()) == "silent"
    take_over(run, driver_on_another_host(token="ended"))
    with beating(run, driver_on_another_host(token="ended")):
        pass
    last = last_driver(run)
    assert last is not None
    assert last.state == "ended"


def test_the_driver_of_a_claim_that_cannot_be_read_counts_as_killed(storage, capfd):
    run = object_store.join(storage, "run")
    take_over(run, Driver())
    object_store.put_text(object_store.join(run, "attempts", "1"), "")
    last = last_driver(run)
    assert last is not None
    assert last.state == "killed"
    assert "attempts/1" in capfd.readouterr().err
