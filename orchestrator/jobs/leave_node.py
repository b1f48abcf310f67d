"""Saving what runs on this node before it is taken away: `antiphon cluster leave`, the hook before a pod stops.

Kubernetes' SIGTERM reaches the first process of a pod, which is Ray's: neither the drivers of jobs nor workers hear of
it, and Ray gives a worker no time. Contract: called once, on the node, by the user whose processes are there; changes
nothing but to ask them to end, and returns when they have or the time is over.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psutil

from orchestrator.jobs.client import RefusedByRay

POLL_S = 0.2
DRIVEN = ("run", "search", "study", "teach", "data")  # the commands that save, or leave what is whole, at SIGTERM
PROGRAM_MODULE, PROGRAM_NAME = "orchestrator.cli.app", "antiphon"
WORKER = "RayTrainWorker"  # in the title of a worker's process
WORKS = "ray::"  # how the titles of Ray's processes begin, also of these:
NO_WORK = tuple(f"{WORKS}{name}" for name in ("IDLE", "JobSupervisor", "DashboardAgent", "RuntimeEnvAgent"))


def leave_node(*, seconds: float, say: Callable[[str], Any]) -> bool:
    """Have the drivers on this node save and end, then the workers move to other nodes; whether they have in time.

    Drivers are asked by SIGTERM. Where something else of Ray works, Ray is told that the node will be taken away, as a
    cloud does for a spot node: it gives the node nothing more. Workers of `run` save after a step or a second and start
    again elsewhere. Trials of one worker, runs of a study and tasks of `teach` know no notice: they are not waited for,
    and are run again elsewhere from their newest checkpoint, shard or rung.
    """
    deadline = time.monotonic() + seconds
    drivers = list(_processes(_is_driver))
    for driver in drivers:
        say(f"process {driver.pid} is asked to save and stop")
        with suppress(psutil.NoSuchProcess):
            driver.send_signal(signal.SIGTERM)
    while (left := [driver for driver in drivers if _lives(driver)]) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    working = list(_processes(_works))
    if working and (raylet := next(_processes(_is_raylet), None)):
        say(f"workers are asked to move to other nodes: {len(working)}")
        _announce(raylet, deadline - time.monotonic())
    while _workers() and time.monotonic() < deadline:
        time.sleep(POLL_S)
    left += _workers()
    for process in left:
        say(f"process {process.pid} has not ended within {seconds:g} s")
    return not left


def _lives(process: psutil.Process) -> bool:
    """Whether it has not ended; whoever started it may not have asked for its exit code yet."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _workers() -> list[psutil.Process]:
    return list(_processes(lambda words: WORKER in " ".join(words)))


def _works(words: list[str]) -> bool:
    """Whether a process of Ray has a task or is an actor; its title is its command line then."""
    title = " ".join(words)
    return WORKER in title or (title.startswith(WORKS) and not title.startswith(NO_WORK))


def _processes(which: Callable[[list[str]], bool]) -> Iterator[psutil.Process]:
    """The processes of this node whose command lines are such; a pod is told from others by its network."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            here = process.pid != os.getpid() and _network(process.pid) == _network(os.getpid())
            if here and which(process.cmdline()):
                yield process


def _network(pid: int) -> str:
    """The namespace of a process's network; all of macOS's processes share one."""
    return os.readlink(f"/proc/{pid}/ns/net") if sys.platform == "linux" else ""


def _is_driver(words: list[str]) -> bool:
    for place, word in enumerate(words[:-1]):
        if word == PROGRAM_MODULE or os.path.basename(word) == PROGRAM_NAME:
            return words[place + 1] in DRIVEN
    return False


def _is_raylet(words: list[str]) -> bool:
    return bool(words) and os.path.basename(words[0]) == "raylet"


def _announce(raylet: psutil.Process, seconds: float) -> None:
    """Tell Ray's head that this node is to be taken away, as `ray drain-node` does; there is no public function."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # takes a second, so not where it is not needed
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # type: ignore[attr-defined]

    options = dict(word.lstrip("-").split("=", 1) for word in raylet.cmdline() if "=" in word)
    deadline_ms = int((time.time() + max(1.0, seconds)) * 1000)
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    head = GcsClient(address=options["gcs-address"])
    accepted, why_not = head.drain_node(options["node_id"], reason, "the node is to be taken away", deadline_ms)
    if not accepted:
        raise RefusedByRay(f"Ray does not let node {options['node_id']} go: {why_not}")
