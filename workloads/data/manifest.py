"""The clips of a data set, their tags and folds, read from its metadata. Opens no audio.

Axes: N clips of a set, C tags.
"""

from collections.abc import Callable
from typing import Literal

from workloads.config.data import Data
from workloads.data.clips import Clip, Dataset
from workloads.data.formats.audioset import read_audioset
from workloads.data.formats.esc50 import read_esc50
from workloads.data.formats.events import with_events
from workloads.data.formats.folders import read_folders
from workloads.data.formats.fsd50k import read_fsd50k
from workloads.data.formats.keywords import read_keywords
from workloads.data.formats.manifest import read_manifest
from workloads.data.formats.openmic import read_openmic
from workloads.data.formats.packed import read_packed
from workloads.data.formats.rows import Metadata
from workloads.data.formats.speechcommands import read_speechcommands
from workloads.data.formats.urbansound8k import read_urbansound8k
from workloads.data.synthetic import synthetic_clips
from workloads.runtime.opener import Opener
from workloads.runtime.text import name_some

READERS: dict[str, Callable[[Data, Opener], Metadata]] = {
    "synthetic": lambda data, opener: Metadata(synthetic_clips(data)),
    "manifest": read_manifest,
    "folders": read_folders,
    "packed": read_packed,
    "audioset": read_audioset,
    "esc50": read_esc50,
    "fsd50k": read_fsd50k,
    "keywords": read_keywords,
    "openmic": read_openmic,
    "speechcommands": read_speechcommands,
    "urbansound8k": read_urbansound8k,
}


def read_dataset(
    data: Data,
    opener: Opener,
    *,
    model_tags: tuple[str, ...] = (),
    tags_of: str = "tagger",
    tags_needed: Literal["always", "of labelled", "never"] = "always",
) -> Dataset:
    """The clips that `data` describes; does not depend on the order of the rows.

    With the tags of a model, or of what `tags_of` says, the dataset's are these, in their order, matched by name; the
    clips need not have all. A data set without any tag is a mistake where tags are needed: "always" but where the model
    gives them and no clip is labelled, "of labelled" data sets only, or "never".

    Raises ValueError, with row and fix, for missing columns, repeated clip_ids, clips without tags where data.labels is
    "single", folds that are not numbers, more than one tag where data.labels is "single", absent tags that no clip has
    or that are also among the clip's tags, tags of a clip that is not labelled, and tags that the model does not know.
    """
    found = READERS[data.format](data, opener)
    clips, warnings, events_sha256 = sorted(found.clips, key=lambda clip: clip.clip_id), found.warnings, ""
    if data.events:
        clips, more, events_sha256 = with_events(clips, data, opener)
        warnings += more
    present = {tag for clip in clips for tag in clip.tags}
    tags = model_tags or tuple(sorted(present))
    may_be_unlabelled = bool(model_tags) or tags_needed == "of labelled"
    needed = tags_needed != "never" and (not may_be_unlabelled or any(clip.labelled for clip in clips))
    if present or needed:
        _check_tags(clips, data, present, tags, tags_of)
    return Dataset(
        tuple(clips),
        tags,
        data.labels,
        without_source=found.without_source,
        folds_assigned=found.folds_assigned,
        val_fold=found.val_fold,
        warnings=warnings,
        events_sha256=events_sha256,
        packed=found.packed,
        not_in_data=tuple(tag for tag in tags if tag not in present),
    )


def _check_tags(clips: list[Clip], data: Data, present: set[str], tags: tuple[str, ...], tags_of: str) -> None:
    """ValueError where no clip has a tag, and for tags of clips that are not among the dataset's."""
    place = data.manifest or data.root
    if not present:
        raise ValueError(
            f"{place}: no clip has a tag (column tags); training and scoring need them, but for clips with false in "
            "a column labelled that a store teaches"
        )
    if strangers := sorted(present - set(tags)):
        raise ValueError(
            f"the data set's tags {name_some(strangers)}: the {tags_of} does not know them, it knows "
            f"{name_some(tags)}; leave them out of the data set, or choose a {tags_of} that knows them"
        )
    unknown = sorted({tag for clip in clips for tag in clip.absent or ()} - set(tags))
    if unknown:
        raise ValueError(
            f"{place}: column absent names {unknown[0]!r}, which no clip has as a tag; the tags are {', '.join(tags)}"
        )
