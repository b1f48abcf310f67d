"""Which attempt of a run or of a search's trial may commit, and whether the process that drives it is alive.

Each attempt takes `attempts/N` by exclusive create, N counting from 1; only the newest may commit (the rule of
`workloads/runtime/checkpoint_store.py`). Clocks are not trusted: an attempt counts as ended where its driver's process
is gone from this very host, where the driver left a note that it has ended, or where its heartbeat has not changed for
`SILENCE_S` seconds of the watching process's own monotonic clock.
"""

import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum

import psutil
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from orchestrator.runs.process_identity import boot_id, pid_namespace, started
from orchestrator.storage import object_store
from orchestrator.storage.listing import list_folder
from orchestrator.storage.retry import print_status
from workloads.runtime.background import in_background
from workloads.runtime.checkpoint_store import AlreadyDriven, Superseded
from workloads.runtime.json_files import json_text

BEAT_S = 10.0
# Without a new heartbeat for so long a driver on another host counts as dead: longer than one request to a store that
# hangs can take (botocore gives up after 60 s) and the time to the next heartbeat.
SILENCE_S = 100.0
REQUEST_S = 2.0  # how long the end of a driver waits for a heartbeat that is being written


class _ClaimLost(AlreadyDriven):
    """Another process has created the same attempt first."""


@dataclass(frozen=True)
class Driver:
    """The process that drives attempts of a run, described so that other processes can see whether it lives."""

    token: str = field(default_factory=lambda: secrets.token_hex(8))
    host: str = field(default_factory=socket.gethostname)
    boot: str = field(default_factory=boot_id)
    processes: str = field(default_factory=pid_namespace)
    pid: int = field(default_factory=os.getpid)
    since_boot: float = field(default_factory=lambda: started(os.getpid()))  # where there is a boot id, else: `started`

    def here(self) -> bool:
        """Whether it runs, or ran, where this process could see it: same host, boot and process namespace."""
        mine = Driver()
        return (self.host, self.boot, self.processes) == (mine.host, mine.boot, mine.processes)

    def exists(self) -> bool:
        """Whether its process still exists; only meaningful where `here()` holds."""
        try:
            zombie = psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
            return not zombie and abs(started(self.pid) - self.since_boot) < 0.05
        except (psutil.NoSuchProcess, ProcessLookupError):  # the latter: it has ended between two looks
            return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class _DriverFields(TypedDict):
    """A `Driver` in the file of an attempt."""

    token: str
    host: str
    boot: str
    processes: str
    pid: int
    since_boot: float


class _Claim(TypedDict):
    """The file of an attempt."""

    claim: str
    driver: _DriverFields


class DriverState(StrEnum):
    """Whether a driver lives, as far as another process can say at once."""

    RUNNING = "running"  # its process exists here; of one elsewhere, the last heartbeat is younger than SILENCE_S
    ENDED = "ended"  # it left a note
    KILLED = "killed"  # its process is gone from this host, without a note
    SILENT = "silent"  # elsewhere, and without a heartbeat for SILENCE_S: killed, or cut off from the store


@dataclass(frozen=True)
class LastDriver:
    """The driver of a run's newest attempt; the times are by the store's clock."""

    state: DriverState
    claimed: float  # when it claimed that attempt, in seconds since the epoch
    quiet_s: float  # seconds since it last wrote a claim, a heartbeat or its note
    here: bool  # whether it ran where this process could see it


@dataclass(frozen=True)
class Attempt:
    """One claim on a run or trial at `run_uri`. Attempts are numbered from 1 without gaps."""

    run_uri: str
    number: int
    driver: Driver

    def check_newest(self) -> None:
        """Raise Superseded if a newer attempt exists; called before every commit, replacement and removal."""
        if object_store.exists(_path(self.run_uri, str(self.number + 1))):
            other = _driver(self.run_uri, _newest(self.run_uri))
            raise Superseded(f"{other} has resumed this run; this attempt stops and commits nothing")


def take_over(run_uri: str, driver: Driver, *, silence_s: float = SILENCE_S) -> Attempt:
    """Claim the next attempt for a driver, once the attempt before has certainly ended.

    Waits up to `silence_s` seconds where that can only be seen from the heartbeat. Raises AlreadyDriven if the run is
    still being driven, or if another process claims it first.
    """
    number = _newest(run_uri)
    if number:
        before = _driver_if_readable(run_uri, number)
        if before is not None and _lives(run_uri, before, silence_s):
            raise AlreadyDriven(
                f"run {run_uri!r}: {before} is still working on it; wait until it ends, or stop it first"
            )
    return _claim(Attempt(run_uri, number + 1, driver))


def take_next(run_uri: str, driver: Driver) -> Attempt:
    """Claim the next attempt for workers that `driver` has started or restarted.

    Raises Superseded if the newest attempt is another driver's.
    """
    number = _newest(run_uri)
    holder = _driver(run_uri, number)
    if holder.token != driver.token:
        raise Superseded(f"{holder} has resumed this run; these workers stop")
    return _claim(Attempt(run_uri, number + 1, driver))


def take_unconditionally(run_uri: str, driver: Driver) -> Attempt:
    """Claim the next attempt without checking whether the one before has ended.

    For a trial's process: Tune starts one at a time, so its predecessor, if it still runs, can commit nothing from here
    on.
    """
    while True:
        with suppress(_ClaimLost):  # another process was faster: claim the attempt after it
            return _claim(Attempt(run_uri, _newest(run_uri) + 1, driver))


def is_driven_by(run_uri: str, driver: Driver) -> bool:
    """Whether the run's newest attempt is this driver's."""
    return _driver(run_uri, _newest(run_uri)).token == driver.token


def last_driver(run_uri: str) -> LastDriver | None:
    """The state of a run's or a search's driver now, from two requests and without waiting; None before any attempt.

    For display: whoever wants to take over calls `take_over`, which trusts no clock.
    """
    listing = list_folder(object_store.join(run_uri, "attempts"))
    number = max((int(name) for name in listing.written if name.isdigit()), default=0)
    if not number:
        return None
    driver = _driver_if_readable(run_uri, number)
    token = driver.token if driver else ""
    signs = [name for name in (str(number), f"{token}.beat", f"{token}.ended") if name in listing.written]
    quiet_s = min(map(listing.age, signs))
    here = driver is not None and driver.here()
    if f"{token}.ended" in signs:
        state = DriverState.ENDED
    elif driver is None or here:
        state = DriverState.RUNNING if driver and driver.exists() else DriverState.KILLED
    else:
        state = DriverState.RUNNING if quiet_s < SILENCE_S else DriverState.SILENT
    return LastDriver(state, listing.written[str(number)], quiet_s, here)


@contextmanager
def beating(run_uri: str, driver: Driver) -> Iterator[None]:
    """Send the driver's heartbeat from a thread while the context lasts; at its end, note that the driver has ended.

    A stop that is requested by a file (`request_stop`) reaches this process as SIGTERM, once. A kill leaves no note:
    another process then sees from the process table, or from the heartbeat, that it is gone.
    """

    def beat(ended: threading.Event) -> None:
        count, stopping = 0, False
        while not ended.wait(BEAT_S):
            count += 1
            with suppress(Exception):  # in an outage longer than SILENCE_S a driver elsewhere may take over
                object_store.put_text(_path(run_uri, f"{driver.token}.beat"), str(count))
                if not stopping and stop_requested(run_uri, driver):
                    stopping = True
                    os.kill(os.getpid(), signal.SIGTERM)

    try:
        with in_background(beat, name="heartbeat", wait_s=REQUEST_S):
            yield
    finally:
        with suppress(Exception):  # without the note, another process waits until the heartbeat counts as silent
            object_store.put_text(_path(run_uri, f"{driver.token}.ended"), "")


def request_stop(run_uri: str, driver: Driver) -> None:
    """Ask the driver and its workers to save and stop, by a file that both look for."""
    object_store.put_text(_path(run_uri, f"{driver.token}.stop"), "")


def request_stop_of_newest(run_uri: str) -> Driver:
    """Ask whatever process drives a run or search to save and stop; returns it.

    ValueError where none has claimed it, or its driver has ended.
    """
    number = _newest(run_uri)
    if not number:
        raise ValueError(f"{run_uri!r}: no run or search has begun there")
    driver = _driver(run_uri, number)
    if object_store.exists(_path(run_uri, f"{driver.token}.ended")) or (driver.here() and not driver.exists()):
        raise ValueError(f"{run_uri!r}: {driver}, which drove it last, has ended; there is nothing to stop")
    request_stop(run_uri, driver)
    return driver


def stop_requested(run_uri: str, driver: Driver) -> bool:
    """Whether the driver has asked its workers to save and stop."""
    return object_store.exists(_path(run_uri, f"{driver.token}.stop"))


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
    content = json_text({"claim": claim, "driver": asdict(attempt.driver)}).encode()
    created = object_store.create_exclusively(path, content)
    # A lost answer makes the store's client send the request again, which then fails because the object exists.
    if not created and _read_claim(path)["claim"] != claim:
        raise _ClaimLost(f"run {attempt.run_uri!r}: another process has just resumed it; only one may")
    return attempt


def _newest(run_uri: str) -> int:
    names = object_store.list_names(object_store.join(run_uri, "attempts"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def _driver(run_uri: str, number: int) -> Driver:
    named = _read_claim(_path(run_uri, str(number)))["driver"]
    fields = named["token"], named["host"], named["boot"], named["processes"], named["pid"], named["since_boot"]
    return Driver(*fields)


def _driver_if_readable(run_uri: str, number: int) -> Driver | None:
    """The driver of an attempt; None, said on stderr, where its file is damaged.

    Claims are created whole, so that is what a power cut leaves, whose driver has ended; one that lives all the same
    commits nothing after the next claim.
    """
    try:
        return _driver(run_uri, number)
    except ValueError as error:
        print_status(f"{error}; its driver is taken to have ended")
        return None


def _read_claim(uri: str) -> _Claim:
    claim: _Claim = object_store.read_json(uri, _Claim)
    return claim


def _beat(run_uri: str, driver: Driver) -> bytes:
    path = _path(run_uri, f"{driver.token}.beat")
    return object_store.get_bytes(path) if object_store.exists(path) else b""


def _path(run_uri: str, name: str) -> str:
    return object_store.join(run_uri, "attempts", name)
