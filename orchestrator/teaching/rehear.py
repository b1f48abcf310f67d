"""Whether a store holds what its teachers say: a sample of its clips is heard again and compared. Writes nothing.

Axes: N clips of the sample, V views, C values of a whole row, J kept tags of a row; where the column has frames, F of
them follow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.storage.fsspec_files import FsspecFiles
from orchestrator.teaching.clips import open_clips, partner_names, read_clips
from orchestrator.teaching.job import load_ensemble, with_absolute_paths
from orchestrator.teaching.teacher_runs import with_finished_runs
from workloads.config.teach import TeachRecipe
from workloads.runtime.rng import keyed_generator
from workloads.runtime.scratch import scratch_folder
from workloads.runtime.text import name_some
from workloads.stores.columns import BOUNDS
from workloads.stores.description import DRAWN_ELSEWHERE, OF_CLIPS, Column, require_compatible
from workloads.stores.reader import Rows, StoreReader
from workloads.stores.store import Store, open_store
from workloads.teaching.ensemble import Ensemble

STEP, LEAST_STEP = 2.0**-10, 2.0**-24  # of fp16: relative to a value, and of the smallest values
TOLERANCE = 1e-4  # relative to the largest value of a row: other batches and devices have other last bits


@dataclass(frozen=True)
class HeardAgain:
    """What was found: `largest` difference by column, and the clips of which a value differs by more than allowed."""

    clips: int
    rows: int
    largest: dict[str, float]
    differing: tuple[str, ...]


def hear_again(recipe: TeachRecipe, uri: str, *, clips: int, storage: str, patience_s: float = 300.0) -> HeardAgain:
    """Hear `clips` clips, 1 or more, of a store again in all views, the same ones at every call, and compare.

    Teachers that are models of runs come from the `storage`; none is trained.
    Allowed are one step of fp16, or half a step of uint8, and TOLERANCE together. Raises ValueError where the recipe is
    not the store's, with the first difference, and for clips that its data does not hold or that cannot be heard.
    """
    files = FsspecFiles()
    store = open_store(uri, files)
    if store.description["views"]["version"] == DRAWN_ELSEWHERE:
        raise ValueError(
            f"store {uri!r}: was imported, another program drew its views: they cannot be heard again here"
        )
    recipe = with_absolute_paths(with_finished_runs(recipe, storage))
    ensemble = load_ensemble(recipe, recipe.teach.device, patience_s=patience_s)
    described = {key: value for key, value in store.description.items() if key not in OF_CLIPS}
    require_compatible(described, dict(ensemble.describe()), uri, exactly=True)
    clip_ids = _sample(store, clips)
    heard = _hear(ensemble, recipe, store, clip_ids)
    with scratch_folder() as scratch:
        return _compare(store, heard, clip_ids, scratch)


def _sample(store: Store, clips: int) -> list[str]:
    """The names of some clips, drawn by the names of all."""
    rng = keyed_generator("hear again", store.description["clips"]["sha256"])
    places = set(rng.choice(store.num_clips, min(clips, store.num_clips), replace=False).tolist())
    names = (name for batch in store.clip_ids() for name in batch)
    return [name for place, name in enumerate(names) if place in places]


def _hear(
    ensemble: Ensemble, recipe: TeachRecipe, store: Store, clip_ids: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    """For each column the values of these clips in all views, values_NVC."""
    dataset = read_clips(recipe)
    known = {clip.clip_id: clip for clip in dataset.clips}
    mixed = recipe.augment.mixup > 0  # then partners are needed, which may be any clips of the store
    store_ids = [clip_id for batch in store.clip_ids() for clip_id in batch] if mixed else []
    names = partner_names(recipe, store_ids, clip_ids)
    needed = sorted({*clip_ids, *names.values()})
    if lost := [clip_id for clip_id in needed if clip_id not in known]:
        raise ValueError(f"the recipe's data does not hold {len(lost)} clips of the store: {name_some(lost, 3)}")
    sounds, unusable = open_clips(dataset, [known[clip_id] for clip_id in needed], recipe.data, rate=ensemble.rate)
    if broken := [clip for clip in unusable if clip.clip_id in needed]:
        reasons = name_some([f"{clip.clip_id} ({clip.reason})" for clip in broken], 3)
        raise ValueError(f"{len(broken)} clips of the store cannot be heard now: {reasons}")
    partners = {key: sounds.entry(name) for key, name in names.items()} or None
    return ensemble.rows([sounds.entry(clip_id) for clip_id in clip_ids], sounds, partners)


def _compare(store: Store, heard: dict[str, NDArray[np.float32]], clip_ids: list[str], copies: Path) -> HeardAgain:
    reader = StoreReader(store.uri, store.opener, copies=copies, clip_ids=clip_ids)
    largest, wrong_N = dict.fromkeys(heard, 0.0), np.zeros(len(clip_ids), bool)
    try:
        for name, values_NVC in heard.items():
            for view in range(store.num_views):
                heard_NC, half_step = _storable(values_NVC[:, view], store.description["columns"][name])
                differences, sizes = _differences(reader.read(name, clip_ids, view), heard_NC)
                allowed = np.maximum(STEP * sizes, LEAST_STEP) + half_step
                allowed += TOLERANCE * np.abs(_flat(heard_NC)).max(axis=1, keepdims=True)
                largest[name] = max(largest[name], float(differences.max()))
                wrong_N |= (differences > allowed).any(axis=1)
    finally:
        reader.close()
    differing = tuple(clip_ids[number] for number in np.flatnonzero(wrong_N).tolist())
    return HeardAgain(len(clip_ids), len(clip_ids) * store.num_views, largest, differing)


def _storable(heard_NC: NDArray[np.float32], column: Column) -> tuple[NDArray[np.float32], float]:
    """What was heard within the bounds of the column's numbers, and by how much these are rounded beside fp16."""
    if column["dtype"] != "uint8":
        return heard_NC, 0.0
    low, high = BOUNDS[column["holds"]]
    return heard_NC.clip(low, high), (high - low) / 255 / 2


def _flat(values: NDArray[Any]) -> NDArray[Any]:
    return values.reshape(len(values), -1)


def _differences(stored: Rows, heard_NC: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """For each stored value how far it is from what was heard, and its size.

    Of top k one difference more: by how much a tag that was left out exceeds the least one that was kept; of frames by
    their maxima.
    """
    values = stored.values.astype(np.float64)
    if stored.tags is None:
        return _flat(np.abs(values - heard_NC)), _flat(np.abs(values))
    places = stored.tags.reshape(*stored.tags.shape, *[1] * (values.ndim - 2))
    differences = _flat(np.abs(values - np.take_along_axis(heard_NC, places, axis=1)))
    others_NC = heard_NC.reshape(*heard_NC.shape[:2], -1).max(axis=2).astype(np.float64)
    np.put_along_axis(others_NC, stored.tags, -np.inf, axis=1)
    least_N = values.reshape(*values.shape[:2], -1).max(axis=2).min(axis=1)
    excess_N = np.maximum(others_NC.max(axis=1) - least_N, 0.0)
    return np.column_stack([differences, excess_N]), np.abs(np.column_stack([_flat(values), least_N]))
