"""Work in pieces on a pool of Ray actors, each of which has one piece at a time. Does not depend on what the work is.

Contract: the driver gives a piece to an actor and, where that dies, to a new one, up to `RETRIES` times. Actors write
their results themselves, and a piece may be worked on twice, also at once: the same bytes must come out.

Not by Ray's own `ActorPool`, which does not replace actors that have died, nor by Ray Data, which decides itself which
rows form a file, and names files by the run.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from orchestrator.training.ray_cluster import connect, prepare_environment
from orchestrator.training.signals import Interrupts
from orchestrator.training.worker_resources import WorkerNeeds, require_room
from workloads.runtime.text import one_line

Piece = TypeVar("Piece")
RETRIES = 3  # of a piece, after its actor has died
POLL_S = 0.5  # how long a stop waits at most


class WorkerDied(OSError):
    """A piece's worker has died again and again: killed, or out of memory."""


@dataclass(frozen=True)
class PoolWork(Generic[Piece]):
    """What the actors of a pool are, and what they do with a piece."""

    actor: type[Any]
    arguments: tuple[Any, ...]  # of its constructor, which runs in the actor's process; sent once
    start: Callable[[Any, Piece], Any]  # calls a method of an actor, through Ray's handle; returns Ray's reference
    name: Callable[[Piece], str]  # for messages, another one for each piece: "shard 3"
    needs: WorkerNeeds  # of one actor
    visible: Mapping[str, str]  # option -> URI: local ones must be seen by all nodes
    fix: str  # how to make room for the workers, other than by fewer of them


def run_on_ray(
    work: PoolWork[Piece],
    pieces: Iterable[Piece],
    on_done: Callable[[Piece, Any], None],
    *,
    workers: int,
    address: str,
    wait_s: float,
    interrupts: Interrupts,
) -> None:
    """Have all pieces worked on; `on_done` is called here with each piece and what the actor's method has returned.

    Raises what a worker or `on_done` raises, ValueError where Ray cannot hold the workers or a node does not see a
    file, WorkerDied where the workers of a piece do, and KeyboardInterrupt at a signal.
    """
    address = prepare_environment(address)  # before Ray is imported: it reads where its token is then
    import ray

    connection = connect(ray, address, at_least=math.ceil(workers * work.needs.resources["CPU"]) + 1)
    try:
        interrupts.install()  # once more: Ray has set its own handler
        interrupts.check()
        connection = connection.wait_for_room(ray, work.needs, workers, wait_s=wait_s, check=interrupts.check)
        require_room(connection.nodes, work.needs, workers, address, fix=work.fix)
        for option, uri in work.visible.items():
            connection.require_visible(ray, uri, option=option)
        _Pool(ray, work, workers=workers).run(deque(pieces), on_done, interrupts)
    finally:
        ray.shutdown()


class _Pool(Generic[Piece]):
    """Actors, of which each that is busy has one piece; new ones take the place of those that died."""

    def __init__(self, ray: Any, work: PoolWork[Piece], *, workers: int) -> None:
        self._ray, self._work, self._workers = ray, work, workers
        self._arguments = [ray.put(argument) for argument in work.arguments]
        resources = work.needs.resources
        options = {"num_cpus": resources["CPU"], "num_gpus": resources.get("GPU", 0)}
        self._actor_class = ray.remote(work.actor).options(**options)
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Piece]] = {}  # by the task's reference
        self._lost = Counter[str]()  # by name of the piece

    def run(self, queue: deque[Piece], on_done: Callable[[Piece, Any], None], interrupts: Interrupts) -> None:
        while queue or self._busy:
            while queue and len(self._busy) < self._workers:
                self._start(queue.popleft())
            if not queue:  # an actor in the place of a dead one may wait for the resources that idle ones hold
                self._idle.clear()
            done, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=POLL_S)
            interrupts.check()
            for task in done:
                self._finish(task, queue, on_done)

    def _finish(self, task: Any, queue: deque[Piece], on_done: Callable[[Piece, Any], None]) -> None:
        """Take the result of a task that has ended; a piece whose actor died goes back to the front of the queue."""
        actor, piece = self._busy.pop(task)
        try:
            result = self._ray.get(task)
        except self._ray.exceptions.RayTaskError as failed:
            raise failed.cause from None
        except self._ray.exceptions.RayActorError as died:
            self._count_lost(piece, died)
            self._idle.clear()  # they may have died with it, on the same node
            queue.appendleft(piece)
        else:
            self._idle.append(actor)
            on_done(piece, result)

    def _start(self, piece: Piece) -> None:
        actor = self._idle.pop() if self._idle else self._actor_class.remote(*self._arguments)
        self._busy[self._work.start(actor, piece)] = actor, piece

    def _count_lost(self, piece: Piece, died: Exception) -> None:
        """Raise WorkerDied after `RETRIES`."""
        name = self._work.name(piece)
        self._lost[name] += 1
        if self._lost[name] > RETRIES:
            raise WorkerDied(
                f"{name}: the worker that had it died {self._lost[name]} times ({one_line(died)}); what is written "
                "stays, the same command goes on"
            ) from None
