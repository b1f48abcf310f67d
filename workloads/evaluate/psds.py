"""PSDS1 of taggers that say when tags sound, by the optional package sed_scores_eval.

The score of AudioSet Strong and DESED as DCASE computes it (reference/frames.md section 6.1): it asks for whole events,
at any threshold, and not only for frames.

Axes: F frames of a clip, C tags.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import groupby
from typing import Any

import numpy as np
from torch import Tensor

from workloads.data.clips import Clip
from workloads.evaluate import boxes
from workloads.evaluate.detect import MEDIAN_SECONDS, smooth
from workloads.evaluate.frames import FRAME_SECONDS

PACKAGE = "sed_scores_eval"
TOLERANCE = 0.7  # dtc and gtc: the share of a detection, and of an event, that must meet


def require_packages(*, by_boxes: bool) -> None:
    """ValueError where an optional package is not installed, that of `boxes` with `by_boxes`."""
    if by_boxes:
        boxes.require_package()
    if find_spec(PACKAGE) is None:
        raise ValueError(f"PSDS needs the package {PACKAGE}, which is not installed: pip install 'antiphon[psds]'")


def psds1(
    frames: Sequence[Tensor], clips: Sequence[Clip], tags: tuple[str, ...], *, by_boxes: bool = False
) -> float | None:
    """The mean over tags of PSDS with dtc = gtc = 0.7 and without cross triggers; None where no clip has an event.

    `frames` are logits_FC of 40 ms, which a median filter of 0.36 s smooths first, or `boxes` with `by_boxes`. Tags
    without events, and clips without any, are left out. Raises ValueError where a package is not installed.
    """
    require_packages(by_boxes=by_boxes)
    from sed_scores_eval import intersection_based

    chosen = [(own, clip) for own, clip in zip(frames, clips, strict=True) if clip.events]
    names = sorted({event.tag for _, clip in chosen for event in clip.events or ()})
    if not names:
        return None
    columns = [tags.index(name) for name in names]
    scores = {clip.clip_id: _scores(own[:, columns], names, by_boxes=by_boxes) for own, clip in chosen}
    _, by_tag, *_ = intersection_based.psds(
        scores,
        {clip.clip_id: _merged(clip) for _, clip in chosen},
        {clip.clip_id: round(len(own) * FRAME_SECONDS, 6) for own, clip in chosen},
        dtc_threshold=TOLERANCE,
        gtc_threshold=TOLERANCE,
        alpha_ct=0.0,
        alpha_st=1.0,
    )
    return float(np.mean(list(by_tag.values())))


def _merged(clip: Clip) -> list[tuple[float, float, str]]:
    """A clip's events as the package wants them: onset, offset, tag; those of one tag that meet are one."""
    merged: list[tuple[float, float, str]] = []
    ordered = sorted(clip.events or (), key=lambda event: (event.tag, event.onset))
    for tag, events in groupby(ordered, key=lambda event: event.tag):
        own: list[tuple[float, float, str]] = []
        for event in events:
            if own and event.onset <= own[-1][1]:
                own[-1] = (own[-1][0], max(own[-1][1], event.offset), tag)
            else:
                own.append((event.onset, event.offset, tag))
        merged += own
    return merged


def _scores(logits_FC: Tensor, names: Sequence[str], *, by_boxes: bool) -> Any:
    """A data frame of probabilities, a row for each frame with its onset and offset."""
    import pandas

    class Writable(pandas.DataFrame):
        """pandas 3 hands out arrays that cannot be written, which the package's compiled code refuses."""

        @property
        def _constructor(self) -> Any:
            return Writable

        def to_numpy(self, *_: Any, **__: Any) -> Any:
            return super().to_numpy(copy=True)

    onsets = np.round(np.arange(len(logits_FC)) * FRAME_SECONDS, 6)
    p_FC = boxes.boxes(logits_FC) if by_boxes else smooth(logits_FC, MEDIAN_SECONDS)
    columns = {"onset": onsets, "offset": np.round(onsets + FRAME_SECONDS, 6)}
    return Writable(columns | {name: p_FC[:, column] for column, name in enumerate(names)})
