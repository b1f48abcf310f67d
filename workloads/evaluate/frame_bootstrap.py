"""What teaching did to frames: a taught model's frame mAP against its untaught control's, with a bootstrap interval.

Clips are drawn with replacement, all frames of one together, the same clips for both models and for all seeds
(`bootstrap.py`). Axes: X frames of all clips, N clips, C tags, B resamples.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from workloads.evaluate.bootstrap import AT_ONCE, Array, Pair, Resamples, average_precisions, mean_over_tags


def what_teaching_did_in_time(pairs: list[Pair], y_XC: Tensor, clip_X: Tensor) -> dict[str, Any]:
    """The mean frame mAP over seeds, taught and untaught, with the difference and its 95 % interval.

    `pairs` are logits of frames, `y_XC` their labels, NaN where unknown, `clip_X` the number of each frame's clip.
    """
    _, clips_X = np.unique(clip_X.numpy(), return_inverse=True)
    counts = Resamples(int(clips_X.max()) + 1, len(pairs))
    once_1X = np.ones((1, len(clips_X)))
    sides = [[_as_columns(frames) for frames in (pair.taught_NC, pair.untaught_NC)] for pair in pairs]
    y_CX = _as_columns(y_XC)
    means = np.array([[_frame_maps(z_CX, y_CX, once_1X)[0] for z_CX in side] for side in sides]).mean(0)
    differences_SB = np.stack(
        [
            _resampled(taught, y_CX, clips_X, counts) - _resampled(untaught, y_CX, clips_X, counts)
            for taught, untaught in sides
        ]
    )
    low, high = counts.interval(differences_SB)
    return {
        "taught": float(means[0]),
        "untaught": float(means[1]),
        "difference": float(means[0] - means[1]),
        "interval": [low, high],
    }


def _as_columns(values_XC: Tensor) -> Array:
    columns_CX: Array = values_XC.double().numpy().T
    return columns_CX


def _frame_maps(z_CX: Array, y_CX: Array, counts_BX: Array) -> Array:
    """The frame mAP of each resample."""
    precisions = [average_precisions(z_X, y_X, counts_BX) for z_X, y_X in zip(z_CX, y_CX, strict=True)]
    return mean_over_tags(np.stack(precisions))


def _resampled(z_CX: Array, y_CX: Array, clips_X: NDArray[np.intp], counts: Resamples) -> Array:
    """The frame mAP of every resample; as many at once as fit in memory."""
    rows = max(AT_ONCE // len(clips_X), 1)
    return np.concatenate(
        [
            _frame_maps(z_CX, y_CX, block_BN[start : start + rows][:, clips_X])
            for block_BN in counts.blocks()
            for start in range(0, len(block_BN), rows)
        ]
    )
