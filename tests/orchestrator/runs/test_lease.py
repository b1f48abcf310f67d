"""Who may commit: claims, fences, and how an attempt is known to be dead."""

import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from orchestrator.runs.lease import (
    Driver,
    Superseded,
    beating,
    is_driven_by,
    request_stop,
    stop_requested,
    take_next,
    take_over,
)
from orchestrator.storage import object_store


def ended_process() -> Driver:
    """The driver that a process was which is gone now."""
    script = "import json; from dataclasses import asdict; from orchestrator.runs.lease import Driver; "
    done = subprocess.run(
        [sys.executable, "-c", script + "print(json.dumps(asdict(Driver())))"], capture_output=True, check=True
    )
    import json

    return Driver(**json.loads(done.stdout))


def elsewhere(**fields) -> Driver:
    return replace(Driver(), host="another-host", **fields)


def test_attempts_are_numbered_and_only_the_newest_may_commit(home):
    run, first, second = object_store.join(home, "run"), ended_process(), Driver()
    one = take_over(run, first)
    one.check_newest()
    two = take_over(run, second)
    assert (one.number, two.number) == (1, 2)
    two.check_newest()
    with pytest.raises(Superseded, match=rf"process {second.pid} on .* has resumed this run"):
        one.check_newest()
    assert is_driven_by(run, second)
    assert not is_driven_by(run, first)


def test_a_run_is_not_taken_from_a_process_that_lives(home):
    run = object_store.join(home, "run")
    take_over(run, Driver())
    with pytest.raises(ValueError, match="is still working on it"):
        take_over(run, Driver())


def test_a_pid_that_was_given_to_somebody_else_is_not_the_driver(home):
    run = object_store.join(home, "run")
    take_over(run, replace(Driver(), since_boot=1.0))
    assert take_over(run, Driver()).number == 2


def test_another_host_is_dead_after_one_silent_interval_and_not_before(home):
    run, far = object_store.join(home, "run"), elsewhere()
    take_over(run, far)
    beats, stop = object_store.join(run, "attempts", f"{far.token}.beat"), threading.Event()

    def beat() -> None:
        count = 0
        while not stop.wait(0.05):
            count += 1
            object_store.put_text(beats, str(count))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(ValueError, match="still working on it"):
            take_over(run, Driver(), silence_s=20)
    finally:
        stop.set()
        thread.join()
    assert take_over(run, Driver(), silence_s=0.3).number == 2


def test_a_driver_that_said_goodbye_is_not_waited_for(home):
    run, far = object_store.join(home, "run"), elsewhere()
    take_over(run, far)
    with beating(run, far):
        pass
    assert take_over(run, Driver(), silence_s=3600).number == 2


def test_of_two_that_resume_at_once_one_wins(home):
    run = object_store.join(home, "run")
    take_over(run, ended_process())
    answers: list[object] = []

    def resume() -> None:
        try:
            answers.append(take_over(run, Driver()).number)
        except ValueError as error:
            answers.append(str(error))

    threads = [threading.Thread(target=resume) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count(2) == 1
    assert all("just resumed it" in str(answer) or "still working" in str(answer) for answer in answers if answer != 2)


def test_restarted_workers_take_an_attempt_of_their_own_while_the_run_is_their_drivers(home):
    run, first, second = object_store.join(home, "run"), ended_process(), Driver()
    take_over(run, first)
    group = take_next(run, first)
    again = take_next(run, first)
    assert (group.number, again.number) == (2, 3)
    with pytest.raises(Superseded):
        group.check_newest()
    take_over(run, second)
    with pytest.raises(Superseded, match="these workers stop"):
        take_next(run, first)


def test_a_wish_to_stop_is_heard_by_its_own_workers_only(home):
    run, first, second = object_store.join(home, "run"), Driver(), Driver()
    request_stop(run, first)
    assert stop_requested(run, first)
    assert not stop_requested(run, second)
