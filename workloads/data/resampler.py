"""A sound resampled piece by piece: the samples of `decode.resample` of the whole, in constant memory.

Axes: T samples.
"""

from fractions import Fraction

import torch
import torchaudio
from torch import Tensor

from workloads.data.decode import SINC_WIDTH


class Resampler:
    """From rate `orig` to `new` in Hz, for one sound; `decode.resample` documents the ratio."""

    def __init__(self, *, orig: int, new: int) -> None:
        ratio = Fraction(orig, new).limit_denominator(1000)
        self._down, self._up = ratio.numerator, ratio.denominator
        self._resample = torchaudio.transforms.Resample(self._down, self._up)
        # In groups of samples that are whole at both rates; the filter reaches this many groups to either side.
        self._margin = 0 if ratio == 1 else 1 + -(-SINC_WIDTH * max(self._down, self._up) // (self._down * self._up))
        self._waiting_T = torch.zeros(0)
        self._before = 0  # groups at the beginning of what waits that were resampled already

    def push(self, x_T: Tensor, *, last: bool) -> Tensor:
        """The samples that these complete, at the new rate; after the `last` piece all that are left."""
        if not self._margin:
            return x_T
        self._waiting_T = torch.cat([self._waiting_T, x_T])
        after = 0 if last else self._margin
        groups = len(self._waiting_T) // self._down - after - self._before
        if (not last and groups <= 0) or not len(self._waiting_T):
            return torch.zeros(0)
        begin = self._before * self._up
        y_T = self._resample(self._waiting_T)[begin : None if last else begin + groups * self._up]
        forget = max(0, self._before + groups - self._margin)
        self._waiting_T, self._before = self._waiting_T[forget * self._down :].clone(), self._before + groups - forget
        return y_T
