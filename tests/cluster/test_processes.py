"""One service's life, with small programs: found again, told from strangers, mended, ended."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cluster import ceph, processes, stack
from cluster.process_registry import Book, Program, free_ports, is_free
from cluster.processes import Service, end, leader, lives, members, state, wait_until_up

# A leader with one child; the child holds the port, as MLflow's does, and is deaf to SIGTERM if told so.
CHILD = """
import http.server, signal, sys
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind="127.0.0.1")
"""
LEADER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}, *sys.argv[1:]])"


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    yield Book(tmp_path)
    for service in Book(tmp_path).services.values():
        end(service)


def web(book: Book, *, deaf: bool = False, size: int = 1) -> Service:
    def program(ports: tuple[int, ...], scratch: Path) -> Program:
        command = [sys.executable, "-c", LEADER, str(ports[0]), "deaf" if deaf else "polite"]
        address = f"http://127.0.0.1:{ports[0]}"
        return Program(command=command, address=address, probes=(address,), client_env={"WEB": address})

    service = book.ensure("web", program, num_ports=1, settings={"size": size})
    wait_until_up(service, deadline_s=20)
    return service


def test_another_process_finds_the_record_and_the_service(book: Book) -> None:
    service = web(book)
    assert Book(book.folder).services == {"web": service}
    assert len(members(service)) == 2
    assert web(Book(book.folder)) == service


def test_an_orphan_does_not_pass_for_the_service_and_makes_room_for_the_next(book: Book) -> None:
    service = web(book)
    (orphan,) = [process for process in members(service) if process.pid != service.pid]
    killed = psutil.Process(service.pid)
    killed.kill()
    killed.wait(timeout=5)
    assert state(service) == "dead"
    assert members(service) == [orphan]
    mended = web(book)
    assert mended.ports == service.ports
    assert mended.pid != service.pid
    assert not lives(orphan)


def test_an_orphan_that_lost_its_mark_is_known_by_its_session(book: Book) -> None:
    # Ray's processes overwrite their environment with their title.
    bare = "import os, sys; os.execve(sys.executable, [sys.executable, '-c', 'import signal; signal.pause()'], {})"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {bare!r}])"
    command = [sys.executable, "-c", code]
    service = book.ensure("bare", lambda ports, scratch: Program(command=command), num_ports=0, settings={})
    deadline = time.monotonic() + 20
    while not (bared := [p for p in members(service) if p.pid != service.pid and not p.environ()]):
        assert time.monotonic() < deadline, "the child did not shed its environment"
    killed = psutil.Process(service.pid)
    killed.kill()
    killed.wait(timeout=5)
    assert members(service) == bared
    before_the_restart = replace(service, started=psutil.boot_time() - 60)
    assert members(before_the_restart) == []
    assert end(service)
    assert not any(lives(process) for process in bared)


def test_end_kills_what_is_deaf_to_sigterm(book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LEFT_OVER_GRACE_S", 0.5)
    service = web(book, deaf=True)
    group = members(service)
    assert end(service)
    assert not end(service)
    assert not any(lives(process) for process in group)
    assert is_free(service.ports[0])


def test_a_stranger_with_the_recorded_pid_is_not_the_service(book: Book) -> None:
    service = web(book)
    idle = [sys.executable, "-c", "input()"]
    with subprocess.Popen(idle, stdin=subprocess.PIPE, start_new_session=True) as stranger:
        # The record of a service that had this pid a minute before the stranger got it.
        stale = replace(
            service, pid=stranger.pid, started=psutil.Process(stranger.pid).create_time() - 60, mark="ended", scratch=""
        )
        assert leader(stale) is None
        assert members(stale) == []
        assert state(stale) == "dead"
        assert not end(stale)
        assert stranger.poll() is None
        stranger.kill()
    assert state(service) == "up"


def test_a_program_that_fails_to_start_is_reported_with_its_last_words(book: Book) -> None:
    command = [sys.executable, "-c", "raise SystemExit('the disk is made of cheese')"]
    service = book.ensure("cheese", lambda ports, scratch: Program(command=command), num_ports=0, settings={})
    with pytest.raises(RuntimeError, match=r"(?s)cheese .*ended while starting.*the disk is made of cheese"):
        # Without a probe "up" may be seen before the exit; the one here never answers.
        wait_until_up(replace(service, probes=("/nonexistent/file",)), deadline_s=20)


def test_a_silent_program_runs_out_of_time(book: Book) -> None:
    silent = replace(web(book), probes=(f"http://127.0.0.1:{free_ports(1)[0]}",))
    assert state(silent) == "silent"
    with pytest.raises(RuntimeError, match="did not answer within 0 s"):
        wait_until_up(silent, deadline_s=0.2)


def test_other_settings_are_refused_while_the_service_is_recorded(book: Book) -> None:
    web(book, size=1)
    with pytest.raises(ValueError, match=r"wanted with size = 2, .* has it with size = 1; .*antiphon cluster down"):
        web(book, size=2)


def test_ports_are_different_and_one_that_somebody_listens_on_is_not_free(book: Book) -> None:
    assert len(set(free_ports(20))) == 20
    assert not is_free(web(book).ports[0])


def test_the_users_mistakes_start_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"s3 = 'minio': .* known ones are moto, rgw"):
        stack.up(tmp_path, s3="minio")
    with pytest.raises(ValueError, match="cpus = 0: must be 1 or more"):
        stack.up(tmp_path, cpus=0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=f"(?s)radosgw.* on Debian: .*{ceph.PACKAGES}"):
        stack.up(tmp_path, s3="rgw")
    assert stack.status(tmp_path) == ()
