"""A store as one Parquet table: a row for each clip and view, numbers as fp32, tags by name.

The columns are clip_id, view, and for each column of the store its values: `NAME` (dense, in the order of the tags) or
`NAME.tags` and `NAME.values` (top k, the largest first). Of a column with frames, each tag's frames follow each other.
The file's metadata has the description under `antiphon`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.storage.fsspec_files import FsspecFiles
from orchestrator.stores.damage import read_whole_shard
from workloads.runtime.atomic_files import replacing
from workloads.runtime.json_files import json_text
from workloads.stores.plan import ShardPlan
from workloads.stores.store import Store, open_store


def export_store(uri: str, out: str, on_shard: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Write a store to the Parquet file `out`, shard by shard; returns the number of rows.

    Raises ValueError for another ending, DamagedStore where a shard is damaged: nothing is left under the name then.
    """
    import pyarrow.parquet

    if "://" in out or not out.endswith(".parquet"):
        raise ValueError(f"{out!r}: must be a local file that ends in .parquet")
    target = Path(out).expanduser()
    store = open_store(uri, FsspecFiles())
    target.parent.mkdir(parents=True, exist_ok=True)
    writer: Any = None
    with replacing(target) as file:
        try:
            for shard in store.shards():
                table = _table(store, shard)
                writer = writer or pyarrow.parquet.ParquetWriter(file, table.schema, compression="zstd")
                writer.write_table(table)
                on_shard(shard.number + 1, len(store.manifest["shards"]))
        finally:
            if writer is not None:
                writer.close()
    return store.manifest["rows"]


def _table(store: Store, shard: ShardPlan) -> Any:
    """The rows of one shard, clip by clip."""
    import pyarrow

    columns: dict[str, Any] = {
        "clip_id": pyarrow.array(np.repeat(np.array(shard.clip_ids, object), shard.views), pyarrow.string()),
        "view": np.tile(np.arange(shard.views, dtype=np.int32), len(shard.clip_ids)),
    }
    for name, codec in store.codecs.items():
        raw = read_whole_shard(store, name, shard.number).swapaxes(0, 1).reshape(shard.rows, codec.row_bytes)
        values, tags = codec.values(codec.unpack(raw))
        numbers = values.reshape(*values.shape[:2], -1).astype(np.float32)  # of each tag, of each of its frames
        if tags is None:
            columns[name] = _lists(numbers.ravel(), numbers[0].size)
            continue
        order = np.argsort(-numbers.max(axis=2), axis=1, kind="stable")
        indices = np.take_along_axis(tags, order, axis=1).astype(np.int32).ravel()
        names = pyarrow.DictionaryArray.from_arrays(indices, store.description["tags"]).cast(pyarrow.string())
        columns[f"{name}.tags"] = _lists(names, tags.shape[1])
        ordered = np.take_along_axis(numbers, order[..., None], axis=1)
        columns[f"{name}.values"] = _lists(ordered.ravel(), ordered[0].size)
    return pyarrow.table(columns, metadata={"antiphon": json_text(store.description)})


def _lists(values: Any, size: int) -> Any:
    """Values of all rows, `size` of each, as a column of lists."""
    import pyarrow

    flat = values if isinstance(values, pyarrow.Array) else pyarrow.array(values)
    return pyarrow.FixedSizeListArray.from_arrays(flat, size)
