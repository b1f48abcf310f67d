"""Numbers that describe a data set: durations, rates, clips per tag, fold and part. Opens no file.

`antiphon data check` prints them; what of them is a reason to warn is in `warnings.py`.
"""

import statistics
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from workloads.data.clips import Clip, Dataset
from workloads.data.decoded import DecodedClip
from workloads.data.splits import Splits

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Durations:
    """Seconds of the clips, and how they fit the window of `clip_seconds` in which a model hears a clip."""

    clips: int
    min: float
    median: float
    max: float
    total: float
    padding: float  # share of all windows that is padding, one window for each clip
    shorter: int  # clips shorter than the window
    longer: int
    unheard: float  # share of the longer clips that one window leaves out


def durations(decoded: Collection[DecodedClip], clip_seconds: float) -> Durations:
    """Durations of at least one decoded clip."""
    seconds = [clip.seconds for clip in decoded]
    longer = [clip.seconds for clip in decoded if clip.seconds > clip_seconds + 0.5 / clip.rate]
    sound = sum(min(length, clip_seconds) for length in seconds)
    return Durations(
        clips=len(seconds),
        min=min(seconds),
        median=statistics.median(seconds),
        max=max(seconds),
        total=sum(seconds),
        padding=1 - sound / (clip_seconds * len(seconds)),
        shorter=sum(clip.seconds < clip_seconds - 0.5 / clip.rate for clip in decoded),
        longer=len(longer),
        unheard=1 - clip_seconds * len(longer) / sum(longer) if longer else 0.0,
    )


def rates(decoded: Collection[DecodedClip]) -> dict[int, int]:
    """Number of clips by the rate of their own files in Hz, ascending."""
    return dict(sorted(Counter(clip.own_rate for clip in decoded).items()))


@dataclass(frozen=True)
class TagCount:
    """How many clips have a tag: in each part, and in each fold."""

    clips: int
    parts: dict[str, int]
    folds: dict[int, int]


def tag_counts(dataset: Dataset, splits: Splits) -> dict[str, TagCount]:
    """By tag, those with the fewest clips first."""
    folds = fold_numbers(dataset)
    by_part = {part: _count(getattr(splits, part)) for part in PARTS}
    by_fold = {fold: _count([clip for clip in dataset.clips if clip.fold == fold]) for fold in folds}
    total = _count(dataset.clips)
    return {
        tag: TagCount(
            clips=total[tag],
            parts={part: count[tag] for part, count in by_part.items()},
            folds={fold: count[tag] for fold, count in by_fold.items()},
        )
        for tag in sorted(dataset.tags, key=lambda tag: (total[tag], tag))
    }


def _count(clips: Sequence[Clip]) -> Counter[str]:
    return Counter(tag for clip in clips for tag in clip.tags)


def fold_numbers(dataset: Dataset) -> list[int]:
    """The folds of a data set, ascending."""
    return sorted({clip.fold for clip in dataset.clips})


def part_folds(splits: Splits) -> dict[str, list[int]]:
    """By part, the folds of its clips; validation is a slice of the training folds."""
    return {part: sorted({clip.fold for clip in getattr(splits, part)}) for part in PARTS}
