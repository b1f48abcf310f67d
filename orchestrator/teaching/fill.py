"""The driver of `antiphon teach`: checks, describes the store, fills the shards that are missing, and finishes it.

Contract: everything that counts is on the store (`orchestrator/stores/writer.py`), so a kill of any process at any
moment loses the shards that were being computed, and the same command goes on.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.runs.location import RunLocation
from orchestrator.storage import object_store
from orchestrator.stores.writer import begin_store, finish_store, unwritten
from orchestrator.teaching.clips import TaughtClips, prepare_clips, sample_checksums
from orchestrator.teaching.job import (
    Job,
    ShardFiller,
    ShardTimes,
    TeachRequest,
    check_request,
    load_ensemble,
    with_absolute_paths,
)
from orchestrator.teaching.teacher_runs import train_teachers
from orchestrator.training.driver import Progress
from orchestrator.training.ray_pool import PoolWork, run_on_ray
from orchestrator.training.signals import Interrupts
from orchestrator.training.worker_resources import needs_of
from workloads.runtime.text import name_some
from workloads.stores.plan import ShardPlan
from workloads.teaching.ensemble import Ensemble


@contextmanager
def no_progress(location: RunLocation) -> Iterator[None]:
    """Training of teachers that nobody looks at."""
    yield


OnShard = Callable[[int, int], None]  # number of shards that are written, and of all


@dataclass
class _Progress:
    """What has been done so far, also where the command is interrupted."""

    on_shard: OnShard
    plan: Sequence[ShardPlan] = ()
    before: int = 0  # shards that earlier commands have written
    written: list[ShardPlan] = field(default_factory=list)
    times: ShardTimes = field(default_factory=ShardTimes)  # of those, of all workers together

    def start(self, plan: Sequence[ShardPlan], waiting: Sequence[ShardPlan]) -> None:
        self.plan, self.before = plan, len(plan) - len(waiting)
        self.on_shard(self.before, len(plan))

    def add(self, shard: ShardPlan, times: ShardTimes) -> None:
        self.written.append(shard)
        self.times = self.times.plus(times)
        self.on_shard(self.before + len(self.written), len(self.plan))


def fill_store(
    request: TeachRequest, *, on_shard: OnShard, warn: Callable[[str], None], show_progress: Progress = no_progress
) -> dict[str, Any]:
    """Fill the store of a recipe, or go on with it; returns the object that --json prints.

    Its status is "done", or "preempted" after SIGTERM or Ctrl-C. Runs whose models teach are trained first, with
    `show_progress` as in `driver.run`. `on_shard` is called whenever a shard is written.
    Raises ValueError for the user's mistakes, for a teacher whose output cannot be stored, and where another store was
    begun at the place; OSError where a disk or a storage fails, or the workers of a shard die.
    """
    check_request(request)
    out = str(object_store.local_path(request.out)) if object_store.is_local(request.out) else request.out
    object_store.check_storage(out)
    began, progress = time.monotonic(), _Progress(on_shard)
    result: dict[str, Any] = {"status": "done", "mistake": False, "error": None, "store": request.out}
    request, result["status"] = train_teachers(request, show_progress=show_progress, warn=warn)
    if result["status"] == "done":
        request = replace(request, recipe=with_absolute_paths(request.recipe), out=out)
        with Interrupts() as interrupts:
            try:
                result |= _fill(request, progress, interrupts, warn)
            except KeyboardInterrupt:
                result["status"] = "preempted"
    return result | {
        "shards": len(progress.plan),
        "shards_written": len(progress.written),
        "seconds": round(time.monotonic() - began, 3),
        "seconds_waited": round(progress.times.waited_s, 3),
        "seconds_heard": round(progress.times.heard_s, 3),
        "seconds_wrote": round(progress.times.wrote_s, 3),
    }


def _fill(
    request: TeachRequest, progress: _Progress, interrupts: Interrupts, warn: Callable[[str], None]
) -> dict[str, Any]:
    recipe, patience_s = request.recipe, request.patience_s
    # with Ray the driver's machine may have no GPU, and the teachers hear one silent clip here
    ensemble = load_ensemble(recipe, recipe.teach.device if request.local else "cpu", patience_s=patience_s)
    about = ensemble.describe()
    clips = prepare_clips(recipe, ensemble.rate)
    about["heard"] = sample_checksums(recipe, clips)
    for warning in clips.warnings:
        warn(warning)
    if clips.quarantined:
        names = name_some([f"{clip.clip_id} ({clip.reason})" for clip in clips.quarantined], 3)
        warn(f"{len(clips.quarantined)} clips cannot be heard and have no rows: {names}")
    description, plan = begin_store(
        request.out, about, clips.clip_ids, clips_per_shard=recipe.teach.clips_per_shard, patience_s=patience_s
    )
    waiting = unwritten(request.out, description, plan, patience_s=patience_s)
    progress.start(plan, waiting)
    job = Job(recipe, request.out, description, clips.store.without_clips(), patience_s)
    if request.local or not waiting:
        _fill_here(job, ensemble, clips, waiting, progress)
    else:
        run_on_ray(
            _ray_work(job, clips),
            waiting,
            progress.add,
            workers=request.workers,
            address=request.address,
            wait_s=request.wait_s,
            interrupts=interrupts,
        )
    manifest = finish_store(request.out, description, plan, patience_s=patience_s)
    return {
        "rows": manifest["rows"],
        "clips": len(clips.clip_ids),
        "views": recipe.teach.views,
        "quarantined": [clip.clip_id for clip in clips.quarantined],
    }


def _fill_here(
    job: Job, ensemble: Ensemble, clips: TaughtClips, waiting: Sequence[ShardPlan], progress: _Progress
) -> None:
    filler = ShardFiller(job, ensemble)
    for shard in waiting:
        progress.add(shard, filler.fill(shard, clips.entries(shard), clips.partners(job.recipe, shard)))


def _ray_work(job: Job, clips: TaughtClips) -> PoolWork[ShardPlan]:
    """What Ray's workers do: each loads the teachers once and fills one shard after the other."""
    teach = job.recipe.teach
    return PoolWork(
        actor=ShardFiller,
        arguments=(job,),
        start=lambda actor, shard: actor.fill.remote(shard, clips.entries(shard), clips.partners(job.recipe, shard)),
        name=lambda shard: f"shard {shard.number}",
        needs=needs_of(teach.threads, teach.device),
        visible={
            "--out": job.out,
            **({"data.root": job.recipe.data.root} if job.recipe.data.format == "packed" else {}),
            **{
                f"teachers.{name}.uri": teacher.uri
                for name, teacher in job.recipe.teachers.items()
                if not teacher.drawn
            },
        },
        fix="or set teach.threads or teach.device",
        waits_s=job.patience_s * max(len(job.description["columns"]), len(job.recipe.teachers)),
    )
