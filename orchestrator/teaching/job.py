"""One `antiphon teach`: the rules that refuse it, its teachers fetched and loaded, and one shard filled.

What a process needs to fill shards is a `Job`, which can be sent to any; knows no Ray.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from orchestrator.storage import object_store, published_folders
from orchestrator.storage.fsspec_files import FsspecFiles
from orchestrator.storage.retry import retry_while_unavailable
from orchestrator.stores.writer import write_shard
from orchestrator.teaching.clips import entries_on_this_node, view_checksums
from orchestrator.training.inside_job import require_lasting_storage
from orchestrator.training.request import refuse_ray_client, refuse_wait
from workloads.config.teach import TeachRecipe
from workloads.data.clip_store import ClipStore, Entry
from workloads.runtime.redaction import require_no_secret
from workloads.runtime.scratch import scratch_folder
from workloads.stores.checksum_sample import sampled_in_shard
from workloads.stores.description import Description
from workloads.stores.plan import ShardPlan
from workloads.teaching.ensemble import Ensemble, Partners
from workloads.teaching.teachers import load_teachers


@dataclass(frozen=True)
class TeachRequest:
    """One `antiphon teach`, as the user typed it."""

    recipe: TeachRecipe
    out: str
    workers: int = 1
    address: str = ""  # of a Ray cluster; empty: a local one
    local: bool = False  # in this process, without Ray
    wait_s: float = 0.0  # how long to wait for a cluster that holds the workers
    patience_s: float = 300.0  # how long to wait for an unavailable store
    storage: str = "runs"  # where the runs are whose models teach
    command: str = ""  # for the records of such a run


@dataclass(frozen=True)
class Job:
    """What a process that fills shards is told once."""

    recipe: TeachRecipe
    out: str
    description: Description
    store: ClipStore  # without clips: each shard comes with the entries of its own
    patience_s: float


def check_request(request: TeachRequest) -> None:
    """Raise ValueError for the user's mistakes before anything is loaded or written."""
    refuse_ray_client(request.address)
    require_no_secret(request.out, "--out")
    require_lasting_storage(request.out, "--out")
    if any(teacher.of_run for teacher in request.recipe.teachers.values()):
        require_lasting_storage(request.storage, "--storage")
    refuse_wait(request.wait_s, request.address)
    if request.workers < 1:
        raise ValueError(f"--workers {request.workers}: must be 1 or more")
    if request.patience_s < 0:
        raise ValueError(f"--patience {request.patience_s:g}: must be 0 seconds or more")
    for option, value in (("--workers", request.workers > 1 and request.workers), ("--address", request.address)):
        if request.local and value:
            raise ValueError(f"{option} {value}: --local runs in this process, without Ray; leave one of the two out")
    if request.local and request.recipe.teach.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("teach.device = 'cuda': this machine has no GPU that torch can use; set it to 'cpu'")


def with_absolute_paths(recipe: TeachRecipe) -> TeachRecipe:
    """The recipe with local paths made absolute: Ray gives every worker a working folder of its own."""

    def absolute(uri: str) -> str:
        return str(object_store.local_path(uri)) if uri and object_store.is_local(uri) else uri

    data = recipe.data
    data = replace(data, root=absolute(data.root), manifest=absolute(data.manifest), cache=absolute(data.cache))
    teachers = {
        name: replace(
            teacher,
            uri=teacher.uri if teacher.drawn or teacher.of_run else absolute(teacher.uri),
            tags=absolute(teacher.tags),
        )
        for name, teacher in recipe.teachers.items()
    }
    return replace(recipe, data=data, teachers=teachers)


def load_ensemble(recipe: TeachRecipe, device: str, *, patience_s: float) -> Ensemble:
    """The recipe's teachers, fetched and loaded; ValueError as in `load_teachers`."""
    with scratch_folder() as scratch:
        paths = {
            name: retry_while_unavailable(
                lambda name=name, uri=teacher.uri: _fetch(uri, scratch / name),  # type: ignore[misc]
                what=teacher.uri,
                patience_s=patience_s,
            )
            for name, teacher in recipe.teachers.items()
            if not teacher.drawn
        }
        return Ensemble(recipe, load_teachers(recipe, paths, FsspecFiles()), device)


def _fetch(uri: str, folder: Path) -> Path:
    """The folder or file on this machine: itself, or a copy."""
    if not uri.endswith(".onnx"):
        return published_folders.fetch(uri, folder)
    try:
        content = object_store.get_bytes(uri)
    except FileNotFoundError:
        raise ValueError(f"{uri!r}: there is no such file") from None
    folder.mkdir()
    (folder / "teacher.onnx").write_bytes(content)
    return folder / "teacher.onnx"


class ShardTimes(NamedTuple):
    """Seconds that a worker spent on a shard, or several on several."""

    waited_s: float = 0.0  # for clips to be read
    heard_s: float = 0.0  # while the teachers heard them
    wrote_s: float = 0.0  # while checksums were made and files written

    def plus(self, other: "ShardTimes") -> "ShardTimes":
        return ShardTimes(*(one + more for one, more in zip(self, other, strict=True)))


class ShardFiller:
    """Fills shards of a store, in one process; its teachers are loaded once."""

    def __init__(self, job: Job, ensemble: Ensemble | None = None) -> None:
        self._job, device = job, job.recipe.teach.device
        self._ensemble = ensemble or load_ensemble(job.recipe, device, patience_s=job.patience_s)

    def fill(self, shard: ShardPlan, clips: Sequence[Entry], partners: Partners | None) -> ShardTimes:
        """Compute the rows of a shard and write its files; returns what that took.

        ValueError where a teacher's output cannot be stored, or a clip cannot be heard here.
        """
        job, ensemble = self._job, self._ensemble
        began, waited_s, heard_s = time.perf_counter(), ensemble.waited_s, ensemble.heard_s
        entries = entries_on_this_node(job.store, [*clips, *(partners or {}).values()], job.recipe.data)
        clips = [entries[clip.clip_id] for clip in clips]
        partners = partners and {key: entries[clip.clip_id] for key, clip in partners.items()}
        waited_s -= time.perf_counter() - began  # what another node decoded is decoded here again
        outputs = ensemble.rows(clips, job.store, partners)
        began = time.perf_counter()
        checksums = view_checksums(job.recipe, job.store, sampled_in_shard(shard), entries, partners)
        write_shard(job.out, job.description, shard, outputs, checksums=checksums, patience_s=job.patience_s)
        wrote_s = time.perf_counter() - began
        return ShardTimes(ensemble.waited_s - waited_s, ensemble.heard_s - heard_s, wrote_s)
