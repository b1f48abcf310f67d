"""What the stores that teach a run cost it: bytes of rows, memory of the readers, files that are fetched.

Read from the descriptions and manifests of the stores; no shard is opened.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

from orchestrator.planning.cost import Cost
from orchestrator.storage.object_store import is_local
from workloads.config.recipe import Recipe
from workloads.distill.schedule import Phase
from workloads.distill.store_checks import column_of
from workloads.runtime.opener import Opener
from workloads.stores.reader import MEMORY_BYTES
from workloads.stores.row_memory import num_planes
from workloads.stores.store import Store, open_store

INDEX_BYTES = 12  # of a training clip: a hash of its name and a number (`workloads/stores/index.py`)


@dataclass(frozen=True, kw_only=True)
class StoreCost:
    """One column of a store, and the edges along which it teaches."""

    uri: str
    column: str
    edges: tuple[str, ...]
    teachers: dict[str, str]  # SHA-256 of their weights, by name
    clips: int
    views: int
    row_bytes: int  # in a file
    bytes_read: int  # rows of all steps in which the edges are open, by all workers
    step_bytes: int  # the most that a step reads
    memory_bytes: int  # of a worker, at most: whole views, and where each training clip's row is
    files: int
    file_bytes: int
    remote: bool  # then the files are copied to each node when they are first needed, and kept


def stores_in(recipe: Recipe, files: Opener) -> Iterator[tuple[str, Store, str]]:
    """The edges that stores teach, with the store and its column; ValueError where one cannot be read or told."""
    opened: dict[str, Store] = {}
    for edge in recipe.edges:
        if edge.store:
            store = opened[edge.store] = opened.get(edge.store) or open_store(edge.store, files)
            yield edge.key, store, column_of(store.description, edge)


def plan_stores(recipe: Recipe, phases: tuple[Phase, ...], cost: Cost, files: Opener) -> tuple[StoreCost, ...]:
    """The cost of each column of a store from which the recipe's students learn; raises as `stores_in`."""
    columns: dict[tuple[str, str], tuple[Store, list[str]]] = {}
    for key, store, column in stores_in(recipe, files):
        columns.setdefault((store.uri, column), (store, []))[1].append(key)
    return tuple(
        _cost(recipe, phases, cost, store, column, tuple(edges)) for (_, column), (store, edges) in columns.items()
    )


def _cost(
    recipe: Recipe, phases: tuple[Phase, ...], cost: Cost, store: Store, column: str, edges: tuple[str, ...]
) -> StoreCost:
    codec, sizes = store.codec(column), [entry["files"][column] for entry in store.manifest["shards"]]
    row_bytes, view_bytes = codec.row_bytes, store.num_clips * codec.unpacked_bytes
    batch_bytes = recipe.train.batch_size * row_bytes
    open_edges = [(phase.steps, sum(edge.key in edges for edge in phase.edges)) for phase in phases]
    planes = num_planes(min(store.num_views, ceil(cost.epochs)), view_bytes, MEMORY_BYTES)
    return StoreCost(
        uri=store.uri,
        column=column,
        edges=edges,
        teachers=store.teachers(column),
        clips=store.num_clips,
        views=store.num_views,
        row_bytes=row_bytes,
        bytes_read=sum(steps * count for steps, count in open_edges) * batch_bytes,
        step_bytes=max(count for _, count in open_edges) * batch_bytes,
        memory_bytes=planes * view_bytes + INDEX_BYTES * cost.clips.train,
        files=len(sizes),
        file_bytes=sum(file["bytes"] for file in sizes),
        remote=not is_local(store.uri),
    )
