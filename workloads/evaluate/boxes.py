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
    for start in range(0, len(p_FC), BLOCK):
        for column in range(p_FC.shape[1]):
            found[start : start + BLOCK, column] = _constant_between_changes(p_FC[start : start + BLOCK, column])
    return found


def _constant_between_changes(p_F: NDArray[np.float32]) -> NDArray[np.float64]:
    from ruptures import KernelCPD

    signal_F1 = p_F[:, None].astype(np.float64)
    ends = [len(p_F)]
    # What varies less than the penalty has no change that pays: most tags of most sounds.
    if len(p_F) >= 2 * MIN_FRAMES and np.square(signal_F1 - signal_F1.mean()).sum() > PENALTY:
        ends = KernelCPD(kernel="linear", min_size=MIN_FRAMES).fit(signal_F1).predict(pen=PENALTY)
    parts = np.split(signal_F1[:, 0], ends[:-1])
    return np.concatenate([np.full(len(part), part.mean()) for part in parts])
