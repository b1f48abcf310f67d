"""Stores of drawn outputs, for tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.storage.fsspec_files import FsspecFiles
from orchestrator.stores.writer import begin_store, finish_store, unwritten, write_shard
from workloads.runtime.rng import keyed_generator
from workloads.stores.reader import StoreReader


def columns(*, tags: int, k: int = 0, embedding: int = 0) -> dict[str, Any]:
    """The columns of a store of one teacher `cnn`: dense without `k`."""
    kept: dict[str, Any] = {"layout": "topk", "k": k} if k else {"layout": "dense"}
    found = {"outputs": {"holds": "logits", "teachers": ["cnn"], "width": tags, "dtype": "float16", **kept}}
    if embedding:
        whole = {"layout": "dense", "width": embedding, "dtype": "float16"}
        found["embedding"] = {"holds": "embedding", "teachers": ["cnn"], **whole}
    return found


def about(*, tags: int = 10, views: int = 2, k: int = 0, embedding: int = 0, **changes: Any) -> Any:
    """What a store of one teacher says of itself."""
    heard = {"version": 1, "augment": {"view_seed": 3, "roll": 0.5}, "clip_seconds": 2.0, "rate": 16000, "count": views}
    return {
        "teachers": [{"name": "cnn", "weights_sha256": "a" * 64, "front_end": "logmel64"}],
        "tags": [f"tag{number}" for number in range(tags)],
        "labels": "multi",
        "views": heard,
        "columns": columns(tags=tags, k=k, embedding=embedding),
        **changes,
    }


def outputs_of(clip_id: str, description: Any) -> dict[str, NDArray[np.float32]]:
    """The outputs of each column for one clip, (views, width): drawn from its name."""
    shapes = {name: (description["views"]["count"], col["width"]) for name, col in description["columns"].items()}
    return {name: keyed_generator(clip_id, name).normal(-3, 2, shape).astype("f4") for name, shape in shapes.items()}


def fill(uri: str, describes: Any, clip_ids: Sequence[str], *, per_shard: int = 4, most: int | None = None) -> None:
    """Begin a store, or go on, and write the shards that are missing, or `most` of them; finish it if none is left."""
    description, plan = begin_store(uri, describes, clip_ids, clips_per_shard=per_shard)
    for shard in unwritten(uri, description, plan)[:most]:
        drawn = [outputs_of(clip_id, description) for clip_id in shard.clip_ids]
        write_shard(uri, description, shard, {name: np.stack([one[name] for one in drawn]) for name in drawn[0]})
    if most is None:
        finish_store(uri, description, plan)


def fill_rows(
    uri: str, describes: Any, clip_ids: Sequence[str], rows: dict[str, NDArray[Any]], *, per_shard: int = 4
) -> None:
    """A whole store of these values_NVC, in the order of the sorted names."""
    description, plan = begin_store(uri, describes, clip_ids, clips_per_shard=per_shard)
    start = 0
    for shard in plan:
        stop = start + len(shard.clip_ids)
        write_shard(uri, description, shard, {name: values[start:stop] for name, values in rows.items()})
        start = stop
    finish_store(uri, description, plan)


def reader(uri: str, folder: Path, **options: Any) -> StoreReader:
    return StoreReader(uri, FsspecFiles(), copies=folder / "copies", **options)
