"""The runs of a study on Ray: each is a task of its own process, which trains it as `--local` would.

The driver's process starts as many at once as the cluster holds, and the next one whenever one has ended. Ray repeats a
task whose node or process was lost; the run then continues from its newest checkpoint.
"""

import math
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

from orchestrator.runs.lease import request_stop_of_newest
from orchestrator.storage import object_store
from orchestrator.study.member import Tally, no_progress, run_member
from orchestrator.study.plan import Member, StudyPlan
from orchestrator.study.request import StudyRequest
from orchestrator.study.store import DEFINITION
from orchestrator.tracking.uri import absolute_uri
from orchestrator.training.ray_cluster import RayConnection, connect, prepare_environment
from orchestrator.training.signals import Interrupts
from orchestrator.training.worker_resources import WorkerNeeds, worker_needs
from workloads.config.study import CONTROL
from workloads.runtime.text import one_line

RETRIES = 2  # of a run whose process or node was lost
SAVE_S = 60.0  # how long runs that are asked to stop may take to save: they look for the request every ten seconds


def run_on_ray(plan: StudyPlan, request: StudyRequest, left: list[tuple[Member, str]], tally: Tally) -> str:
    """Run what is left; returns "preempted" where the user stops it, else "done"."""
    if not left:
        return "done"
    address = prepare_environment(request.address)  # before Ray is imported: its token's location is read then
    import ray

    needs = worker_needs(plan.methods[CONTROL].recipe)
    with Interrupts() as interrupts:
        try:
            connection = connect(ray, address, at_least=math.ceil(needs.resources["CPU"]))
            interrupts.install()  # once more: Ray has set its own handler
            interrupts.check()
            slots = _slots(ray, connection, needs, request, interrupts)
            _run_all(ray, _remote(ray, needs), for_other_processes(request), plan, left, tally, slots)
        except KeyboardInterrupt:
            return "preempted"
        finally:
            ray.shutdown()
    return "done"


def for_other_processes(request: StudyRequest) -> StudyRequest:
    """The request with absolute paths: the working folder of Ray's processes may be another one."""
    storage = request.storage
    storage = str(object_store.local_path(storage)) if object_store.is_local(storage) else storage
    return replace(request, storage=storage, tracking=absolute_uri(request.tracking))


def _slots(
    ray: Any, connection: RayConnection, needs: WorkerNeeds, request: StudyRequest, interrupts: Interrupts
) -> int:
    """How many runs the cluster holds at once, or as many as are wanted; ValueError where it does not hold these."""
    wanted = max(1, request.slots)
    connection = connection.wait_for_room(ray, needs, 1, groups=wanted, wait_s=request.wait_s, check=interrupts.check)
    connection.require_visible(ray, object_store.join(request.storage, request.id, DEFINITION))
    held = sum(needs.fit(node) for node in connection.nodes)
    if held < wanted:
        raise ValueError(
            f"--slots {wanted}: the cluster holds {held} runs of {needs} each at once; ask for fewer, or set "
            "train.threads, train.loaders or resources"
        )
    return request.slots or held


def _remote(ray: Any, needs: WorkerNeeds) -> Any:
    """`run_member` as a task that reserves what a worker of the recipe takes."""
    others = dict(needs.resources)
    options: dict[str, Any] = {"num_cpus": others.pop("CPU"), "num_gpus": others.pop("GPU", 0)}
    options |= {"memory": others.pop("memory")} if "memory" in others else {}
    options |= {"label_selector": dict(needs.labels)} if needs.labels else {}
    return ray.remote(resources=others, max_retries=RETRIES, **options)(_run_in_task)


def _run_in_task(request: StudyRequest, plan: StudyPlan, member: Member) -> dict[str, str]:
    """Called in a process of Ray's, in its main thread."""
    return run_member(request, plan, member, no_progress)


def _run_all(
    ray: Any,
    remote: Any,
    request: StudyRequest,
    plan: StudyPlan,
    left: list[tuple[Member, str]],
    tally: Tally,
    slots: int,
) -> None:
    """Keep all slots busy until nothing is left; where the user stops it, ask the runs to save, and wait for that."""
    waiting, running = left[::-1], dict[Any, str]()
    try:
        while waiting or running:
            while waiting and len(running) < slots:
                member, name = waiting.pop()
                running[remote.remote(request, plan, member)] = name
            ended, _ = ray.wait(list(running), timeout=1.0)
            for task in ended:
                name = running.pop(task)
                _count(ray, task, name, tally)
    except KeyboardInterrupt:
        _stop(ray, request, running)
        raise


def _count(ray: Any, task: Any, name: str, tally: Tally) -> None:
    try:
        ended = ray.get(task)
    except ray.exceptions.RayError as error:  # what the run raised, or its process is lost for good
        ended = {"status": "failed", "error": one_line(error)}
    tally.count(name, ended["status"], ended["error"])


def _stop(ray: Any, request: StudyRequest, running: dict[Any, str]) -> None:
    """Ask all runs to save and stop, and wait until they have, for at most `SAVE_S` seconds."""
    for name in running.values():
        with suppress(ValueError, OSError):  # not begun yet, or over
            request_stop_of_newest(object_store.join(request.storage, name))
    deadline = time.monotonic() + SAVE_S
    with suppress(KeyboardInterrupt):  # a second one stops at once: what is committed stays
        ray.wait(list(running), num_returns=len(running), timeout=max(deadline - time.monotonic(), 0))
