"""Services: processes that outlive the command that started them, recognised, watched and stopped by pid.

Owns what "up" means and how a service is stopped. Does not depend on which services there are (`stack.py`, `ceph.py`)
nor on how they are launched and recorded (`process_registry.py`).

Contract: nothing here runs in the background; every function looks at the system's processes when it is called. A pid
is never trusted alone: the start time is compared, and processes that a service left behind are recognised by an
environment variable or by their session.
"""

import os
import shutil
import signal
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

MARK = "ANTIPHON_SERVICE"  # environment variable that every process started by a service inherits
GRACE_S = 40.0  # from SIGTERM to SIGKILL; a Ray head drains for up to 30 s
ORPHAN_GRACE_S = 5.0  # the same for processes that the leader left behind
CLOCK_S = 2.0  # start times are derived from the boot time, which moves a little when the clock is set
POLL_S = 0.1

State = Literal["up", "silent", "dead"]  # silent: it runs, but does not answer (yet)


@dataclass(frozen=True, kw_only=True)
class Service:
    """One recorded service; `pid` and `started` together identify its leader, since the system reuses pids."""

    name: str
    settings: dict[str, str | int]  # as requested by the user
    pid: int  # of the leader: the process that was launched, leader of its session
    started: float  # seconds since the epoch, as the system reports it
    mark: str  # value of the environment variable MARK
    address: str  # for clients
    probes: tuple[str, ...]  # it is up once these URLs answer 200 and these files (/...) are not empty
    ports: tuple[int, ...]
    client_env: dict[str, str]  # environment variables that a client needs
    log: str
    scratch: str  # temporary folder, removed with the service


def leader(service: Service) -> psutil.Process | None:
    """The service's leader if it is running; neither a zombie nor another process with its pid."""
    try:
        process = psutil.Process(service.pid)
        return process if _started_with(process, service) and is_running(process) else None
    except psutil.NoSuchProcess:
        return None


def _started_with(process: psutil.Process, service: Service) -> bool:
    return abs(process.create_time() - service.started) < CLOCK_S


def is_running(process: psutil.Process) -> bool:
    """Whether a process runs. A zombie does not; it stays for ever if a container's first process does not reap it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def processes_of(service: Service) -> list[psutil.Process]:
    """Every running process of the service: its leader, the leader's descendants, and orphans of either."""
    found: set[psutil.Process] = set()
    head = leader(service)
    if head is not None:
        try:
            found = {head, *head.children(recursive=True)}
        except psutil.NoSuchProcess:
            found = set()  # it ended just now; its orphans are found below
    session_is_ours = _session_is_ours(service)
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(MARK)
            # Ray's processes overwrite their environment with their title, but stay in their leader's session.
            same_session = mark is None and session_is_ours and os.getsid(process.pid) == service.pid
            if mark == service.mark or same_session:
                found.add(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            continue  # another user's, or ended: not one of this service
    return [process for process in found if is_running(process)]


def _session_is_ours(service: Service) -> bool:
    """Whether processes in the session whose number is the service's pid belong to the service.

    The system reuses a number only when neither a process nor a session has it. So a session whose leader has ended is
    the service's, unless the machine was restarted since; a session whose leader started at another time is not.
    """
    if service.started < psutil.boot_time() - CLOCK_S:
        return False
    try:
        return _started_with(psutil.Process(service.pid), service)
    except psutil.NoSuchProcess:
        return True


def state(service: Service) -> State:
    """Whether the service's leader runs and all its probes answer."""
    if leader(service) is None:
        return "dead"
    return "up" if all(_answers(probe) for probe in service.probes) else "silent"


def _answers(probe: str) -> bool:
    if probe.startswith("/"):
        return Path(probe).is_file() and Path(probe).stat().st_size > 0
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # an HTTP proxy cannot reach our loopback
    try:
        with direct.open(probe, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:  # refused, timed out, reset, or an HTTP error
        return False


def wait_until_up(service: Service, *, deadline_s: float) -> None:
    """Return once the service is up; RuntimeError with the end of its log if it ends or takes longer than that."""
    deadline = time.monotonic() + deadline_s
    while (now := state(service)) != "up":
        if now == "dead" or time.monotonic() > deadline:
            why = "ended while starting" if now == "dead" else f"did not answer within {deadline_s:.0f} s"
            raise RuntimeError(f"{service.name} (pid {service.pid}) {why}; the end of {service.log}:\n{_tail(service)}")
        time.sleep(POLL_S)


def _tail(service: Service, *, lines: int = 15) -> str:
    return "\n".join(Path(service.log).read_text(errors="replace").splitlines()[-lines:]) or "(empty)"


def stop(service: Service) -> bool:
    """Stop every process of the service and remove its scratch folder; False if none was running.

    SIGTERM goes to the leader first, which stops its children in order; the rest gets SIGTERM, then SIGKILL. Safe to
    repeat after a kill in the middle. RuntimeError with the pids that SIGKILL did not stop.
    """
    before = processes_of(service)
    head = leader(service)
    if head is not None:
        _signal([head], signal.SIGTERM)
        _wait_gone([head], GRACE_S)
    # Listed again: processes started in between, and orphans that were no process's children by then.
    rest = list({*before, *processes_of(service)})
    _signal(rest, signal.SIGTERM)
    stubborn = _wait_gone(rest, ORPHAN_GRACE_S)
    _signal(stubborn, signal.SIGKILL)
    if unkillable := _wait_gone(stubborn, ORPHAN_GRACE_S):
        raise RuntimeError(f"{service.name}: SIGKILL did not end pids {sorted(process.pid for process in unkillable)}")
    shutil.rmtree(service.scratch, ignore_errors=True)
    return bool(before)


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)  # psutil compares start times first: a reused pid gets no signal
        except psutil.NoSuchProcess:
            continue


def _wait_gone(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until none of the processes runs, at most `seconds`; returns those that still run."""
    deadline = time.monotonic() + seconds
    while processes := [process for process in processes if is_running(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    return processes
