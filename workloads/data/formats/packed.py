"""A packed data set (`workloads/data/pack.py`): its clips as the plain data set has them, and where their bytes are."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from workloads.config.data import Data
from workloads.data.clips import Clip
from workloads.data.formats.rows import Metadata
from workloads.data.pack import INDEX, NUMBERS, Pack, read_index, read_manifest
from workloads.runtime.opener import Opener

COLUMNS = ("clip_id", "path", "tags", "fold", "source", "absent", "labelled")
MAX_SHARED = 2**16  # lists of tags that are remembered, to be used again


def read_packed(data: Data, opener: Opener) -> Metadata:
    """The clips of the pack at data.root, without its quarantined ones.

    Raises ValueError where there is no finished pack, where it is damaged, and where settings of the recipe do not
    belong to the data set that was packed.
    """
    clips, pack = read_pack(data.root, opener)
    manifest = pack.manifest
    data.check_own_split(manifest["format"])
    if data.labels != manifest["labels"]:
        raise ValueError(
            f"data.labels = {data.labels!r}: the pack at {data.root} was made with {manifest['labels']!r}; "
            f"--set data.labels={manifest['labels']}"
        )
    return Metadata(
        clips,
        manifest["without_source"],
        manifest["folds_assigned"],
        manifest["val_fold"],
        (*manifest["warnings"], *_too_small_cache(data, pack)),
        pack,
    )


def read_pack(root: str, opener: Opener) -> tuple[list[Clip], Pack]:
    """The clips of the finished pack at `root` in the order of their ids, and where they are.

    Raises ValueError where there is none, and where it is damaged.
    """
    manifest, digest = read_manifest(root, opener)
    index = read_index(root, opener, manifest)
    clips = list(_clips(index))
    numbers = index.read(columns=list(NUMBERS))
    notes = index.read(columns=["notes"]).column("notes")
    pack = Pack(
        manifest,
        digest,
        clip_ids=[clip.clip_id for clip in clips],
        columns={name: numbers.column(name).to_numpy().astype(kind, copy=False) for name, kind in NUMBERS.items()},
        mended={row: (clips[row].path, tuple(own.as_py())) for row, own in enumerate(notes) if len(own)},
    )
    _require_whole(pack, root)
    return clips, pack


def _clips(index: Any) -> Iterator[Clip]:
    """Row by row; equal tags, and equal lists of them, are one object in memory."""
    texts: dict[str, str] = {}
    lists: dict[tuple[str, ...], tuple[str, ...]] = {}

    def shared(values: list[str] | None) -> tuple[str, ...] | None:
        if values is None:
            return None
        names = tuple(values)
        if len(lists) > MAX_SHARED:  # most lists of this data set are there once
            lists.clear()
        return lists.get(names) or lists.setdefault(names, tuple(texts.setdefault(name, name) for name in names))

    for batch in index.iter_batches(columns=list(COLUMNS)):
        rows = zip(*(batch.column(name).to_pylist() for name in COLUMNS), strict=True)
        for clip_id, path, tags, fold, source, absent, labelled in rows:
            own = clip_id if source == clip_id else source
            yield Clip(clip_id, path, shared(tags) or (), fold, own, shared(absent), labelled)


def _require_whole(pack: Pack, root: str) -> None:
    """ValueError where rows are not in order, or lie outside of their archives."""
    sizes = np.array([archive["bytes"] for archive in pack.manifest["archives"]], np.int64)
    columns, ids = pack.columns, pack.clip_ids
    archive_N, begin_N, size_N = columns["archive"], columns["offset"], columns["size"]
    ordered = all(ids[row] < ids[row + 1] for row in range(len(ids) - 1)) and len(ids) == pack.manifest["clips"]
    if ordered and len(ids) and (archive_N >= 0).all() and (archive_N < len(sizes)).all():
        ordered = bool(((begin_N >= 0) & (size_N >= 0) & (begin_N + size_N <= sizes[archive_N])).all())
    else:
        ordered = False
    if not ordered:
        raise ValueError(f"{root}: {INDEX} does not belong to these archives; pack the data set again")


def _too_small_cache(data: Data, pack: Pack) -> Iterator[str]:
    total_gb = pack.total_bytes / 1e9
    if "://" in data.root and total_gb > data.cache_gb:
        yield (
            f"data.cache_gb = {data.cache_gb:g}: the archives of {data.root} have {total_gb:.3g} GB, and an epoch "
            "reads clips of all of them in random order, so archives are fetched again and again: --set "
            f"data.cache_gb={total_gb * 1.01:.3g}, with data.cache on a disk that has room"
        )
