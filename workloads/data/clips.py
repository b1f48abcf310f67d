"""Clips, the data set that they make up, and how it is cut into train, validation and test. Opens no file.

Axes: N clips, C tags.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workloads.config.recipe import Data
from workloads.runtime.rng import keyed_generator


@dataclass(frozen=True)
class Clip:
    """One clip: `path` is relative to the data set's root, `source` the recording that it was cut from.

    `absent` are the tags that were listened for and not heard, of the others it is unknown; None: all others.
    """

    clip_id: str
    path: str
    tags: tuple[str, ...]
    fold: int
    source: str
    absent: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Dataset:
    """All clips by clip_id, and the sorted tags, whose order is that of a model's outputs."""

    clips: tuple[Clip, ...]
    tags: tuple[str, ...]
    labels: str  # "single" or "multi"

    def targets(self, clips: Sequence[Clip]) -> NDArray[np.float32]:
        """y_NC float32, 1 where clip n has tag c, NaN where that is unknown."""
        column = {tag: index for index, tag in enumerate(self.tags)}
        y_NC = np.zeros((len(clips), len(self.tags)), dtype=np.float32)
        for row, clip in enumerate(clips):
            if clip.absent is not None:
                y_NC[row] = np.nan
                y_NC[row, [column[tag] for tag in clip.absent]] = 0
            y_NC[row, [column[tag] for tag in clip.tags]] = 1
        return y_NC

    def fingerprint(self) -> str:
        """SHA-256 over ids, tags, folds, sources and relative paths: the same data set wherever its root lies."""
        digest = hashlib.sha256()
        for clip in self.clips:
            said = [clip.clip_id, clip.tags, clip.fold, clip.source, clip.path, clip.absent]
            digest.update(json.dumps(said).encode() + b"\n")
        return digest.hexdigest()


@dataclass(frozen=True)
class Splits:
    """Clips to learn from, clips that steer, clips that only the final score sees."""

    train: tuple[Clip, ...]
    val: tuple[Clip, ...]
    test: tuple[Clip, ...]


def split(dataset: Dataset, data: Data) -> Splits:
    """Cut by data.test_fold, then the other folds by data.val_slice; no recording is on two sides.

    With one tag a clip the slices hold the tags in equal shares as far as whole recordings allow. Raises ValueError for
    a fold that does not exist, for a source on both sides of the test fold, and for more slices than recordings or
    clips of a tag can fill.
    """
    folds = sorted({clip.fold for clip in dataset.clips})
    if data.test_fold not in folds:
        raise ValueError(f"data.test_fold = {data.test_fold}: no such fold; the folds are {', '.join(map(str, folds))}")
    test = tuple(clip for clip in dataset.clips if clip.fold == data.test_fold)
    rest = tuple(clip for clip in dataset.clips if clip.fold != data.test_fold)
    torn = {clip.source for clip in test} & {clip.source for clip in rest}
    if torn:
        raise ValueError(
            f"source {min(torn)} is in the test fold {data.test_fold} and in others ({len(torn)} such sources): "
            "a model would be tested on what it has heard; give all clips of a source one fold"
        )
    slices = round(1 / data.val_share)
    fillable = len({clip.source for clip in rest})
    if dataset.labels == "single" and rest:
        fillable = min(fillable, max(Counter(clip.tags for clip in rest).values()))
    if fillable < slices:
        raise ValueError(
            f"data.val_share = {data.val_share}: that makes {slices} slices, but the training folds fill {fillable}; "
            "raise it, or add recordings"
        )
    val = _validation_sources(rest, data, slices, stratified=dataset.labels == "single")
    return Splits(
        train=tuple(clip for clip in rest if clip.source not in val),
        val=tuple(clip for clip in rest if clip.source in val),
        test=test,
    )


def _validation_sources(clips: tuple[Clip, ...], data: Data, slices: int, *, stratified: bool) -> set[str]:
    if stratified:
        from sklearn.model_selection import StratifiedGroupKFold

        cutter = StratifiedGroupKFold(slices, shuffle=True, random_state=data.split_seed)
        sources = [clip.source for clip in clips]
        cuts = list(cutter.split(sources, [clip.tags[0] for clip in clips], sources))
        return {sources[row] for row in cuts[data.val_slice][1]}
    ordered = sorted({clip.source for clip in clips})
    shuffled = keyed_generator("val", data.split_seed).permutation(len(ordered))
    return {ordered[index] for index in np.array_split(shuffled, slices)[data.val_slice]}
