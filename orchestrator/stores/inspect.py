"""What a finished store holds, and whether all of it is whole. Reads, writes nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.storage.fsspec_files import FsspecFiles
from orchestrator.storage.object_store import READ_RETRY_S, file_sizes
from orchestrator.storage.retry import Unavailable, describe_error, retry_while_unavailable
from workloads.stores.description import CLIPS, DESCRIPTION, MANIFEST, SHARDS, Description, is_for_tags, shard_name
from workloads.stores.store import Store, open_store


def describe_store(uri: str) -> dict[str, Any]:
    """Counts, teachers, and `bytes_per_row`: all bytes below the URI over the rows. ValueError where there is no store.

    `kind` and `k` (None: dense) are those of the first column with a value for each tag; without one both are None, and
    so is `labels` where there are no tags.
    """
    store = open_store(uri, FsspecFiles())
    description, rows = store.description, store.manifest["rows"]
    size = sum(_sizes(uri).values())
    column = main_column(description)
    return {
        "uri": uri,
        "rows": rows,
        "clips": store.num_clips,
        "views": store.num_views,
        "shards": len(store.manifest["shards"]),
        "kind": column and description["columns"][column]["holds"],
        "k": column and description["columns"][column].get("k"),
        "tags": len(description["tags"]),
        "labels": description.get("labels"),
        "bytes": size,
        "bytes_per_row": round(size / rows, 2),
        "teachers": [teacher["name"] for teacher in description["teachers"]],
        "columns": description["columns"],
        "view_recipe": description["views"],
        "weights": {teacher["name"]: teacher["weights_sha256"] for teacher in description["teachers"]},
        "imported_from": {
            teacher["name"]: teacher["imported_from"]["format"]
            for teacher in description["teachers"]
            if "imported_from" in teacher
        },
    }


def main_column(description: Description) -> str | None:
    """The first column with a value of the whole clip for each tag."""
    columns = description["columns"].items()
    return next((name for name, column in columns if is_for_tags(column) and "frames" not in column), None)


@dataclass(frozen=True)
class Verified:
    """What a check of every file found: shards and rows of the store, one line for each damaged file, other files."""

    shards: int
    rows: int
    damaged: tuple[str, ...]
    foreign: tuple[str, ...]  # below the URI, and not of the store


def verify_store(uri: str, on_shard: Callable[[int, int], None] = lambda done, total: None) -> Verified:
    """Read every file of a store and check it: SHA-256, shape, finite values, tags; every clip there, and once.

    Raises ValueError where there is no finished store, or its JSON files are damaged, and Unavailable for a storage
    that does not answer. `on_shard` is told the number of shards that were checked, and of all.
    """
    store = open_store(uri, FsspecFiles())
    damaged, total = _problems(lambda: _check_clips(store), CLIPS), len(store.manifest["shards"])
    for number in range(total):
        for column in store.codecs:
            place = store.shard_uri(column, number)
            damaged += _problems(lambda column=column, number=number: store.read_shard(column, number), place)  # type: ignore[misc]
        on_shard(number + 1, total)
    foreign = sorted(set(_sizes(uri)) - _own_files(store))
    return Verified(total, store.manifest["rows"], tuple(damaged), tuple(foreign))


def _check_clips(store: Store) -> None:
    """ValueError where the list of clips is not that of the manifest, or has one twice."""
    previous, rows = "", 0
    for shard in store.shards():
        for clip_id in shard.clip_ids:
            if clip_id <= previous:
                raise ValueError(f"store {store.uri!r}: {CLIPS}: {clip_id!r} is there twice, or out of order")
            previous = clip_id
        rows += shard.rows
    if rows != store.manifest["rows"]:
        raise ValueError(
            f"store {store.uri!r}: {CLIPS} lists the clips of {rows} rows, {MANIFEST} {store.manifest['rows']}"
        )


def _problems(check: Callable[[], object], place: str) -> list[str]:
    """What is wrong with a file; empty where nothing is. A storage that does not answer is no fault of the file."""
    try:
        check()
    except ValueError as problem:
        return [str(problem)]
    except Unavailable:
        raise
    except OSError as problem:  # such as a sector that cannot be read, or a link to itself
        return [f"{place}: {describe_error(problem)}"]
    return []


def _own_files(store: Store) -> set[str]:
    shards = enumerate(store.manifest["shards"])
    files = {
        f"{SHARDS}/{shard_name(column, number, file['sha256'])}"
        for number, shard in shards
        for column, file in shard["files"].items()
    }
    return {DESCRIPTION, MANIFEST, CLIPS, *files}


def _sizes(uri: str) -> dict[str, int]:
    return retry_while_unavailable(lambda: file_sizes(uri), what=uri, patience_s=READ_RETRY_S)
