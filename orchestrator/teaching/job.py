"""One `antiphon teach`: the rules that refuse it, its teachers fetched and loaded, its clips, and one shard filled.

What a process needs to fill shards is a `Job`, which can be sent to any; knows no Ray.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.storage import object_store
from orchestrator.storage.retry import retry_while_unavailable
from orchestrator.stores.writer import write_shard
from orchestrator.training.inside_job import require_lasting_storage
from orchestrator.training.request import refuse_ray_client, refuse_wait
from workloads.config.teach import TeachRecipe
from workloads.data.augment import draw_partner
from workloads.data.cache import CachedClip, ClipCache, QuarantinedClip
from workloads.data.clips import Clip, Dataset
from workloads.data.manifest import read_dataset
from workloads.data.quarantine import check_quarantined_share
from workloads.data.view_checksum import heard_sha256
from workloads.runtime.redaction import require_no_secret
from workloads.runtime.scratch import scratch_folder
from workloads.runtime.text import name_some
from workloads.stores.description import Description, HeardView
from workloads.stores.heard_sample import sampled_views
from workloads.stores.plan import ShardPlan
from workloads.teaching.ensemble import Ensemble, Partners, require_different_views
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
    rate: int
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
        return Ensemble(recipe, load_teachers(recipe, paths, object_store.FsspecFiles()), device)


def _fetch(uri: str, folder: Path) -> Path:
    """The folder or file on this machine: itself, or a copy."""
    if not uri.endswith(".onnx"):
        return object_store.fetch(uri, folder)
    try:
        content = object_store.get_bytes(uri)
    except FileNotFoundError:
        raise ValueError(f"{uri!r}: there is no such file") from None
    folder.mkdir()
    (folder / "teacher.onnx").write_bytes(content)
    return folder / "teacher.onnx"


@dataclass(frozen=True)
class TaughtClips:
    """All clips of a data set that can be heard, decoded into the cache, and those that cannot."""

    cache: ClipCache
    clip_ids: tuple[str, ...]
    quarantined: tuple[QuarantinedClip, ...]
    warnings: tuple[str, ...]  # of the metadata's reader

    def entries(self, shard: ShardPlan) -> tuple[CachedClip, ...]:
        return tuple(self.cache.entry(clip_id) for clip_id in shard.clip_ids)

    def partners(self, recipe: TeachRecipe, shard: ShardPlan) -> Partners | None:
        """The clips with which those of a shard are mixed, which other shards may hold; None where none is."""
        names = partner_names(recipe, self.clip_ids, shard.clip_ids)
        return {key: self.cache.entry(name) for key, name in names.items()} if names else None


def partner_names(recipe: TeachRecipe, store_ids: Sequence[str], clip_ids: Sequence[str]) -> dict[tuple[str, int], str]:
    """By clip and view the clip of the store, whose clips are given in order, with which it is mixed; empty without
    mixup."""
    if not recipe.augment.mixup:
        return {}
    clips = len(store_ids)
    if clips < 2:
        raise ValueError(
            f"augment.mixup = {recipe.augment.mixup}: needs two clips to mix, there is {clips}; set it to 0"
        )
    return {
        (clip_id, view): store_ids[draw_partner(recipe.augment, clip_id, view, place=place, clips=clips)]
        for clip_id, place in ((clip_id, bisect_left(store_ids, clip_id)) for clip_id in clip_ids)
        for view in range(recipe.teach.views)
    }


def read_plain_dataset(recipe: TeachRecipe) -> Dataset:
    """The clips of the recipe's data; ValueError for metadata that cannot be read, and for a packed data set."""
    dataset = read_dataset(recipe.data, object_store.FsspecFiles(), tags_needed="never")
    if dataset.packed:
        raise ValueError(
            "data.format = 'packed': stores are filled from plain data sets so far; give the one that was packed"
        )
    return dataset


def prepare_clips(recipe: TeachRecipe, rate: int) -> TaughtClips:
    """Every clip of the recipe's data, of whatever fold, labelled or not, decoded at that rate.

    Raises ValueError for metadata that cannot be read, for too many clips that cannot be heard, and where all views of
    the clips are equal.
    """
    data, files = recipe.data, object_store.FsspecFiles()
    dataset = read_plain_dataset(recipe)
    cache = ClipCache(Path(data.cache).expanduser(), rate=rate, limit_gb=data.cache_gb)
    quarantined = cache.prepare(dataset.clips, data, files)
    check_quarantined_share(quarantined, len(dataset.clips), data, files)
    unusable = {clip.clip_id for clip in quarantined}
    require_different_views(recipe, [clip.samples for clip in cache.decoded().values()], rate)
    clip_ids = tuple(clip.clip_id for clip in dataset.clips if clip.clip_id not in unusable)
    return TaughtClips(cache, clip_ids, tuple(quarantined), dataset.warnings)


def heard_views(recipe: TeachRecipe, clips: TaughtClips) -> dict[str, HeardView]:
    """What the teachers hear of some clips: a student that is to hear the same can find out that it does not."""
    seconds, sample = recipe.data.clip_seconds, sampled_views(clips.clip_ids, recipe.teach.views)
    partners = partner_names(recipe, clips.clip_ids, list(sample))
    return {
        clip_id: {
            "view": view,
            "sha256": heard_sha256(
                clips.cache,
                recipe.augment,
                clip_id,
                view,
                clip_seconds=seconds,
                partner=partners.get((clip_id, view), ""),
            ),
        }
        for clip_id, view in sample.items()
    }


class ShardFiller:
    """Fills shards of a store, in one process; its teachers are loaded once."""

    def __init__(self, job: Job, ensemble: Ensemble | None = None) -> None:
        self._job, device = job, job.recipe.teach.device
        self._ensemble = ensemble or load_ensemble(job.recipe, device, patience_s=job.patience_s)
        data = job.recipe.data
        self._cache = ClipCache(Path(data.cache).expanduser(), rate=job.rate, limit_gb=data.cache_gb)

    def fill(self, shard: ShardPlan, clips: Sequence[CachedClip], partners: Partners | None) -> None:
        """Compute the rows of a shard and write its files; ValueError where a teacher's output cannot be stored."""
        needed = {clip.clip.clip_id: clip for clip in (*clips, *(partners or {}).values())}
        if not all(clip.target.exists() for clip in needed.values()):  # decoded on another node, or evicted since
            decoded = self._decode([clip.clip for clip in needed.values()])
            here = {clip.clip.clip_id: clip for clip in decoded}
            clips = [here[clip.clip.clip_id] for clip in clips]
            partners = partners and {key: here[clip.clip.clip_id] for key, clip in partners.items()}
        outputs = self._ensemble.rows(clips, self._cache, partners)
        write_shard(self._job.out, self._job.description, shard, outputs, patience_s=self._job.patience_s)

    def _decode(self, clips: Sequence[Clip]) -> tuple[CachedClip, ...]:
        broken = self._cache.prepare(clips, self._job.recipe.data, object_store.FsspecFiles())
        if broken:
            names = name_some([f"{clip.clip_id} ({clip.reason})" for clip in broken], 3)
            raise ValueError(
                f"clips that can be heard on the driver's machine and not on this worker's: {names}; give data.root as "
                "a folder that all nodes share, or s3://bucket/prefix"
            )
        return tuple(self._cache.entry(clip.clip_id) for clip in clips)
