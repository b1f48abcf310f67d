"""A store's shards on a pool of Ray actors: each loads the teachers once and fills one shard at a time.

Contract: the driver gives a shard to an actor and, where that dies, to a new one, up to `RETRIES` times; actors write
to the store themselves. So a shard may be written twice, with the same bytes.

Not by Ray Data: it decides itself which rows form a file, and names files by the run.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.teaching.job import Job, ShardFiller, TaughtClips
from orchestrator.training.ray_cluster import connect, prepare_environment
from orchestrator.training.signals import Interrupts
from orchestrator.training.worker_resources import require_room, resources_of
from workloads.stores.plan import ShardPlan


class WorkerDied(OSError):
    """A shard's worker has died again and again: killed, or out of memory."""


RETRIES = 3  # of a shard, after its actor has died
POLL_S = 0.5  # how long a stop waits at most


def fill_on_ray(
    job: Job,
    waiting: Sequence[ShardPlan],
    clips: TaughtClips,
    *,
    workers: int,
    address: str,
    interrupts: Interrupts,
    on_shard: Callable[[ShardPlan], None],
) -> None:
    """Fill these shards; raises what a worker raises, ValueError where Ray cannot hold the workers, and WorkerDied
    where those of a shard do."""
    address = prepare_environment(address)  # before Ray is imported: it reads where its token is then
    import ray

    teach = job.recipe.teach
    worker = resources_of(teach.threads, teach.device)
    connection = connect(ray, address, at_least=workers * teach.threads + 1)
    try:
        interrupts.install()  # once more: Ray has set its own handler
        interrupts.check()
        require_room(connection.nodes, worker, workers, address, fix="or set teach.threads or teach.device")
        connection.require_visible(ray, job.out, option="--out")
        for name, teacher in job.recipe.teachers.items():
            connection.require_visible(ray, teacher.uri, option=f"teachers.{name}.uri")
        options = {"num_cpus": worker["CPU"], "num_gpus": worker.get("GPU", 0)}
        _Pool(ray, job, options, clips, workers=workers).fill(waiting, on_shard, interrupts)
    finally:
        ray.shutdown()


class _Pool:
    """Actors, of which each that is busy has one shard; new ones take the place of those that died."""

    def __init__(self, ray: Any, job: Job, options: dict[str, float], clips: TaughtClips, *, workers: int) -> None:
        self._ray, self._clips, self._workers = ray, clips, workers
        self._job = ray.put(job)
        self._actor_class = ray.remote(ShardFiller).options(**options)
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, ShardPlan]] = {}  # by the task's reference
        self._lost = Counter[int]()  # by number of the shard

    def fill(self, waiting: Sequence[ShardPlan], on_shard: Callable[[ShardPlan], None], interrupts: Interrupts) -> None:
        queue = deque(waiting)
        while queue or self._busy:
            while queue and len(self._busy) < self._workers:
                self._start(queue.popleft())
            done, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=POLL_S)
            interrupts.check()
            for task in done:
                actor, shard = self._busy.pop(task)
                if self._is_filled(task, shard):
                    self._idle.append(actor)
                    on_shard(shard)
                else:
                    queue.appendleft(shard)

    def _start(self, shard: ShardPlan) -> None:
        actor = self._idle.pop() if self._idle else self._actor_class.remote(self._job)
        self._busy[actor.fill.remote(shard, self._clips.entries(shard))] = actor, shard

    def _is_filled(self, task: Any, shard: ShardPlan) -> bool:
        """Whether the actor has filled it, or has died; raises what the actor raised, or WorkerDied after RETRIES."""
        try:
            self._ray.get(task)
        except self._ray.exceptions.RayTaskError as failed:
            raise failed.cause from None
        except self._ray.exceptions.RayActorError as died:
            self._lost[shard.number] += 1
            if self._lost[shard.number] > RETRIES:
                raise WorkerDied(
                    f"shard {shard.number}: the worker that filled it died {self._lost[shard.number]} times "
                    f"({_last_line(died)}); what is written stays, the same command goes on"
                ) from None
            return False
        return True


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
