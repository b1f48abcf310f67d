"""`antiphon store import`: a store of what another project has published, written shard by shard.

Contract: as of `orchestrator/stores/merge.py`: a kill at any moment loses the shard that was being written, the same
command goes on, and the same files give the same bytes. One shard is in memory, and the names of all clips.

Axes: N clips, V views.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.storage import object_store
from orchestrator.storage.fsspec_files import FsspecFiles
from orchestrator.stores.imports.published import FORMATS, check_request, describe
from orchestrator.stores.imports.source import ABSENT, ImportRequest, Source
from orchestrator.stores.writer import PATIENCE_S, Outputs, begin_store, finish_store, unwritten, write_shard
from workloads.data.tag_names import tag_names
from workloads.runtime.text import name_some
from workloads.stores.columns import RowCodec
from workloads.stores.description import Column
from workloads.stores.plan import ShardPlan
from workloads.stores.topk import TopK

MAX_CLIPS_PER_SHARD, SHARD_BYTES = 4096, 8 * 2**20  # a file has some megabytes, also where a row has many
SHOWN = 10  # clips that the result names


def import_store(
    request: ImportRequest,
    out: str,
    wanted: Collection[str] | None = None,
    *,
    patience_s: float = PATIENCE_S,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write a store of the published rows, of the `wanted` clips only; returns the object that --json prints.

    Its `missing` are wanted clips without rows, its `left_out` clips with rows that are not wanted. Raises ValueError
    for files that are damaged or hold anything else, where no clip is wanted, where one lacks a view, for values that
    cannot be stored, and where another store was begun at `out`.
    """
    check_request(request)
    source_path = _local(request.source, request.format)
    index = _local(request.index, "--index") if request.index else None
    with FORMATS[request.format].open(request, source_path, index) as source:
        tags = _tags(request, source)
        numbers = _choose(source, wanted, request)
        _require_all_views(source, numbers)
        clip_ids = [source.clip_ids[number] for number in numbers.tolist()]
        about = describe(request, source, tags)
        ((name, column),) = about["columns"].items()
        per_shard = _clips_per_shard(name, column, len(source.rows_VN))
        description, plan = begin_store(out, about, clip_ids, clips_per_shard=per_shard, patience_s=patience_s)
        waiting = unwritten(out, description, plan, patience_s=patience_s)
        for done, shard in enumerate(waiting, 1 + len(plan) - len(waiting)):
            start = shard.number * per_shard
            assert clip_ids[start] == shard.clip_ids[0], "numbers and shards are in the order of the names"
            outputs = _read(source, numbers[start : start + len(shard.clip_ids)], shard)
            write_shard(out, description, shard, {name: outputs}, patience_s=patience_s)
            on_shard(done, len(plan))
        manifest = finish_store(out, description, plan, patience_s=patience_s)
    counts = {"clips": len(clip_ids), "views": len(source.rows_VN), "tags": len(tags)}
    stored = set(clip_ids)
    return {
        **{"store": out, "rows": manifest["rows"], "shards": len(manifest["shards"]), **counts},
        "missing": _some(set(wanted or ()) - stored),
        "left_out": _some(set(source.clip_ids) - stored),
    }


def _some(clip_ids: Collection[str]) -> dict[str, Any]:
    return {"count": len(clip_ids), "first": sorted(clip_ids)[:SHOWN]}


def _local(uri: str, option: str) -> Path:
    if not object_store.is_local(uri):
        raise ValueError(f"{option} {uri!r}: must be on this machine, its rows are read in any order; copy it here")
    path = object_store.local_path(uri)
    if not path.exists():
        raise ValueError(f"{option} {uri!r}: there is no such file or folder")
    return path


def _tags(request: ImportRequest, source: Source) -> tuple[str, ...]:
    if not request.tags:
        return tag_names(source.width, "these outputs")
    try:
        with FsspecFiles().open(request.tags) as file:
            content = file.read()
    except OSError:
        raise ValueError(f"--tags {request.tags!r}: cannot be read; give a text or CSV file") from None
    return tag_names(source.width, "the outputs", file=request.tags, content=content)


def _choose(source: Source, wanted: Collection[str] | None, request: ImportRequest) -> NDArray[np.int64]:
    """The numbers of the clips that are stored, by the order of their names."""
    ids = source.clip_ids
    chosen = [number for number in range(len(ids)) if wanted is None or ids[number] in wanted]
    if not chosen:
        has = f"the rows are of {name_some(ids, 3)}" if ids else "there are no rows"
        wants = f"none of the {len(wanted)} wanted clips ({name_some(sorted(wanted), 3)}) has a row; " if wanted else ""
        raise ValueError(
            f"{request.source}: {wants}{has}; names must be equal, --names {request.names} says how they were read"
        )
    return np.array(sorted(chosen, key=ids.__getitem__), np.int64)


def _require_all_views(source: Source, numbers: NDArray[np.int64]) -> None:
    """ValueError for clips that lack a row in some view."""
    lacking_VN = source.rows_VN[:, numbers] == ABSENT
    if places := np.flatnonzero(lacking_VN.any(axis=0)).tolist():
        lacking = [f"{source.clip_ids[numbers[place]]} (view {lacking_VN[:, place].argmax()})" for place in places]
        raise ValueError(
            f"{source.files[0].parent}: {len(lacking)} clips lack a row in a view: {name_some(lacking, 3)}; add the "
            "files that hold it, or leave these clips out with --clips"
        )


def _clips_per_shard(name: str, column: Column, views: int) -> int:
    """The largest power of two that keeps a file within SHARD_BYTES."""
    clips, size = MAX_CLIPS_PER_SHARD, RowCodec(name, column).row_bytes * views
    while clips > 1 and clips * size > SHARD_BYTES:
        clips //= 2
    return clips


def _read(source: Source, numbers: NDArray[np.int64], shard: ShardPlan) -> Outputs:
    """The outputs of a shard's clips in all views."""
    found = [source.read(view, rows_N[numbers]) for view, rows_N in enumerate(source.rows_VN)]
    if source.holds == "probabilities":
        _require_probabilities(found, shard.clip_ids)
    if isinstance(found[0], TopK):
        return TopK(*(np.stack(parts, axis=1) for parts in zip(*found, strict=True)))
    return np.stack(found, axis=1)


def _require_probabilities(found: Sequence[Outputs], clip_ids: Sequence[str]) -> None:
    for view, outputs in enumerate(found):
        values = outputs.values if isinstance(outputs, TopK) else outputs
        outside = ((values < 0) | (values > 1)).any(axis=1)
        if outside.any():
            names = [clip_ids[number] for number in np.flatnonzero(outside).tolist()]
            raise ValueError(
                f"{len(names)} clips have a value outside of 0 to 1 in view {view}: {name_some(names)}; probabilities "
                "are expected, as CED stores them"
            )
