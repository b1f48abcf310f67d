"""Processes that outlive the command that started them: recognised, watched, and ended by pid.

Owns what "up" means and how a service ends. Does not know what the services are (`stack.py`, `rgw.py`) nor how they
are launched and recorded (`book.py`).
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

MARK = "ANTIPHON_SERVICE"  # environment variable, inherited by whatever a service starts
GRACE_S = 40.0  # from SIGTERM to SIGKILL; a Ray head drains for up to 30 s
LEFT_OVER_GRACE_S = 5.0  # the same for what its leader left behind
CLOCK_S = 2.0  # start times are derived from the boot time, which moves a little when the clock is set
POLL_S = 0.1

State = Literal["up", "silent", "dead"]  # silent: it runs, but does not answer (yet)


@dataclass(frozen=True, kw_only=True)
class Service:
    """One recorded process; `pid` and `started` together name it for ever, a pid alone is given out again."""

    name: str
    settings: dict[str, str | int]  # what it was asked to be
    pid: int
    started: float  # seconds since the epoch, as the system says
    mark: str
    address: str  # what a client is given
    probes: tuple[str, ...]  # it serves once these URLs answer 200 and these files (/...) hold something
    ports: tuple[int, ...]
    client_env: dict[str, str]  # what a client has to set
    log: str
    scratch: str  # short-lived folder, removed with the service


def leader(service: Service) -> psutil.Process | None:
    """The service's own process if it still runs; a zombie and a stranger with its pid do not count."""
    try:
        process = psutil.Process(service.pid)
        return process if _started_with(process, service) and lives(process) else None
    except psutil.NoSuchProcess:
        return None


def _started_with(process: psutil.Process, service: Service) -> bool:
    return abs(process.create_time() - service.started) < CLOCK_S


def lives(process: psutil.Process) -> bool:
    """Whether it runs; a zombie does not, and stays for ever where a container's first process reaps nobody."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def members(service: Service) -> list[psutil.Process]:
    """Every living process of the service: its own, its descendants, and the orphans that it left."""
    found: set[psutil.Process] = set()
    head = leader(service)
    if head is not None:
        try:
            found = {head, *head.children(recursive=True)}
        except psutil.NoSuchProcess:
            found = set()  # it ended just now; what it left is found below
    session_is_ours = _session_is_ours(service)
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(MARK)
            # Ray's processes write their titles over their environment, but stay in the session of their leader.
            same_session = mark is None and session_is_ours and os.getsid(process.pid) == service.pid
            if mark == service.mark or same_session:
                found.add(process)
        except (psutil.AccessDenied, psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            continue  # another user's, or gone: not ours either way
    return [process for process in found if lives(process)]


def _session_is_ours(service: Service) -> bool:
    """Whether processes in a session with the service's pid as its number are the service's.

    The system gives a number out again only when neither a process nor a session has it. So a session whose leader is
    gone is ours, unless the machine was restarted since; one whose leader started at another time is a stranger's.
    """
    if service.started < psutil.boot_time() - CLOCK_S:
        return False
    try:
        return _started_with(psutil.Process(service.pid), service)
    except psutil.NoSuchProcess:
        return True


def state(service: Service) -> State:
    """Whether the service runs and answers its probes."""
    if leader(service) is None:
        return "dead"
    return "up" if all(_answers(probe) for probe in service.probes) else "silent"


def _answers(probe: str) -> bool:
    if probe.startswith("/"):
        return Path(probe).is_file() and Path(probe).stat().st_size > 0
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not know our loopback
    try:
        with direct.open(probe, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:  # refused, timed out, reset, or an HTTP error
        return False


def wait_until_up(service: Service, *, deadline_s: float) -> None:
    """Return once the service answers; RuntimeError with the end of its log if it dies or takes too long."""
    deadline = time.monotonic() + deadline_s
    while (now := state(service)) != "up":
        if now == "dead" or time.monotonic() > deadline:
            why = "ended while starting" if now == "dead" else f"did not answer within {deadline_s:.0f} s"
            raise RuntimeError(f"{service.name} (pid {service.pid}) {why}; the end of {service.log}:\n{_tail(service)}")
        time.sleep(POLL_S)


def _tail(service: Service, *, lines: int = 15) -> str:
    return "\n".join(Path(service.log).read_text(errors="replace").splitlines()[-lines:]) or "(empty)"


def end(service: Service) -> bool:
    """Stop the service and all that it started; False if nothing of it ran.

    SIGTERM goes to the leader first, which stops its own children in order; who is left gets SIGTERM, then SIGKILL.
    """
    everyone = members(service)
    head = leader(service)
    if head is not None:
        _signal([head], signal.SIGTERM)
        _wait_gone([head], GRACE_S)
    # Asked again: processes started in between, and orphans that were nobody's children by then.
    rest = list({*everyone, *members(service)})
    _signal(rest, signal.SIGTERM)
    stubborn = _wait_gone(rest, LEFT_OVER_GRACE_S)
    _signal(stubborn, signal.SIGKILL)
    if immortal := _wait_gone(stubborn, LEFT_OVER_GRACE_S):
        raise RuntimeError(f"{service.name}: SIGKILL did not end pids {sorted(process.pid for process in immortal)}")
    shutil.rmtree(service.scratch, ignore_errors=True)
    return bool(everyone)


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)  # psutil compares start times first: a pid given out again is never hit
        except psutil.NoSuchProcess:
            continue


def _wait_gone(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those of the processes that still live after so many seconds; returns early when none does."""
    deadline = time.monotonic() + seconds
    while processes := [process for process in processes if lives(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_S)
    return processes
