"""The median filter of `detect`, over probabilities that come piece by piece.

Axes: P steps in time, W steps of a window, C tags.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray


class MedianStream:
    """Smooths over an odd number of steps, the nearest to `seconds`; beyond the ends the nearest step goes on.

    Output comes `half` steps after input; with half = 0 it is the input.
    """

    def __init__(self, seconds: float, step: float) -> None:
        self.half = max(0, round((seconds / step - 1) / 2))
        self._waiting_PC: NDArray[np.float32] | None = None

    def push(self, p_PC: NDArray[np.float32], *, last: bool) -> NDArray[np.float32]:
        """The smoothed values of the steps whose neighbours are known; after the `last` piece of all that are left."""
        if not self.half:
            return p_PC
        if self._waiting_PC is None:
            if not len(p_PC):
                return p_PC
            self._waiting_PC = p_PC[:1].repeat(self.half, axis=0)
        steps_PC = np.concatenate([self._waiting_PC, p_PC])
        if last:
            steps_PC = np.concatenate([steps_PC, steps_PC[-1:].repeat(self.half, axis=0)])
        self._waiting_PC = steps_PC[max(0, len(steps_PC) - 2 * self.half) :]
        if len(steps_PC) <= 2 * self.half:
            return steps_PC[:0]
        windows_PCW = sliding_window_view(steps_PC, 2 * self.half + 1, axis=0)
        # ten times as fast as SciPy's filter, for few steps of many tags
        smooth_PC: NDArray[np.float32] = np.partition(windows_PCW, self.half, axis=2)[..., self.half]
        return smooth_PC
