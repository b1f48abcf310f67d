"""Who may commit to a run: each attempt takes `attempts/N` by exclusive create, and its driver shows that it lives.

Clocks are not trusted: an attempt counts as dead where its driver's process is gone from this very host, where it said
that it ended, or where its heartbeat stood still for `SILENCE_S` on the watcher's own monotonic clock.
"""

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from orchestrator.storage import object_store

BEAT_S = 10.0
SILENCE_S = 30.0  # how long a heartbeat may stand still before its driver counts as dead


class Superseded(RuntimeError):
    """Another attempt has taken this run over; this one must not commit any more."""


@dataclass(frozen=True)
class Driver:
    """The process that drives attempts of a run, so that others can tell whether it still does."""

    token: str = field(default_factory=lambda: secrets.token_hex(8))
    host: str = field(default_factory=socket.gethostname)
    boot: str = field(default_factory=lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    processes: str = field(default_factory=lambda: os.readlink("/proc/self/ns/pid"))  # a host's containers differ
    pid: int = field(default_factory=os.getpid)
    since_boot: float = field(default_factory=lambda: seconds_since_boot(os.getpid()))

    def here(self) -> bool:
        """Whether it ran (or runs) where this process could see it."""
        mine = Driver()
        return (self.host, self.boot, self.processes) == (mine.host, mine.boot, mine.processes)

    def exists(self) -> bool:
        """Whether its process is still there; only to be asked `here`."""
        try:
            zombie = psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
            return not zombie and abs(seconds_since_boot(self.pid) - self.since_boot) < 0.05
        except psutil.NoSuchProcess:
            return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@dataclass(frozen=True)
class Attempt:
    """One claim on a run. Attempts are numbered from 1 without gaps; the newest alone may commit."""

    run_uri: str
    number: int
    driver: Driver

    def check_newest(self) -> None:
        """Raise Superseded if a newer attempt exists."""
        if object_store.exists(_path(self.run_uri, str(self.number + 1))):
            other = _driver(self.run_uri, _newest(self.run_uri))
            raise Superseded(f"{other} has taken this run over (it resumed it); this attempt stops and commits nothing")


def take_over(run_uri: str, driver: Driver, *, silence_s: float = SILENCE_S) -> Attempt:
    """The next attempt of a run, once the one before has certainly ended; waits `silence_s` where that must be watched.

    Raises ValueError if the run is still being driven, or if somebody else is faster.
    """
    number = _newest(run_uri)
    if number:
        before = _driver(run_uri, number)
        if _lives(run_uri, before, silence_s):
            raise ValueError(f"run {run_uri!r}: {before} is still working on it; wait for it, or stop it first")
    return _claim(Attempt(run_uri, number + 1, driver))


def take_next(run_uri: str, driver: Driver) -> Attempt:
    """The next attempt for workers that `driver` has started (again); Superseded if the run is no longer its own."""
    number = _newest(run_uri)
    holder = _driver(run_uri, number)
    if holder.token != driver.token:
        raise Superseded(f"{holder} has taken this run over (it resumed it); these workers stop")
    return _claim(Attempt(run_uri, number + 1, driver))


def is_driven_by(run_uri: str, driver: Driver) -> bool:
    """Whether the run's newest attempt is this driver's."""
    return _driver(run_uri, _newest(run_uri)).token == driver.token


@contextmanager
def beating(run_uri: str, driver: Driver) -> Iterator[None]:
    """Within this context the driver's heartbeat goes on; at its end the driver says that it has ended."""
    stop = threading.Event()

    def beat() -> None:
        count = 0
        while not stop.wait(BEAT_S):
            count += 1
            with suppress(Exception):  # a store that is away for a moment; if it stays away, others may take over
                object_store.put_text(_path(run_uri, f"{driver.token}.beat"), str(count))

    thread = threading.Thread(target=beat, daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with suppress(Exception):  # then a watcher has to wait for the heartbeat's silence
            object_store.put_text(_path(run_uri, f"{driver.token}.ended"), "")


def ask_to_stop(run_uri: str, driver: Driver) -> None:
    """Leave the wish that this driver's workers save and stop where they look for it."""
    object_store.put_text(_path(run_uri, f"{driver.token}.stop"), "")


def asked_to_stop(run_uri: str, driver: Driver) -> bool:
    """Whether the driver wants its workers to save and stop."""
    return object_store.exists(_path(run_uri, f"{driver.token}.stop"))


def seconds_since_boot(pid: int) -> float:
    """When a process started; unlike its wall-clock time this cannot jump."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return int(ticks) / os.sysconf("SC_CLK_TCK")


def _lives(run_uri: str, driver: Driver, silence_s: float) -> bool:
    if object_store.exists(_path(run_uri, f"{driver.token}.ended")):
        return False
    if driver.here():
        return driver.exists()
    seen, deadline = _beat(run_uri, driver), time.monotonic() + silence_s
    while time.monotonic() < deadline:
        if _beat(run_uri, driver) != seen:
            return True
        if object_store.exists(_path(run_uri, f"{driver.token}.ended")):
            return False
        time.sleep(min(1.0, silence_s / 10))
    return False


def _claim(attempt: Attempt) -> Attempt:
    path, claim = _path(attempt.run_uri, str(attempt.number)), secrets.token_hex(8)
    made = object_store.create_exclusively(
        path, json.dumps({"claim": claim, "driver": asdict(attempt.driver)}).encode()
    )
    # An answer may get lost on its way: then the store's client asks again and is told that the object exists.
    if not made and json.loads(object_store.get_text(path))["claim"] != claim:
        raise ValueError(f"run {attempt.run_uri!r}: another process has just taken it up; only one may")
    return attempt


def _newest(run_uri: str) -> int:
    return max(
        (int(name) for name in object_store.list_names(object_store.join(run_uri, "attempts")) if name.isdigit()),
        default=0,
    )


def _driver(run_uri: str, number: int) -> Driver:
    return Driver(**json.loads(object_store.get_text(_path(run_uri, str(number))))["driver"])


def _beat(run_uri: str, driver: Driver) -> str:
    path = _path(run_uri, f"{driver.token}.beat")
    return object_store.get_text(path) if object_store.exists(path) else ""


def _path(run_uri: str, name: str) -> str:
    return object_store.join(run_uri, "attempts", name)
