"""Events of a sound: which tag begins and ends when, from a tagger's logits in time.

Axes: F frames of 40 ms, C tags.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from torch import Tensor

from workloads.evaluate.boxes import boxes
from workloads.evaluate.frames import FRAME_SECONDS

MEDIAN_SECONDS = 0.36  # nine frames, as in reference/frames.md section 4
THRESHOLD = 0.5


@dataclass(frozen=True)
class Detection:
    """A tag from its onset to its offset, in seconds, and the largest probability of its frames."""

    tag: str
    onset: float
    offset: float
    probability: float


def smooth(logits_FC: Tensor, seconds: float) -> NDArray[np.float32]:
    """p_FC of frames after a median filter over an odd number of frames, the nearest to `seconds`; 0 leaves them."""
    p_FC: NDArray[np.float32] = logits_FC.float().sigmoid().numpy()
    half = round((seconds / FRAME_SECONDS - 1) / 2)
    return p_FC if half < 1 else median_filter(p_FC, size=(2 * half + 1, 1), mode="nearest")


def detect(
    logits_FC: Tensor,
    tags: tuple[str, ...],
    *,
    seconds: float,
    threshold: float = THRESHOLD,
    median_seconds: float = MEDIAN_SECONDS,
    by_boxes: bool = False,
) -> list[Detection]:
    """Where the smoothed probability of a tag is at least the threshold, by onset, then by tag.

    The sound lasts `seconds`: its last frame may go on after it. `by_boxes`: smoothed by `boxes` instead of a median
    filter; ValueError where its package is not installed.
    """
    p_FC = boxes(logits_FC) if by_boxes else smooth(logits_FC, median_seconds)
    found = []
    for column, tag in enumerate(tags):
        active_F = np.concatenate([[False], p_FC[:, column] >= threshold, [False]])
        changes = np.flatnonzero(active_F[1:] != active_F[:-1])
        for first, end in zip(changes[::2].tolist(), changes[1::2].tolist(), strict=True):
            largest = float(p_FC[first:end, column].max())
            offset = min(end * FRAME_SECONDS, seconds)
            found.append(Detection(tag, round(first * FRAME_SECONDS, 3), round(offset, 3), largest))
    return sorted(found, key=lambda event: (event.onset, event.tag))
