"""Work in pieces on a pool of Ray actors, each of which works on one at a time. Does not depend on what the work is.

Contract: the driver gives a piece to an actor and, where that dies or hangs, to a new one, up to `RETRIES` times.
Actors write their results themselves, and a piece may be worked on twice, also at once: the same bytes must come out.

An actor hangs that has had a piece for `TIMES_SLOWEST` times as long as the slowest piece took that has ended, and for
`LEAST_S` at least. (A process that is stopped, or whose GPU or disk does not answer, does not die of itself.)

An actor has its next piece, too, so that it does not wait for the driver; but the last pieces, as many as there are
actors, are given to actors that have nothing to do, so that no piece waits behind another one.

Not by Ray's own `ActorPool`, which does not replace actors that have died, nor by Ray Data, which decides itself which
rows form a file, and names files by the run.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from orchestrator.storage.retry import print_status
from orchestrator.training.ray_cluster import connect, prepare_environment
from orchestrator.training.signals import Interrupts
from orchestrator.training.worker_resources import WorkerNeeds, require_room
from workloads.runtime.text import one_line

Piece = TypeVar("Piece")
AHEAD = 1  # pieces that an actor has beside the one on which it works
RETRIES = 3  # of a piece, after its actor has died
POLL_S = 0.5  # how long a stop waits at most
TIMES_SLOWEST, LEAST_S = 10.0, 600.0
FIRST_S = 6 * 3600.0  # the limit of a piece before any has ended
START_S = 1800.0  # that of an actor to be placed on a node and constructed: there it may load large models


class WorkerDied(OSError):
    """A piece's worker has died, or hung, again and again: killed, out of memory, or on a device that fails."""


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
    waits_s: float  # how long a piece, or the constructor, may wait for an unavailable storage; hanging begins after


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


class _Worker(Generic[Piece]):
    """An actor, and the pieces that it has: it works on the first."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.created = self.since = time.monotonic()  # since when it starts, or works on its first piece
        self.starts: Any = actor.__ray_ready__.remote()  # Ray's reference until the actor is there; then None
        self.pieces: dict[Any, Piece] = {}  # by the task's reference, in the order in which they were given

    @property
    def awaited(self) -> Any:
        """Ray's reference of what it does now: it starts, or works on a piece."""
        return self.starts if self.starts is not None else next(iter(self.pieces))

    def give(self, task: Any, piece: Piece) -> None:
        if not self.pieces and self.starts is None:
            self.since = time.monotonic()
        self.pieces[task] = piece


class _Pool(Generic[Piece]):
    """Actors with their pieces; new ones take the place of those that died or hang."""

    def __init__(self, ray: Any, work: PoolWork[Piece], *, workers: int) -> None:
        self._ray, self._work, self._most = ray, work, workers
        self._arguments = [ray.put(argument) for argument in work.arguments]
        resources = work.needs.resources
        options = {"num_cpus": resources["CPU"], "num_gpus": resources.get("GPU", 0)}
        self._actor_class = ray.remote(work.actor).options(**options)
        self._workers: list[_Worker[Piece]] = []
        self._lost = Counter[str]()  # by name of the piece
        self._slowest_s: float | None = None  # of the pieces that have ended; None before the first one
        self._last_end = -math.inf

    def run(self, queue: deque[Piece], on_done: Callable[[Piece, Any], None], interrupts: Interrupts) -> None:
        while queue or any(worker.pieces for worker in self._workers):
            while queue and (worker := self._next_worker(len(queue))):
                piece = queue.popleft()
                worker.give(self._work.start(worker.actor, piece), piece)
            if not queue:  # an actor in the place of a dead one may wait for the resources that idle ones hold
                self._drop_idle()
            awaited = {worker.awaited: worker for worker in self._workers if worker.pieces}
            done, _ = self._ray.wait(list(awaited), num_returns=1, timeout=POLL_S)
            interrupts.check()
            for reference in done:
                self._finish(awaited[reference], queue, on_done)
            self._give_up_hanging(queue)

    def _next_worker(self, left: int) -> _Worker[Piece] | None:
        """The one that gets the next of so many pieces; None where all have enough."""
        freest = min(self._workers, key=lambda worker: len(worker.pieces), default=None)
        if freest is not None and not freest.pieces:
            return freest
        if len(self._workers) < self._most:
            self._workers.append(_Worker(self._actor_class.remote(*self._arguments)))
            return self._workers[-1]
        return freest if freest and len(freest.pieces) <= AHEAD and left >= self._most else None

    def _drop_idle(self) -> None:
        """End the actors without a piece: to let go of them is not enough while a variable still holds a handle."""
        for worker in self._workers:
            if not worker.pieces:
                self._ray.kill(worker.actor)
        self._workers = [worker for worker in self._workers if worker.pieces]

    def _finish(self, worker: _Worker[Piece], queue: deque[Piece], on_done: Callable[[Piece, Any], None]) -> None:
        """Take note of an actor that has started, the result of a piece, or that the actor died."""
        try:
            result = self._ray.get(worker.awaited)
        except self._ray.exceptions.RayTaskError as failed:
            raise failed.cause from None
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.OutOfMemoryError) as died:
            problem = f"the worker that had it died ({one_line(died)})"
            self._count_lost(worker, problem)
            print_status(f"{self._work.name(next(iter(worker.pieces.values())))}: {problem}; another one gets it")
            self._remove(worker, queue)
            self._drop_idle()  # they may have died with it, on the same node
            return
        now, was, worker.since = time.monotonic(), worker.since, time.monotonic()
        if worker.starts is not None:
            worker.starts = None
            return
        self._slowest_s, self._last_end = max(self._slowest_s or 0.0, now - was), now
        on_done(worker.pieces.pop(worker.awaited), result)

    def _give_up_hanging(self, queue: deque[Piece]) -> None:
        """Kill the actors that have taken too long, and give their pieces to others.

        One that has not started while others worked on may wait for a node: its piece does not count as lost.
        """
        now = time.monotonic()
        for worker in [worker for worker in self._workers if worker.pieces]:
            limit_s = self._limit_s(worker)
            if now - worker.since < limit_s or self._ray.wait([worker.awaited], timeout=0)[0]:
                continue
            what = "has not started" if worker.starts is not None else "has not ended"
            problem = f"its worker {what} within {limit_s:.0f} s"
            if worker.starts is None or self._last_end < worker.created:
                self._count_lost(worker, problem)
            print_status(f"{self._work.name(next(iter(worker.pieces.values())))}: {problem}; another one gets it")
            self._ray.kill(worker.actor)
            self._remove(worker, queue)

    def _limit_s(self, worker: _Worker[Piece]) -> float:
        """How long an actor may start, or work on a piece."""
        if worker.starts is not None:
            limit_s = START_S
        elif self._slowest_s is None:
            limit_s = FIRST_S
        else:
            limit_s = max(LEAST_S, TIMES_SLOWEST * self._slowest_s)
        return limit_s + self._work.waits_s

    def _remove(self, worker: _Worker[Piece], queue: deque[Piece]) -> None:
        """Forget an actor; its pieces go back to the front of the queue."""
        self._workers.remove(worker)
        queue.extendleft(reversed(worker.pieces.values()))

    def _count_lost(self, worker: _Worker[Piece], problem: str) -> None:
        """Raise WorkerDied after `RETRIES` of the piece on which an actor worked."""
        name = self._work.name(next(iter(worker.pieces.values())))
        self._lost[name] += 1
        if self._lost[name] > RETRIES:
            raise WorkerDied(
                f"{name}: lost {self._lost[name]} times: {problem}; what is written stays, the same command goes on"
            ) from None
