"""Writing a store: described first, then its shards in any order from any number of processes, its manifest last.

Contract: `begin_store` and `finish_store` are called by one process at a time, which may be killed at any moment and
then calls them again; `write_shard` by any number of processes at once, also twice for the same shard. A shard's file
appears complete or not at all, under a name with the SHA-256 of its content, so a process that was given up and
writes on harms nothing. The same rows give the same files. Everything is on storage: nothing local is needed to go on.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.storage.object_store import (
    create_exclusively,
    exists,
    file_sizes,
    get_bytes,
    join,
    put_bytes,
    remove_file,
    remove_unfinished,
)
from orchestrator.storage.retry import retry_while_unavailable
from workloads.runtime.json_files import json_text, require_shape
from workloads.runtime.text import name_some
from workloads.stores.columns import RowCodec
from workloads.stores.description import (
    CLIPS,
    DESCRIPTION,
    FORMAT,
    MANIFEST,
    SHARDS,
    About,
    Description,
    Manifest,
    ShardEntry,
    ShardFile,
    parse_description,
    parse_manifest,
    parse_shard_name,
    require_compatible,
    require_consistent,
    shard_name,
)
from workloads.stores.plan import ShardPlan, clips_sha256, encode_clips, plan_shards
from workloads.stores.topk import TopK

PATIENCE_S = 300.0  # how long an unavailable storage is waited for
Outputs = NDArray[np.floating] | TopK


def begin_store(
    uri: str, about: About, clip_ids: Sequence[str], *, clips_per_shard: int, patience_s: float = PATIENCE_S
) -> tuple[Description, list[ShardPlan]]:
    """Describe a new store, or go on with one that was begun with the same description and clips.

    Raises ValueError for a description that contradicts itself, and where another store was begun at the URI.
    """
    plan = plan_shards(clip_ids, about["views"]["count"], clips_per_shard)
    ids = [clip_id for shard in plan for clip_id in shard.clip_ids]
    clips = {"count": len(ids), "per_shard": clips_per_shard, "sha256": clips_sha256(ids)}
    description: Any = {"format": FORMAT, **about, "clips": clips}
    require_shape(description, "the store's description", Description)
    require_consistent(description, "the store's description")
    text = json_text(description)

    def begin() -> Description:
        if not create_exclusively(join(uri, DESCRIPTION), text.encode()):
            found = parse_description(get_bytes(join(uri, DESCRIPTION)), join(uri, DESCRIPTION))
            own = parse_description(text, "the store's description")
            require_compatible(found, own, uri, exactly=True)
            return found
        return parse_description(text, join(uri, DESCRIPTION))

    def put_clips() -> None:
        if not exists(join(uri, CLIPS)):
            put_bytes(join(uri, CLIPS), encode_clips(ids))

    begun = retry_while_unavailable(begin, what=uri, patience_s=patience_s)
    retry_while_unavailable(put_clips, what=uri, patience_s=patience_s)
    return begun, plan


def is_finished(uri: str, *, patience_s: float = PATIENCE_S) -> bool:
    return retry_while_unavailable(lambda: exists(join(uri, MANIFEST)), what=uri, patience_s=patience_s)


def write_shard(
    uri: str,
    description: Description,
    shard: ShardPlan,
    outputs: Mapping[str, Outputs],
    *,
    patience_s: float = PATIENCE_S,
) -> None:
    """Write the files of one shard: for each column outputs_NVC of its clips in their order, or a `TopK` of NVJ.

    Raises ValueError, naming clips, before anything is written where a value cannot be stored (`RowCodec.rows`).
    """
    if set(outputs) != set(description["columns"]):
        raise ValueError(f"store {uri!r}: a shard needs the columns {', '.join(description['columns'])}")
    codecs = {name: RowCodec(name, column) for name, column in description["columns"].items()}
    rows = {name: codec.rows(outputs[name], shard.clip_ids, shard.views) for name, codec in codecs.items()}
    put_shard(uri, shard, {name: codecs[name].file(raw) for name, raw in rows.items()}, patience_s=patience_s)


def put_shard(uri: str, shard: ShardPlan, files: Mapping[str, bytes], *, patience_s: float = PATIENCE_S) -> None:
    """Put the files of a shard, whose contents are given by column."""
    for column, content in files.items():
        place = join(uri, SHARDS, shard_name(column, shard.number, hashlib.sha256(content).hexdigest()))
        retry_while_unavailable(
            lambda place=place, content=content: put_bytes(place, content),  # type: ignore[misc]
            what=place,
            patience_s=patience_s,
        )


def unwritten(
    uri: str, description: Description, plan: Sequence[ShardPlan], *, patience_s: float = PATIENCE_S
) -> list[ShardPlan]:
    """The shards of which a file is missing."""
    written = _shard_files(uri, patience_s)
    return [shard for shard in plan if not all(written.get((name, shard.number)) for name in description["columns"])]


def finish_store(
    uri: str, description: Description, plan: Sequence[ShardPlan], *, patience_s: float = PATIENCE_S
) -> Manifest:
    """Write the manifest, unless it is there; from now on the folder is a store. Safe to repeat.

    Raises ValueError where a shard is missing. Of a shard that was written twice with different content, by devices
    that do not repeat their results, one is kept.
    """
    if missing := unwritten(uri, description, plan, patience_s=patience_s):
        numbers = name_some([str(shard.number) for shard in missing])
        raise ValueError(f"store {uri!r}: {len(missing)} shards are not written: {numbers}; run what fills it again")
    written, entries = _shard_files(uri, patience_s), list[ShardEntry]()
    for shard in plan:
        files: dict[str, ShardFile] = {}
        for column in description["columns"]:
            sha256, size = min(written[column, shard.number].items())
            files[column] = {"bytes": size, "sha256": sha256}
        first, last = shard.clip_ids[0], shard.clip_ids[-1]
        entries.append({"clips": len(shard.clip_ids), "first": first, "last": last, "files": files})

    def finish() -> Manifest:
        sha256 = hashlib.sha256(get_bytes(join(uri, DESCRIPTION))).hexdigest()
        rows = sum(shard.rows for shard in plan)
        text = json_text({"rows": rows, "description_sha256": sha256, "shards": entries})
        place = join(uri, MANIFEST)
        content = text.encode() if create_exclusively(place, text.encode()) else get_bytes(place)
        return parse_manifest(content, place, description, sha256)

    manifest = retry_while_unavailable(finish, what=uri, patience_s=patience_s)
    _remove_others(uri, manifest, written)
    remove_unfinished(uri)
    return manifest


def _remove_others(uri: str, manifest: Manifest, written: Mapping[tuple[str, int], Mapping[str, int]]) -> None:
    """Remove the files of shards that are not those of the manifest."""
    for (column, number), files in written.items():
        for sha256 in files:
            if sha256 != manifest["shards"][number]["files"][column]["sha256"]:
                remove_file(join(uri, SHARDS, shard_name(column, number, sha256)))


def _shard_files(uri: str, patience_s: float) -> dict[tuple[str, int], dict[str, int]]:
    """(column, number) -> SHA-256 -> size of the files that are there."""
    where, found = join(uri, SHARDS), dict[tuple[str, int], dict[str, int]]()
    sizes = retry_while_unavailable(lambda: file_sizes(where), what=where, patience_s=patience_s)
    for name, size in sizes.items():
        if parsed := parse_shard_name(name):
            column, number, sha256 = parsed
            found.setdefault((column, number), {})[sha256] = size
    return found
