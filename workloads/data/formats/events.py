"""A table of events: when the tags of clips sound, a row for each event, as AudioSet Strong and DESED have them."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from workloads.config.data import Data
from workloads.data.clips import Clip
from workloads.data.events import Event
from workloads.data.formats.rows import MetadataRow, read_rows
from workloads.data.table import read_table
from workloads.runtime.opener import Opener
from workloads.runtime.text import name_some

NAMES = ("clip_id", "filename")  # of which a table has one
COLUMNS = ("onset", "offset", "event_label")
MAX_SECONDS = 1e6  # of a recording


def with_events(clips: Sequence[Clip], data: Data, opener: Opener) -> tuple[list[Clip], tuple[str, ...], str]:
    """The clips with the events of the table data.events, warnings, and a hash of all events.

    A row names its clip by clip_id, or by its file: the path, or the last part of it, exactly as it is. A row without
    onset, offset and label says that its clip has no event. Of clips without rows it stays unknown when they sound.

    Raises ValueError, with row and fix, for missing columns, times that are no numbers or not in order, labels that are
    no tags of their clip, a clip that has an event in one row and none by another, and where no row is of any of these
    clips.
    """
    rows = read_rows(
        read_table(data.events, opener, columns=(*NAMES, *COLUMNS), setting="data.events"), data.events, COLUMNS, data
    )
    found: dict[str, list[Event]] = defaultdict(list)
    without: dict[str, MetadataRow] = {}  # clip id -> the row which says that it has no event
    strangers: dict[str, int] = {}
    for row, name, clip in _rows_with_clips(rows, clips, data):
        if clip is None:
            strangers[name] = strangers.get(name, 0) + 1
        elif any(row.optional(column) for column in COLUMNS):
            found[clip.clip_id].append(_event(row, clip))
        else:
            without[clip.clip_id] = row
    for clip_id, row in without.items():
        if found[clip_id]:  # from here on it has an entry
            raise ValueError(
                f"{row.location}: without onset, offset and label it says that clip {clip_id!r} has no event, and "
                "other rows give it some; remove this row, or complete it"
            )
    if not found:
        raise ValueError(f"data.events = {data.events!r}: none of its rows is of a clip of the data set; compare names")
    warnings: tuple[str, ...] = ()
    if strangers:
        text = f"data.events: {sum(strangers.values())} rows are of clips that the data set does not have"
        warnings = (f"{text}: {name_some(list(strangers))}",)
    with_own = [
        replace(clip, events=tuple(sorted(found[clip.clip_id], key=lambda event: (event.onset, event.tag))))
        if clip.clip_id in found
        else clip
        for clip in clips
    ]
    return with_own, warnings, _digest(with_own)


def _rows_with_clips(
    rows: Iterable[MetadataRow], clips: Sequence[Clip], data: Data
) -> Iterator[tuple[MetadataRow, str, Clip | None]]:
    """Each row, the name that it has for its clip, and the clip; None for clips that the data set does not have."""
    names: dict[str, dict[str, list[Clip]]] = {}
    for row in rows:
        column = next((name for name in NAMES if name in row.cells), "")
        if not column:
            raise ValueError(f"{data.events}: no column clip_id or filename; it must say of which clip an event is")
        if column not in names:
            names[column] = _by_name(clips, column)
        name = row.required(column)
        own = names[column].get(name, [])
        if len(own) > 1:
            raise ValueError(
                f"{row.location}: filename = {name!r}: {len(own)} clips have a file of this name; name clips by clip_id"
            )
        yield row, name, own[0] if own else None


def _by_name(clips: Sequence[Clip], column: str) -> dict[str, list[Clip]]:
    by_name: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        names = {clip.clip_id} if column == "clip_id" else {clip.path, PurePosixPath(clip.path).name}
        for name in names:
            by_name[name].append(clip)
    return dict(by_name)


def _event(row: MetadataRow, clip: Clip) -> Event:
    onset, offset = (row.number(column, low=0, high=MAX_SECONDS) for column in ("onset", "offset"))
    label = row.required("event_label")
    if offset <= onset:
        raise ValueError(f"{row.location}: offset = {offset:g}: must be after the onset, {onset:g} s")
    if label not in clip.tags:
        raise ValueError(
            f"{row.location}: event_label = {label!r}: clip {clip.clip_id!r} does not have this tag, its tags are "
            f"{', '.join(clip.tags) or 'none'}; add it there, or leave the row out"
        )
    return Event(label, onset, offset)


def _digest(clips: Sequence[Clip]) -> str:
    digest = hashlib.sha256()
    for clip in clips:
        events = None if clip.events is None else [(event.tag, event.onset, event.offset) for event in clip.events]
        digest.update(json.dumps([clip.clip_id, events]).encode() + b"\n")
    return digest.hexdigest()
