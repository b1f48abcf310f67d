"""Writing a store: described first, then its shards in any order from any number of processes, its manifest last.

Contract: any number of processes may fill one store at once, and each may be killed at any moment and begin again: the
description and the manifest are created exclusively, and whoever comes later goes on with those or is refused. A
shard's file appears complete or not at all, under a name with the SHA-256 of its content, so a process that was given
up and writes on harms nothing. A file of another size than its rows have, as a power cut may leave one, counts as
missing. The same rows give the same files. Where two processes have written a shard with different content, the
manifest names one file, and each process that finishes removes what it does not name. Everything is on storage: nothing
local is needed to go on.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

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
    ClipList,
    Description,
    Manifest,
    ShardEntry,
    ShardFile,
    ViewChecksum,
    checksum_name,
    parse_checksum_name,
    parse_description,
    parse_manifest,
    parse_shard_name,
    require_compatible,
    require_consistent,
    shard_name,
)
from workloads.stores.plan import ShardPlan, clips_sha256, decode_clips, encode_clips, plan_shards
from workloads.stores.topk import TopK

PATIENCE_S = 300.0  # how long an unavailable storage is waited for
Written = TypeVar("Written")
Outputs = NDArray[np.floating] | TopK
Checksums = Mapping[str, ViewChecksum]  # by clip_id


def begin_store(
    uri: str, about: About, clip_ids: Sequence[str], *, clips_per_shard: int, patience_s: float = PATIENCE_S
) -> tuple[Description, list[ShardPlan]]:
    """Describe a new store, or go on with one that was begun with the same description and clips.

    A list of clips that is damaged is written again. Raises ValueError for a description that contradicts itself, and
    where another store was begun at the URI.
    """
    plan = plan_shards(clip_ids, about["views"]["count"], clips_per_shard)
    ids = [clip_id for shard in plan for clip_id in shard.clip_ids]
    clips = {"count": len(ids), "per_shard": clips_per_shard, "sha256": clips_sha256(ids)}
    description: Any = {"format": FORMAT, **about, "clips": clips}
    require_shape(description, "the store's description", Description)
    require_consistent(description, "the store's description")
    text = json_text(description)

    def begin() -> Description:
        if not _write(lambda: create_exclusively(join(uri, DESCRIPTION), text.encode())):
            found = parse_description(get_bytes(join(uri, DESCRIPTION)), join(uri, DESCRIPTION))
            own = parse_description(text, "the store's description")
            require_compatible(found, own, uri, exactly=True)
            return found
        return parse_description(text, join(uri, DESCRIPTION))

    def put_clips() -> None:
        if not _are_listed(join(uri, CLIPS), description["clips"]):
            _write(lambda: put_bytes(join(uri, CLIPS), encode_clips(ids)))

    begun = retry_while_unavailable(begin, what=uri, patience_s=patience_s)
    retry_while_unavailable(put_clips, what=uri, patience_s=patience_s)
    return begun, plan


def _are_listed(place: str, clips: ClipList) -> bool:
    """Whether a file lists just these clips."""
    if not exists(place):
        return False
    try:
        for _ in decode_clips(get_bytes(place), place, count=clips["count"], sha256=clips["sha256"]):
            pass
    except ValueError:
        return False
    return True


def is_finished(uri: str, *, patience_s: float = PATIENCE_S) -> bool:
    return retry_while_unavailable(lambda: exists(join(uri, MANIFEST)), what=uri, patience_s=patience_s)


def write_shard(
    uri: str,
    description: Description,
    shard: ShardPlan,
    outputs: Mapping[str, Outputs],
    *,
    checksums: Checksums | None = None,
    patience_s: float = PATIENCE_S,
) -> None:
    """Write the files of one shard: for each column outputs_NVC of its clips in their order, or a `TopK` of NVJ.

    `checksums` are those of the waveforms of some of its clips.
    Raises ValueError, naming clips, before anything is written where a value cannot be stored (`RowCodec.rows`).
    """
    if set(outputs) != set(description["columns"]):
        raise ValueError(f"store {uri!r}: a shard needs the columns {', '.join(description['columns'])}")
    codecs = {name: RowCodec(name, column) for name, column in description["columns"].items()}
    rows = {name: codec.rows(outputs[name], shard.clip_ids, shard.views) for name, codec in codecs.items()}
    files = {name: codecs[name].file(raw) for name, raw in rows.items()}
    put_shard(uri, shard, files, checksums or {}, patience_s=patience_s)


def put_shard(
    uri: str, shard: ShardPlan, files: Mapping[str, bytes], checksums: Checksums, *, patience_s: float = PATIENCE_S
) -> None:
    """Put the files of a shard, whose contents are given by column; its checksums first, so that a shard that counts
    as written has them."""
    contents = {
        checksum_name(shard.number, shard.clip_ids.index(clip_id), checksum): clip_id.encode()
        for clip_id, checksum in checksums.items()
    }
    for column, content in files.items():
        contents[shard_name(column, shard.number, hashlib.sha256(content).hexdigest())] = content
    for name, content in contents.items():
        place = join(uri, SHARDS, name)
        retry_while_unavailable(
            lambda place=place, content=content: _write(lambda: put_bytes(place, content)),  # type: ignore[misc]
            what=place,
            patience_s=patience_s,
        )


def _write(write: Callable[[], Written]) -> Written:
    """What `write` returns; it is called again where another process has just finished the store, and removed its
    half-written file as left over."""
    try:
        return write()
    except FileNotFoundError:
        return write()


def unwritten(
    uri: str, description: Description, plan: Sequence[ShardPlan], *, patience_s: float = PATIENCE_S
) -> list[ShardPlan]:
    """The shards of which a file is missing: any whole one, or, of a finished store, the one that it names."""
    files = _find_files(uri, description, plan, patience_s)
    return [shard for shard in plan if len(files.of_shards[shard.number]) < len(description["columns"])]


def finish_store(
    uri: str, description: Description, plan: Sequence[ShardPlan], *, patience_s: float = PATIENCE_S
) -> Manifest:
    """Write the manifest, unless it is there; from now on the folder is a store. Safe to repeat.

    Raises ValueError where a shard is missing, also where a lost one of a finished store was made again with other
    bits. Of a shard that was written twice with different content, by devices that do not repeat their results, one is
    kept.
    """
    files = _find_files(uri, description, plan, patience_s)
    if files.manifest is None:
        _require_all(uri, description, plan, files)
        _put_manifest(uri, description, plan, files, patience_s)
        files = _find_files(uri, description, plan, patience_s)  # those of the manifest, which another may have put
    for name in (*files.others, *files.checksums):
        remove_file(join(uri, SHARDS, name))
    _require_all(uri, description, plan, files)
    for folder in (uri, join(uri, SHARDS)):
        remove_unfinished(folder)
    assert files.manifest is not None, "it was written above"
    return files.manifest


@dataclass(frozen=True)
class _Files:
    """The files of a store's shards that are there and whole, column by column; the manifest, if there is one."""

    manifest: Manifest | None
    of_shards: list[dict[str, ShardFile]]
    others: list[str]  # the names of files of shards that are none of these
    checksums: list[str]  # the names of files that say checksums of waveforms: the manifest takes these up


def _find_files(uri: str, description: Description, plan: Sequence[ShardPlan], patience_s: float) -> _Files:
    """Of a finished store the files that its manifest names, else for each shard and column one of the right size."""
    manifest, sizes = _read_manifest(uri, description, patience_s), _list_shards(uri, patience_s)
    written = _shard_files(sizes)
    codecs = {name: RowCodec(name, column) for name, column in description["columns"].items()}
    of_shards = [dict[str, ShardFile]() for _ in plan]
    for shard in plan:
        for column, codec in codecs.items():
            there = written.get((column, shard.number), {})
            named = {manifest["shards"][shard.number]["files"][column]["sha256"]} if manifest else {*there}
            size = codec.file_size(views=shard.views, clips=len(shard.clip_ids))
            if whole := [sha256 for sha256 in there if sha256 in named and there[sha256] == size]:
                of_shards[shard.number][column] = {"bytes": size, "sha256": min(whole)}
    kept = {(column, file["sha256"]) for files in of_shards for column, file in files.items()}
    others = [
        shard_name(column, number, sha256)
        for (column, number), there in written.items()
        for sha256 in there
        if (column, sha256) not in kept
    ]
    return _Files(manifest, of_shards, others, sorted(filter(parse_checksum_name, sizes)))


def _require_all(uri: str, description: Description, plan: Sequence[ShardPlan], files: _Files) -> None:
    missing = [str(shard.number) for shard in plan if len(files.of_shards[shard.number]) < len(description["columns"])]
    if not missing:
        return
    if files.manifest and files.others:
        raise ValueError(
            f"store {uri!r}: shards {name_some(missing)} were lost, and what was made again has other bits than "
            f"{MANIFEST} names, as other processors, threads or versions give; repair it where it was filled, or fill "
            "a new store"
        )
    raise ValueError(
        f"store {uri!r}: {len(missing)} shards are not written: {name_some(missing)}; run what fills it again"
    )


def _put_manifest(
    uri: str, description: Description, plan: Sequence[ShardPlan], files: _Files, patience_s: float
) -> None:
    """Write the manifest of these files; where another process was faster, its stays."""
    entries: list[ShardEntry] = [
        {
            "clips": len(shard.clip_ids),
            "first": shard.clip_ids[0],
            "last": shard.clip_ids[-1],
            "files": {column: files.of_shards[shard.number][column] for column in description["columns"]},
        }
        for shard in plan
    ]

    for number, checksums in _checksums(files.checksums, plan).items():
        entries[number]["checksums"] = checksums

    def put() -> None:
        sha256 = hashlib.sha256(get_bytes(join(uri, DESCRIPTION))).hexdigest()
        rows = sum(shard.rows for shard in plan)
        text = json_text({"rows": rows, "description_sha256": sha256, "shards": entries})
        _write(lambda: create_exclusively(join(uri, MANIFEST), text.encode()))

    retry_while_unavailable(put, what=uri, patience_s=patience_s)


def _read_manifest(uri: str, description: Description, patience_s: float) -> Manifest | None:
    """The manifest of a finished store, checked; None where there is none."""
    place = join(uri, MANIFEST)

    def read() -> Manifest | None:
        if not exists(place):
            return None
        sha256 = hashlib.sha256(get_bytes(join(uri, DESCRIPTION))).hexdigest()
        return parse_manifest(get_bytes(place), place, description, sha256)

    return retry_while_unavailable(read, what=uri, patience_s=patience_s)


def _checksums(names: Iterable[str], plan: Sequence[ShardPlan]) -> dict[int, dict[str, ViewChecksum]]:
    """The checksums in sorted names of files, by number of the shard and clip_id, in the order of the clips.

    Of two of one clip, by machines that decode it differently, the smaller one.
    """
    found: dict[int, dict[str, ViewChecksum]] = {}
    for name in names:
        number, place, checksum = parse_checksum_name(name) or (len(plan), 0, None)
        if checksum and number < len(plan) and place < len(plan[number].clip_ids):
            found.setdefault(number, {}).setdefault(plan[number].clip_ids[place], checksum)
    return found


def _list_shards(uri: str, patience_s: float) -> dict[str, int]:
    """The sizes of the files in the folder of shards, by name."""
    where = join(uri, SHARDS)
    return retry_while_unavailable(lambda: file_sizes(where), what=where, patience_s=patience_s)


def _shard_files(sizes: Mapping[str, int]) -> dict[tuple[str, int], dict[str, int]]:
    """(column, number) -> SHA-256 -> size of the files of shards among these."""
    found: dict[tuple[str, int], dict[str, int]] = {}
    for name, size in sizes.items():
        if parsed := parse_shard_name(name):
            column, number, sha256 = parsed
            found.setdefault((column, number), {})[sha256] = size
    return found
