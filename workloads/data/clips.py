"""Clips, and the data set that they form. Opens no file.

Axes: N clips of a set, C tags.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from workloads.config.data import Data
from workloads.data.events import Event
from workloads.data.pack import Pack


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip: `path` is relative to the data set's root, `source` the recording that it was cut from.

    `absent` are the tags that the clip is known to lack, all tags in neither list are unknown; None: it lacks all
    others. Of a clip that is not labelled nothing is known; it has neither. `events` say when its tags sound; None:
    that is not known.
    """

    clip_id: str
    path: str
    tags: tuple[str, ...]
    fold: int
    source: str
    absent: tuple[str, ...] | None = None
    labelled: bool = True
    events: tuple[Event, ...] | None = None


@dataclass(frozen=True)
class Dataset:
    """All clips sorted by clip_id, and the tags in the order of a model's outputs: sorted, or as the model has them."""

    clips: tuple[Clip, ...]
    tags: tuple[str, ...]
    labels: str  # "single" or "multi"
    without_source: int = 0  # clips of which the metadata names no source: each is its own
    folds_assigned: bool = False  # by a hash of the source, since the metadata has no folds
    not_in_data: tuple[str, ...] = ()  # tags of the model that no clip has: with "multi" nobody looked for them
    val_fold: int | None = None  # of a data set that names its validation clips; None: a slice of the training folds
    events_sha256: str = ""  # of the events, where a table says them
    warnings: tuple[str, ...] = ()  # of the reader, about files that are no clips of the set
    packed: Pack | None = field(default=None, compare=False, repr=False)  # where the clips' sounds are, if packed

    def plain_format(self, data: Data) -> str:
        """The value of data.format with which the data set is read where it is not packed."""
        return self.packed.manifest["format"] if self.packed else data.format

    def targets(self, clips: Sequence[Clip]) -> NDArray[np.float32]:
        """y_NC float32: 1 where clip n has tag c, NaN where that is unknown, else 0; all NaN for an unlabelled clip."""
        column = self.columns
        y_NC = np.zeros((len(clips), len(self.tags)), dtype=np.float32)
        if self.labels == "multi":
            y_NC[:, [column[tag] for tag in self.not_in_data]] = np.nan
        for row, clip in enumerate(clips):
            if clip.absent is not None or not clip.labelled:
                y_NC[row] = np.nan
                y_NC[row, [column[tag] for tag in clip.absent or ()]] = 0
            y_NC[row, [column[tag] for tag in clip.tags]] = 1
        return y_NC

    @cached_property
    def has_labels(self) -> bool:
        """Whether any label of any clip is known; if none is, no clip validates or tests, and nothing is scored."""
        return any(clip.tags or clip.absent or (clip.labelled and clip.absent is None) for clip in self.clips)

    @cached_property
    def columns(self) -> dict[str, int]:
        """The column of each tag."""
        return {tag: index for index, tag in enumerate(self.tags)}

    def clips_per_tag(self, clips: Sequence[Clip]) -> tuple[list[int], list[int]]:
        """For each tag the number of clips that have it, and of those of which it is known whether they do."""
        have = Counter(tag for clip in clips for tag in clip.tags)
        partly = [clip for clip in clips if clip.absent is not None]
        known_partly = Counter(tag for clip in partly for tag in (*clip.tags, *(clip.absent or ())))
        num_whole = sum(clip.labelled for clip in clips) - len(partly)
        unknown = self.not_in_data if self.labels == "multi" else ()
        known = [known_partly[tag] + (0 if tag in unknown else num_whole) for tag in self.tags]
        return [have[tag] for tag in self.tags], known

    def fingerprint(self) -> str:
        """SHA-256 over ids, tags, folds, sources, relative paths, absent tags and which clips are not labelled.

        Does not depend on the root, nor on whether the clips are packed. Computed once.
        """
        return self.packed.manifest["fingerprint"] if self.packed else self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        for clip in self.clips:
            fields = [clip.clip_id, clip.tags, clip.fold, clip.source, clip.path, clip.absent]
            fields += [] if clip.labelled else ["unlabelled"]
            digest.update(json.dumps(fields).encode() + b"\n")
        return digest.hexdigest()
