"""The stores that teach a run, opened for its training clips; `store_checks.py` says whether they fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from workloads.config.edge import Edge
from workloads.config.recipe import Recipe
from workloads.data.augment import StoredViews
from workloads.data.clip_store import ClipStore
from workloads.data.clips import Clip, Dataset
from workloads.data.stored_mixtures import StoredMixtures
from workloads.distill.store_checks import (
    OF_TAGS,
    column_of,
    is_of_mixtures,
    require_frames_start_at_zero,
    require_rows,
)
from workloads.distill.stored_teacher import StoredTeacher
from workloads.distill.waveform_comparison import WaveformComparison, compare_waveforms
from workloads.runtime.opener import Opener
from workloads.runtime.text import name_some
from workloads.stores.reader import StoreReader


@dataclass(frozen=True)
class StoresOfRun:
    """The teacher of each edge that a store teaches, and how its waveforms compare with the student's, by the edge's
    key; `mixtures` if the rows are of mixtures."""

    teachers: Mapping[str, StoredTeacher]
    comparisons: Mapping[str, WaveformComparison]
    mixtures: StoredMixtures | None = None

    @property
    def views(self) -> StoredViews | None:
        """The views in which clips must be drawn so that their rows fit; None where those of no store are drawn."""
        teachers = _with_drawn_views(self.teachers)
        if not teachers:
            return None
        whole = [teacher for teacher in teachers if teacher.edge.view == "same"]
        return StoredViews((whole or teachers)[0].num_views, whole=bool(whole))

    def digests(self) -> dict[str, str]:
        """By edge a hash of what its store holds, by which a store that was replaced is noticed."""
        return {key: teacher.reader.store.digest for key, teacher in self.teachers.items()}

    def summary(self) -> list[dict[str, Any]]:
        """For the event log: of each edge its store, teachers, numbers of clips and views, and what is missing."""
        return [
            {
                "edge": key,
                "store": teacher.reader.store.uri,
                "column": teacher.column,
                "teachers": teacher.reader.store.teachers(teacher.column),
                "clips": teacher.reader.store.num_clips,
                "views": teacher.num_views,
                "without_rows": len(teacher.reader.missing),
                "waveforms_compared": self.comparisons[key].compared,
                "not_compared": self.comparisons[key].reason,
            }
            for key, teacher in self.teachers.items()
        ]

    def warnings(self) -> list[str]:
        """A line for each store of which nothing shows that the student gets the waveforms that its teachers got."""
        return [
            f"edges {key}: store {self.teachers[key].reader.store.uri!r}: nothing shows that the student gets the "
            f"waveforms that its teachers got: {comparison.reason}; {comparison.fix}"
            for key, comparison in self.comparisons.items()
            if comparison.fix
        ]


def open_stores(
    recipe: Recipe, dataset: Dataset, train: Sequence[Clip], cache: ClipStore, files: Opener
) -> StoresOfRun:
    """The stores of a recipe that `check_stores` has checked, for these training clips of a data set that has its tags.

    Raises ValueError for a store of other waveforms under the same names, and NotStored, which names them, for training
    clips without rows, unless the edge has missing = "labels".
    """
    copies = Path(recipe.data.cache).expanduser().parent / "stores"
    edges, clip_ids = [edge for edge in recipe.edges if edge.store], [clip.clip_id for clip in train]
    readers = {
        uri: StoreReader(uri, files, copies=copies, clip_ids=clip_ids)
        for uri in dict.fromkeys(edge.store for edge in edges)
    }
    num_views = _num_views(edges, readers, cut=_are_cut(recipe, train, cache))
    teachers: dict[str, StoredTeacher] = {}
    for edge in edges:
        reader = readers[edge.store]
        require_rows(reader, edge, train, dataset)
        require_frames_start_at_zero(reader.store.description, edge, recipe, train, cache)
        teachers[edge.key] = _teacher(edge, reader, dataset, num_views[edge.key])
    mixtures = _mixtures(_with_drawn_views(teachers), recipe, clip_ids)
    comparisons = {
        key: compare_waveforms(teacher.reader.store, teacher.edge, clip_ids, cache, mixtures)
        for key, teacher in teachers.items()
    }
    return StoresOfRun(teachers, comparisons, mixtures)


def _num_views(edges: Sequence[Edge], readers: Mapping[str, StoreReader], *, cut: bool) -> dict[str, int]:
    """Round how many views of its store each edge goes.

    A clip has one view in an epoch, so all stores whose views are drawn again go round the fewest that one of them has.
    Rows of views that nobody draws, and of clips that are neither augmented nor cut, belong to any view.
    """
    views = {edge.key: readers[edge.store].store.num_views for edge in edges}
    drawn = [edge.key for edge in edges if edge.view == "same" or (edge.view == "clean" and cut)]
    fewest = min((views[key] for key in drawn), default=0)
    return views | dict.fromkeys(drawn, fewest)


def _are_cut(recipe: Recipe, train: Sequence[Clip], cache: ClipStore) -> bool:
    """Whether a training clip is longer than what is taken of it, so that views are of other parts."""
    decoded = cache.decoded()
    return any(decoded[clip.clip_id].seconds > recipe.data.clip_seconds for clip in train)


def _teacher(edge: Edge, reader: StoreReader, dataset: Dataset, num_views: int) -> StoredTeacher:
    description = reader.store.description
    place_of = {tag: place for place, tag in enumerate(description["tags"])}
    place_C = np.array([place_of[tag] for tag in dataset.tags] if edge.carries in OF_TAGS else [])
    return StoredTeacher(edge, reader, column_of(description, edge), place_C, dataset.labels, num_views)


def _with_drawn_views(teachers: Mapping[str, StoredTeacher]) -> list[StoredTeacher]:
    """Those whose views the student draws again."""
    return [teacher for teacher in teachers.values() if teacher.edge.view != "other"]


def _mixtures(teachers: Sequence[StoredTeacher], recipe: Recipe, clip_ids: Sequence[str]) -> StoredMixtures | None:
    """How training clips are mixed as they were for the stores' teachers; None for stores of single clips.

    ValueError for training clips that are mixed with others than training clips in all views.
    """
    if not any(is_of_mixtures(teacher.reader.store.description) for teacher in teachers):
        return None
    first = teachers[0]
    names = chain.from_iterable(first.reader.store.clip_ids())
    mixtures = StoredMixtures(recipe.augment, first.num_views, clip_ids, names)
    if lost := mixtures.without_views():
        raise ValueError(
            f"edges {first.edge.key}: store {first.edge.store!r}: in all {first.num_views} views {len(lost)} training "
            f"clips are mixed with clips that do not train: {name_some(lost)}; make the store with more views"
        )
    return mixtures
