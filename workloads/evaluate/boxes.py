"""Probabilities in time that are constant between change points, by the optional package ruptures.

In place of a median filter: a box has one probability, the mean of its frames, so an event is found or missed as a
whole, at any threshold. The idea is that of sound event bounding boxes (Ebbers et al. 2024, arXiv 2406.04212), whose
change points come from a step filter; here they are those of the best piecewise constant fit (PELT: Killick et al.
2012), which pays PENALTY for each.

Axes: F frames of 40 ms, C tags.
"""

from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

PACKAGE = "ruptures"
# Squared error that a change must save: a rise and fall by 0.2 saves two of them in 6 frames, one by 0.5 in 2. Chosen
# on validation clips of frames-demo.
PENALTY = 0.1
MIN_FRAMES = 2
BLOCK = 1000  # frames fitted at a time, 40 s: the time grows with their square
MARGIN = 250  # last frames of a block whose change points are left to the next block, which hears what comes after them


def require_package() -> None:
    """ValueError where the optional package is not installed."""
    if find_spec(PACKAGE) is None:
        raise ValueError(f"--boxes needs the package {PACKAGE}, which is not installed: pip install 'antiphon[boxes]'")


def boxes(logits_FC: Tensor) -> NDArray[np.float32]:
    """p_FC of frames, each the mean of those between the two change points around it; of one tag at a time.

    Raises ValueError where the package is not installed.
    """
    require_package()
    p_FC: NDArray[np.float32] = logits_FC.float().sigmoid().numpy()
    found = np.empty_like(p_FC)
    for column, p_F in enumerate(p_FC.T.astype(np.float64)):
        found[:, column] = np.concatenate([np.full(len(part), part.mean()) for part in np.split(p_F, _changes(p_F))])
    return found


def _changes(p_F: NDArray[np.float64]) -> list[int]:
    """The change points of a sound of any length, from overlapping blocks.

    A block begins with the last change point that is sure, so that what goes on across the end of a block is fitted as
    a whole; of what is constant for longer, with its newest part.
    """
    changes: list[int] = []
    start = 0
    while True:
        end = start + BLOCK
        found = [start + change for change in _changes_of_block(p_F[start:end])]
        if end >= len(p_F):
            return changes + found
        sure = [change for change in found if change <= end - MARGIN]
        changes += sure
        start = max([end - 2 * MARGIN, *sure[-1:]])


def _changes_of_block(p_F: NDArray[np.float64]) -> list[int]:
    from ruptures import KernelCPD

    # What varies less than the penalty has no change that pays: most tags of most sounds.
    if len(p_F) < 2 * MIN_FRAMES or np.square(p_F - p_F.mean()).sum() <= PENALTY:
        return []
    ends: list[int] = KernelCPD(kernel="linear", min_size=MIN_FRAMES).fit(p_F[:, None]).predict(pen=PENALTY)
    return ends[:-1]
