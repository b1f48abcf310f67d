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
from numpy.typing import NDArray
from torch import Tensor

from workloads.data.clips import Clip, Dataset
from workloads.evaluate import boxes
from workloads.evaluate.detect import MEDIAN_SECONDS, smooth
from workloads.evaluate.frames import FRAME_SECONDS, known_in_time

PACKAGE = "sed_scores_eval"
TOLERANCE = 0.7  # dtc and gtc: the share of a detection, and of an event, that must meet
NEVER = -1.0  # in place of a probability: detected at no threshold that detects anything less than everything


def require_packages(*, by_boxes: bool) -> None:
    """ValueError where an optional package is not installed, that of `boxes` with `by_boxes`."""
    if by_boxes:
        boxes.require_package()
    if find_spec(PACKAGE) is None:
        raise ValueError(f"PSDS needs the package {PACKAGE}, which is not installed: pip install 'antiphon[psds]'")


def psds1(frames: Sequence[Tensor], clips: Sequence[Clip], dataset: Dataset, *, by_boxes: bool = False) -> float | None:
    """The mean over tags of PSDS with dtc = gtc = 0.7 and without cross triggers; None where no clip has an event.

    `frames` are logits_FC of 40 ms, C being the data set's tags, which a median filter of 0.36 s smooths first, or
    `boxes` with `by_boxes`. Tags without events, and clips without any, are left out, and of a clip the tags of which
    it is not known when they sound. Raises ValueError where a package is not installed.
    """
    require_packages(by_boxes=by_boxes)
    from sed_scores_eval import intersection_based

    known_NC = known_in_time(clips, dataset)
    chosen = [row for row in zip(frames, clips, known_NC, strict=True) if row[1].events]
    names = sorted({event.tag for _, clip, _ in chosen for event in clip.events or ()})
    if not names:
        return None
    columns = [dataset.columns[name] for name in names]
    scores = {
        clip.clip_id: _scores(own[:, columns], known_C[columns], names, by_boxes=by_boxes)
        for own, clip, known_C in chosen
    }
    _, by_tag, *_ = intersection_based.psds(
        scores,
        {clip.clip_id: _merged(clip) for _, clip, _ in chosen},
        {clip.clip_id: round(len(own) * FRAME_SECONDS, 6) for own, clip, _ in chosen},
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


def _scores(logits_FC: Tensor, known_C: NDArray[np.bool_], names: Sequence[str], *, by_boxes: bool) -> Any:
    """A data frame of probabilities, a row for each frame with its onset and offset; NEVER for tags not known."""
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
    p_FC = np.where(known_C, p_FC, NEVER)
    columns = {"onset": onsets, "offset": np.round(onsets + FRAME_SECONDS, 6)}
    return Writable(columns | {name: p_FC[:, column] for column, name in enumerate(names)})
