"""Which clips form which shard of a store: fixed before the first row is written, so that shards can be made anywhere.

Does not depend on what the rows hold.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from workloads.runtime.text import name_some

BATCH = 65_536  # names decoded at once


@dataclass(frozen=True)
class ShardPlan:
    """A shard: clips in the order of their names, every view of each."""

    number: int
    clip_ids: tuple[str, ...]
    views: int

    @property
    def rows(self) -> int:
        return len(self.clip_ids) * self.views


def plan_shards(clip_ids: Iterable[str], views: int, clips_per_shard: int) -> list[ShardPlan]:
    """The shards of a store with these clips, sorted by name, a fixed number of clips in all shards but the last.

    ValueError for no clip, for a clip that is there twice, and for a name that cannot be written as UTF-8.
    """
    ids = sorted(clip_ids)
    if not ids:
        raise ValueError("a store needs at least one clip; there is none")
    if views < 1 or clips_per_shard < 1:
        raise ValueError(f"views = {views}, clips per shard = {clips_per_shard}: both must be 1 or more")
    if twice := [one for one, other in pairwise(ids) if one == other]:
        raise ValueError(f"clips that are there twice: {name_some(twice)}; give every clip a name of its own")
    if strange := [clip_id for clip_id in ids if not _is_text(clip_id)]:
        raise ValueError(f"clip {strange[0]!r}: its name is no text in UTF-8; rename it")
    starts = range(0, len(ids), clips_per_shard)
    return [
        ShardPlan(number, tuple(ids[start : start + clips_per_shard]), views) for number, start in enumerate(starts)
    ]


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # a file name that was not UTF-8
        return False
    return bool(name) and "\0" not in name


def clips_sha256(clip_ids: Iterable[str]) -> str:
    """The SHA-256 of names in their order, a zero byte after each."""
    digest = hashlib.sha256()
    for clip_id in clip_ids:
        digest.update(clip_id.encode() + b"\0")
    return digest.hexdigest()


def encode_clips(clip_ids: Sequence[str]) -> bytes:
    """A Parquet file with the column clip_id: each name as what differs from the one before, then zstd.

    The bytes are those of one version of pyarrow; what is compared is `clips_sha256`.
    """
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"clip_id": pyarrow.array(clip_ids, pyarrow.string())})
    options = {"compression": "zstd", "use_dictionary": False, "column_encoding": {"clip_id": "DELTA_BYTE_ARRAY"}}
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, write_statistics=False, store_schema=False, **options)
    return buffer.getvalue()


def decode_clips(content: bytes, name: str, *, count: int, sha256: str) -> Iterator[list[str]]:
    """The names in a file of `encode_clips` called `name`, some thousands at a time, in their order.

    Raises ValueError where it is no such file, and, before the last names, where they are not `count` names with this
    SHA-256.
    """
    import pyarrow
    import pyarrow.parquet

    digest, waiting, found = hashlib.sha256(), list[str](), 0
    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(content))
        for batch in file.iter_batches(batch_size=BATCH, columns=["clip_id"]):
            if waiting:
                yield waiting
            waiting = batch.column(0).to_pylist()
            found += len(waiting)
            for clip_id in waiting:
                digest.update(clip_id.encode() + b"\0")
    except (pyarrow.ArrowException, OSError, IndexError, AttributeError) as error:
        raise ValueError(f"{name}: no readable list of clips ({' '.join(str(error).split())[:200]})") from None
    if (found, digest.hexdigest()) != (count, sha256):
        raise ValueError(f"{name}: its clips are not those of the description: it is damaged; copy it again")
    yield waiting
