"""Labels that are taken away, to see what a teacher is worth where labels are scarce (data.labelled_share)."""

import math
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np

from workloads.config.data import Data
from workloads.data.clips import Clip, Dataset
from workloads.runtime.rng import keyed_seed
from workloads.runtime.text import name_some


def keep_labels(clips: tuple[Clip, ...], dataset: Dataset, data: Data) -> tuple[Clip, ...]:
    """The training clips, of which data.labelled_share of the labelled ones, in whole recordings, keep their labels.

    Those that keep them at a smaller share are among those at a larger one.
    """
    if data.labelled_share == 1:
        return clips
    labelled = [clip for clip in clips if clip.labelled]
    kept_above = _shares_that_keep_labels(labelled, dataset, data)
    if dataset.labels == "single":
        _require_every_tag(labelled, kept_above, data)
    return tuple(
        clip
        if not clip.labelled or kept_above[clip.source] < data.labelled_share
        else replace(clip, tags=(), absent=None, labelled=False, events=None)
        for clip in clips
    )


def _shares_that_keep_labels(clips: list[Clip], dataset: Dataset, data: Data) -> dict[str, float]:
    """For each source the share of labels above which its clips keep theirs.

    A source's place in the order is keyed by its name. From the first source on, which always keeps its labels, as many
    keep them as come nearest to the share of the clips. With one tag per clip this is done within the sources of each
    tag, which for a source with several is its commonest.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for clip in clips:
        counts[clip.source][clip.tags[0] if dataset.labels == "single" else ""] += 1
    strata: dict[str, list[str]] = defaultdict(list)
    for source in sorted(counts, key=lambda source: (keyed_seed("labelled", data.split_seed, source), source)):
        strata[min(counts[source], key=lambda tag: (-counts[source][tag], tag))].append(source)
    kept_above: dict[str, float] = {}
    for sources in strata.values():
        sizes = np.array([counts[source].total() for source in sources])
        nearer_above = (sizes.cumsum() - sizes / 2) / sizes.sum()  # halfway between without and with the source
        nearer_above[0] = 0
        kept_above |= dict(zip(sources, nearer_above.tolist(), strict=True))
    return kept_above


def _require_every_tag(clips: list[Clip], kept_above: dict[str, float], data: Data) -> None:
    """ValueError where a tag of the labelled training clips is on none that keeps its label."""
    by_tag: dict[str, float] = {}
    for clip in clips:
        (tag,) = clip.tags
        by_tag[tag] = min(by_tag.get(tag, 1.0), kept_above[clip.source])
    lost = sorted(tag for tag, share in by_tag.items() if share >= data.labelled_share)
    if lost:
        enough = (math.floor(100 * max(by_tag.values())) + 1) / 100
        raise ValueError(
            f"data.labelled_share = {data.labelled_share:g}: no labelled training clip is left of the tags "
            f"{name_some(lost)}; --set data.labelled_share={enough:g}"
        )
