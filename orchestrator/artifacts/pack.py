"""Packs a data set into archives on a disk or a store, and compares packed ones with their checksums.

Contract: `plan.json` is created first, by exclusive create: it says which clips each archive holds, so any number of
processes on any number of machines, also after kills, write the same bytes. An archive counts once its record is
written, a pack once its manifest is, by exclusive create.
"""

import errno
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from orchestrator.storage import object_store
from orchestrator.storage.fsspec_files import FsspecFiles
from orchestrator.storage.retry import retry_while_unavailable
from orchestrator.training.inside_job import require_lasting_storage
from orchestrator.training.ray_pool import PoolWork, run_on_ray
from orchestrator.training.request import refuse_ray_client, refuse_wait, with_absolute_paths
from orchestrator.training.signals import Interrupts
from orchestrator.training.worker_resources import needs_of
from workloads.config.data import COMPUTED, MAX_RATE
from workloads.config.recipe import Recipe
from workloads.data.cache import FORMAT, QuarantinedClip
from workloads.data.clips import Clip, Dataset
from workloads.data.manifest import read_dataset
from workloads.data.pack import ARCHIVES, INDEX, MANIFEST, VERSION, ArchiveFields, ArchiveRecord, Form, Manifest
from workloads.data.packing import Packing, index_file, write_archive
from workloads.data.quarantine import check_quarantined_share
from workloads.runtime.json_files import json_text
from workloads.runtime.scratch import scratch_folder

Value = TypeVar("Value")
PLAN, RECORDS = "plan.json", "records"
PATIENCE_S = 300.0  # for an unavailable store
PROBES = 32  # clips from whose size the number of clips of an archive is estimated
MIN_RATE = 1000  # Hz
Progress = Callable[[int, int], None]  # archives that are done, and all


class Plan(TypedDict):
    """plan.json: what is packed how; `archives` are the numbers of clips of each."""

    version: int
    form: Form
    rate: int
    decoder: int  # the version of decoding and resampling
    fingerprint: str  # of all clips, usable or not
    archive_mb: float
    archives: list[int]


@dataclass(frozen=True)
class PackRequest:
    """What to pack, where to, and how: decoded at `rate` in Hz, in archives of about `archive_mb` MB.

    In this process, or on Ray where a number of workers or the address of a cluster is given.
    """

    recipe: Recipe
    out: str
    form: Form
    rate: int
    archive_mb: float
    workers: int | None = None  # of Ray; None: one, or this process
    address: str = ""  # of a Ray cluster; empty: a local one
    wait_s: float = 0.0  # how long to wait for a cluster that holds the workers

    def __post_init__(self) -> None:
        format = self.recipe.data.format
        if format == "packed":
            raise ValueError("data.format = 'packed': is packed already; give the plain data set")
        if format in COMPUTED and self.form == "original":
            raise ValueError(f"--as original: {format} clips have no files; choose flac or int16")
        if not MIN_RATE <= self.rate <= MAX_RATE:
            raise ValueError(f"--rate {self.rate}: must be {MIN_RATE} to {MAX_RATE} Hz")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers {self.workers}: must be at least 1")
        refuse_ray_client(self.address)
        refuse_wait(self.wait_s, self.address)
        require_lasting_storage(self.out, "--out")
        if not 0 < self.archive_mb < math.inf:
            raise ValueError(f"--archive-mb {self.archive_mb:g}: must be a number above 0")

    @property
    def packing(self) -> Packing:
        return Packing(self.recipe.data, FsspecFiles(), self.form, self.rate)


def pack(request: PackRequest, progress: Progress) -> Manifest:
    """Pack the recipe's data set, or finish what an earlier call has begun; returns the manifest.

    Raises ValueError for mistakes in the data set, more broken files than `data.max_broken_share`, and where the folder
    holds another data set, or the same packed in another way. Raises OSError where a disk or a store fails, or the
    workers of an archive die again and again, and KeyboardInterrupt at Ctrl-C or SIGTERM: the same call goes on.
    """
    object_store.check_storage(request.out)
    data, files = request.recipe.data, FsspecFiles()
    dataset = read_dataset(data, files, tags_needed="of labelled")
    plan = _claim(request, dataset)
    manifest_uri = object_store.join(request.out, MANIFEST)
    if _retry(manifest_uri, lambda: object_store.exists(manifest_uri)):
        return _retry(manifest_uri, lambda: object_store.read_json(manifest_uri, Manifest))
    records = _write_archives(request, list(_parts(dataset.clips, plan["archives"])), progress)
    quarantined = [QuarantinedClip(**fields) for record in records for fields in record["quarantined"]]
    check_quarantined_share(quarantined, len(dataset.clips), data, files)
    unusable = {clip.clip_id for clip in quarantined}
    usable = replace(dataset, clips=tuple(clip for clip in dataset.clips if clip.clip_id not in unusable))
    index = index_file(usable.clips, records)
    _put(object_store.join(request.out, INDEX), index)
    manifest = _manifest(request, usable, records, index)
    _publish(manifest_uri, manifest)
    for folder in (request.out, *(object_store.join(request.out, name) for name in (ARCHIVES, RECORDS))):
        object_store.remove_unfinished(folder)
    return manifest


def _claim(request: PackRequest, dataset: Dataset) -> Plan:
    """The plan of the folder; ValueError where it is one for another data set or another form."""
    uri = object_store.join(request.out, PLAN)
    own: dict[str, Any] = {
        "version": VERSION,
        "form": request.form,
        "rate": request.rate,
        "decoder": FORMAT,
        "fingerprint": dataset.fingerprint(),
        "archive_mb": request.archive_mb,
    }
    if not _retry(uri, lambda: object_store.exists(uri)):
        plan = Plan(**own, archives=_archive_sizes(request, dataset.clips))  # type: ignore[typeddict-item]
        _retry(uri, lambda: object_store.create_exclusively(uri, json_text(plan).encode()))
    found: Plan = _retry(uri, lambda: object_store.read_json(uri, Plan))
    for key, value in own.items():
        if found[key] != value:  # type: ignore[literal-required]
            raise ValueError(
                f"--out {request.out!r}: a pack with {key} = {found[key]} is there, "  # type: ignore[literal-required]
                f"and this one has {value}; choose another folder, or remove that one"
            )
    return found


def _archive_sizes(request: PackRequest, clips: Sequence[Clip]) -> list[int]:
    """How many clips each archive holds, by the mean size of a few; ValueError where none of these can be used."""
    step = -(-len(clips) // PROBES)
    found = [request.packing.tried(clip) for clip in clips[::step]]
    sizes = [len(result[0]) for result in found if not isinstance(result, QuarantinedClip)]
    if not sizes:
        broken = [result for result in found if isinstance(result, QuarantinedClip)]
        check_quarantined_share(broken, len(broken), request.recipe.data, FsspecFiles())
    each = max(1, int(request.archive_mb * 1e6 * len(sizes) / sum(sizes)))
    whole, rest = divmod(len(clips), each)
    return [each] * whole + [rest] * (rest > 0)


def _parts(clips: Sequence[Clip], sizes: Sequence[int]) -> Iterator[Sequence[Clip]]:
    start = 0
    for size in sizes:
        yield clips[start : start + size]
        start += size


def _write_archives(request: PackRequest, parts: list[Sequence[Clip]], progress: Progress) -> list[ArchiveRecord]:
    """The records of all archives, in order; those that are missing are written."""
    records: dict[int, ArchiveRecord] = {}

    def add(number: int, record: ArchiveRecord) -> None:
        records[number] = record
        progress(len(records), len(parts))

    progress(0, len(parts))
    with Interrupts() as interrupts:
        if request.workers or request.address:
            _write_on_ray(request, parts, add, interrupts)
        else:
            packer = ArchivePacker(request.packing, request.out)
            for number, clips in enumerate(parts):
                add(number, packer.write_or_keep(number, clips))
    return [records[number] for number in range(len(parts))]


def _write_on_ray(
    request: PackRequest,
    parts: list[Sequence[Clip]],
    add: Callable[[int, ArchiveRecord], None],
    interrupts: Interrupts,
) -> None:
    """The same by Ray's workers, each of which writes one archive at a time with one CPU."""
    packing = replace(request, recipe=with_absolute_paths(request.recipe)).packing
    out = str(object_store.local_path(request.out)) if object_store.is_local(request.out) else request.out
    root = packing.data.root

    def finish(number: int, record: ArchiveRecord) -> None:
        check_left_out(packing, parts[number], record)
        add(number, record)

    work = PoolWork[int](
        actor=ArchivePacker,
        arguments=(packing, out),
        start=lambda actor, number: actor.write_or_keep.remote(number, parts[number]),
        name=lambda number: f"archive {number:05}.tar",
        needs=needs_of(1, "cpu"),
        visible={"--out": out} | ({"data.root": root} if root else {}),
        fix="or add nodes",
        waits_s=3 * PATIENCE_S,  # for its record, twice, and its archive
    )
    workers = request.workers or 1
    run_on_ray(
        work,
        range(len(parts)),
        finish,
        workers=workers,
        address=request.address,
        wait_s=request.wait_s,
        interrupts=interrupts,
    )


def check_left_out(packing: Packing, clips: Sequence[Clip], record: ArchiveRecord) -> None:
    """Raise ValueError where a worker has left out one of these clips that can be heard in this process."""
    by_id = {clip.clip_id: clip for clip in clips}
    for broken in record["quarantined"]:
        if not isinstance(packing.tried(by_id[broken["clip_id"]]), QuarantinedClip):
            raise ValueError(
                f"clip {broken['clip_id']}: can be heard on the driver's machine and not on a worker's "
                f"({broken['reason']}); give data.root as a folder that all nodes share, or s3://bucket/prefix, and "
                "install the same packages on all nodes"
            )


class ArchivePacker:
    """Writes archives of one pack, in one process; any number of processes may have one."""

    def __init__(self, packing: Packing, out: str) -> None:
        self._packing, self._out = packing, out

    def write_or_keep(self, number: int, clips: Sequence[Clip]) -> ArchiveRecord:
        """The record of one archive, which is written unless it is there; several processes may do it at once.

        One with broken files is written again: they may be mended.
        """
        name = f"{number:05}"
        uri = object_store.join(self._out, ARCHIVES, f"{name}.tar")
        record_uri = object_store.join(self._out, RECORDS, f"{name}.json")
        if kept := _retry(record_uri, lambda: _kept(uri, record_uri, clips)):
            return kept
        with scratch_folder() as folder:
            path = folder / "archive"
            try:
                with path.open("wb") as file:
                    record = write_archive(file, f"{name}.tar", clips, self._packing)
            except OSError as error:  # the clips are only read
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                place = f"{folder.parent}, where an archive is written first; free space there, or set TMPDIR"
                raise OSError(error.errno, f"{error.strerror}: {place}") from error
            _retry(uri, lambda: object_store.put_file(path, uri))
        _retry(record_uri, lambda: object_store.put_text(record_uri, json_text(record)))
        return record


def _kept(uri: str, record_uri: str, clips: Sequence[Clip]) -> ArchiveRecord | None:
    """The record of an archive that is there as it was written, with all of these clips."""
    if not object_store.exists(record_uri):
        return None
    record: ArchiveRecord = object_store.read_json(record_uri, ArchiveRecord)
    whole = [member["clip_id"] for member in record["members"]] == [clip.clip_id for clip in clips]
    return record if whole and object_store.size_of(uri) == record["archive"]["bytes"] else None


def _manifest(request: PackRequest, usable: Dataset, records: list[ArchiveRecord], index: bytes) -> Manifest:
    return Manifest(
        version=VERSION,
        form=request.form,
        rate=request.rate,
        clips=len(usable.clips),
        format=request.recipe.data.format,
        labels=request.recipe.data.labels,
        fingerprint=usable.fingerprint(),
        without_source=usable.without_source,
        folds_assigned=usable.folds_assigned,
        val_fold=usable.val_fold,
        warnings=list(usable.warnings),
        quarantined=[fields for record in records for fields in record["quarantined"]],
        archives=[record["archive"] for record in records],
        index=ArchiveFields(name=INDEX, bytes=len(index), sha256=hashlib.sha256(index).hexdigest()),
    )


def _publish(uri: str, manifest: Manifest) -> None:
    """Create the manifest; another process may have created the same one, or a lost answer made this one's twice."""
    content = json_text(manifest, indent=1).encode()
    if _retry(uri, lambda: object_store.create_exclusively(uri, content)):
        return
    if _retry(uri, lambda: object_store.get_bytes(uri)) != content:
        raise ValueError(f"{uri}: another process has finished this pack with other files; pack into a new folder")


def _put(uri: str, content: bytes) -> None:
    with scratch_folder() as folder:
        path = folder / "file"
        path.write_bytes(content)
        _retry(uri, lambda: object_store.put_file(path, uri))


def _retry(uri: str, call: Callable[[], Value]) -> Value:
    return retry_while_unavailable(call, what=uri, patience_s=PATIENCE_S)
