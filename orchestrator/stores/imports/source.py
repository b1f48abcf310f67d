"""Outputs that another project has published, as one format's reader gives them: what a row is, and whose it is.

Does not depend on a format, nor on where the rows go.

Axes: N clips, V views, C values of a row, J kept tags of a row, F frames.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.stores.writer import Outputs
from workloads.data.formats.audioset import video_of
from workloads.runtime.text import name_some

ABSENT = -1  # the row of a clip that a view lacks
NAMES = ("audioset", "exact")


@dataclass(frozen=True)
class ImportRequest:
    """What is read, as the user typed it; empty or 0: as the project published it."""

    source: str
    format: str
    index: str = ""
    names: str = "audioset"
    tags: str = ""
    teacher: str = ""
    front_end: str = ""
    clip_seconds: float = 0.0
    rate: int = 0
    k: int = 0


@dataclass(frozen=True)
class Source:
    """Rows that are read one view at a time: `read(view, rows_N)` gives outputs_NC, of frames NCF, or a TopK of NJ."""

    files: tuple[Path, ...]  # all that the rows and their names come from
    clip_ids: list[str]
    rows_VN: NDArray[np.int32]  # the row of each clip in each view, or ABSENT
    read: Callable[[int, NDArray[np.int32]], Outputs]
    holds: str
    width: int | None = None  # tags; None: the files do not say how many
    k: int = 0  # values of a row, where it has the largest ones only
    num_frames: int = 0
    hop: float = 0.0  # seconds of a frame; 0: the frames share the clip equally
    augment: dict[str, Any] = field(default_factory=dict)  # what is known of the views


def to_clip_ids(names: Sequence[str], kind: str, place: Path) -> list[str]:
    """The clips' ids: of kind "audioset" the videos of names such as Yabcdefghijk.mp3, of kind "exact" the names.

    ValueError for names that are not AudioSet's.
    """
    if kind == "exact":
        return list(names)
    videos = [video_of(name) for name in names]
    if strange := [name for name, video in zip(names, videos, strict=True) if video is None]:
        raise ValueError(
            f"{place}: {len(strange)} of {len(names)} names are not AudioSet's: {name_some(strange, 3)}; with --names "
            "exact the clips' ids are the names as they are"
        )
    return [video for video in videos if video is not None]


def number_clips(views: Iterable[Sequence[str]], place: Path) -> tuple[list[str], NDArray[np.int32]]:
    """The ids of all clips of these views, whose rows are given in order, and rows_VN.

    ValueError for a clip that is twice in a view.
    """
    numbers: dict[str, int] = {}
    found_V = []
    for view, clip_ids in enumerate(views):
        found_V.append(
            np.fromiter((numbers.setdefault(clip_id, len(numbers)) for clip_id in clip_ids), np.int32, len(clip_ids))
        )
        counts = np.bincount(found_V[-1], minlength=1)
        if (counts > 1).any():
            ids = list(numbers)
            twice = [ids[number] for number in np.flatnonzero(counts > 1)[:11].tolist()]
            raise ValueError(
                f"{place}: clips with several rows in view {view}: {name_some(twice, 3)}; keep one of each"
            )
    rows_VN = np.full((len(found_V), len(numbers)), ABSENT, np.int32)
    for rows_N, found in zip(rows_VN, found_V, strict=True):
        rows_N[found] = np.arange(len(found), dtype=np.int32)
    return list(numbers), rows_VN
