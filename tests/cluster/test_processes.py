"""Services, with small programs: found again, distinguished from other processes, restarted, stopped."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cluster import ceph, processes, stack
from cluster.process_registry import ProcessRegistry, ServiceSpec, free_ports, is_free
from cluster.processes import Service, is_running, leader, processes_of, state, stop, wait_until_up

# A leader with one child; the child holds the port, as MLflow's does, and ignores SIGTERM if asked to.
CHILD = """
import http.server, signal, sys
if sys.argv[2] == "ignore":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
http.server.test(http.server.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind="127.0.0.1")
"""
LEADER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}, *sys.argv[1:]])"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[ProcessRegistry]:
    yield ProcessRegistry(tmp_path)
    for service in ProcessRegistry(tmp_path).services.values():
        stop(service)


def web(registry: ProcessRegistry, *, ignores_sigterm: bool = False, size: int = 1) -> Service:
    def make_spec(ports: tuple[int, ...], scratch: Path) -> ServiceSpec:
        command = [sys.executable, "-c", LEADER, str(ports[0]), "ignore" if ignores_sigterm else "default"]
        address = f"http://127.0.0.1:{ports[0]}"
        return ServiceSpec(command=command, address=address, probes=(address,), client_env={"WEB": address})

    service = registry.ensure("web", make_spec, num_ports=1, settings={"size": size})
    wait_until_up(service, deadline_s=20)
    return service


def test_another_process_finds_the_record_and_the_service(registry: ProcessRegistry) -> None:
    service = web(registry)
    assert ProcessRegistry(registry.folder).services == {"web": service}
    assert len(processes_of(service)) == 2
    assert web(ProcessRegistry(registry.folder)) == service


def test_an_orphan_is_not_taken_for_the_service_and_is_stopped_before_the_next(registry: ProcessRegistry) -> None:
    service = web(registry)
    (orphan,) = [process for process in processes_of(service) if process.pid != service.pid]
    killed = psutil.Process(service.pid)
    killed.kill()
    killed.wait(timeout=5)
    assert state(service) == "dead"
    assert processes_of(service) == [orphan]
    restarted = web(registry)
    assert restarted.ports == service.ports
    assert restarted.pid != service.pid
    assert not is_running(orphan)


def test_an_orphan_that_lost_its_mark_is_recognised_by_its_session(registry: ProcessRegistry) -> None:
    # Ray's processes overwrite their environment with their title.
    sleeper = "import os, sys; os.execve(sys.executable, [sys.executable, '-c', 'import signal; signal.pause()'], {})"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleeper!r}])"
    command = [sys.executable, "-c", code]
    service = registry.ensure("bare", lambda ports, scratch: ServiceSpec(command=command), num_ports=0, settings={})
    deadline = time.monotonic() + 20
    while not (orphans := [p for p in processes_of(service) if p.pid != service.pid and not p.environ()]):
        assert time.monotonic() < deadline, "the child did not clear its environment"
    killed = psutil.Process(service.pid)
    killed.kill()
    killed.wait(timeout=5)
    assert processes_of(service) == orphans
    before_the_restart = replace(service, started=psutil.boot_time() - 60)
    assert processes_of(before_the_restart) == []
    assert stop(service)
    assert not any(is_running(process) for process in orphans)


def test_stop_kills_processes_that_ignore_sigterm(registry: ProcessRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "ORPHAN_GRACE_S", 0.5)
    service = web(registry, ignores_sigterm=True)
    group = processes_of(service)
    assert stop(service)
    assert not stop(service)
    assert not any(is_running(process) for process in group)
    assert is_free(service.ports[0])


def test_another_process_with_the_recorded_pid_is_not_the_service(registry: ProcessRegistry) -> None:
    service = web(registry)
    idle = [sys.executable, "-c", "input()"]
    with subprocess.Popen(idle, stdin=subprocess.PIPE, start_new_session=True) as other:
        # The record of a service that had this pid a minute before the other process got it.
        stale = replace(
            service, pid=other.pid, started=psutil.Process(other.pid).create_time() - 60, mark="ended", scratch=""
        )
        assert leader(stale) is None
        assert processes_of(stale) == []
        assert state(stale) == "dead"
        assert not stop(stale)
        assert other.poll() is None
        other.kill()
    assert state(service) == "up"


def test_a_program_that_fails_to_start_is_reported_with_the_end_of_its_log(registry: ProcessRegistry) -> None:
    command = [sys.executable, "-c", "raise SystemExit('the disk is made of cheese')"]
    service = registry.ensure("cheese", lambda ports, scratch: ServiceSpec(command=command), num_ports=0, settings={})
    with pytest.raises(RuntimeError, match=r"(?s)cheese .*ended while starting.*the disk is made of cheese"):
        # Without a probe the service may count as "up" before it exits; this probe never answers.
        wait_until_up(replace(service, probes=("/nonexistent/file",)), deadline_s=20)


def test_a_program_that_does_not_answer_times_out(registry: ProcessRegistry) -> None:
    silent = replace(web(registry), probes=(f"http://127.0.0.1:{free_ports(1)[0]}",))
    assert state(silent) == "silent"
    with pytest.raises(RuntimeError, match="did not answer within 0 s"):
        wait_until_up(silent, deadline_s=0.2)


def test_other_settings_are_refused_while_the_service_is_recorded(registry: ProcessRegistry) -> None:
    web(registry, size=1)
    with pytest.raises(ValueError, match=r"requested with size = 2, .* has it with size = 1; .*antiphon cluster down"):
        web(registry, size=2)


def test_ports_are_distinct_and_one_with_a_listener_is_not_free(registry: ProcessRegistry) -> None:
    assert len(set(free_ports(20))) == 20
    assert not is_free(web(registry).ports[0])


def test_the_users_mistakes_start_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"--s3 minio: .* known ones are moto, rgw"):
        stack.up(tmp_path, s3="minio")
    with pytest.raises(ValueError, match="--cpus 0: must be 1 or more"):
        stack.up(tmp_path, cpus=0)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=f"(?s)radosgw.* on Debian: .*{ceph.PACKAGES}"):
        stack.up(tmp_path, s3="rgw")
    assert stack.status(tmp_path) == ()
