"""A front end over a sound that comes piece by piece: the frames of the whole sound, in constant memory.

Frames near the edge of a piece wait until the samples that they depend on are there (`LogMel.reach`). Each piece is
computed together with as many samples before it as the first of its frames depends on. Does not depend on networks.

Axes: B clips, T samples, M mel bands, F frames.
"""

import math

import torch
from torch import Tensor

from workloads.models.front_end import LogMel

SINC_WIDTH = 8  # samples at the lower rate on either side that the filter of a front end's resampling reaches, and more


class FrontEndStream:
    """The log-mel of one sound at the front end's `clip_rate`, piece by piece; for one thread."""

    def __init__(self, front_end: LogMel) -> None:
        assert front_end.reach is not None, f"{front_end.kind}: a frame depends on the whole sound"
        self._front_end = front_end
        common = math.gcd(front_end.clip_rate, front_end.rate)
        self._down, self._up = front_end.clip_rate // common, front_end.rate // common
        # Pieces begin where both rates have a sample and a frame begins.
        self._unit_frames = self._up // math.gcd(front_end.hop, self._up)
        self._unit_samples = self._unit_frames * front_end.hop * self._down // self._up
        filter_reach = -(-SINC_WIDTH * self._up // min(self._down, self._up)) if self._down != self._up else 0
        self._before, self._after = (reach + filter_reach for reach in front_end.reach)
        self._waiting_BT = torch.zeros(1, 0)
        self._start = 0  # number of the sample that waits first
        self._given = 0  # frames given so far

    @property
    def look_ahead(self) -> float:
        """Seconds after the end of a frame that must be known before it is."""
        return max(0.0, self._after - self._front_end.hop) / self._front_end.rate

    def push(self, x_T: Tensor, *, last: bool) -> Tensor:
        """mel_BMF, B = 1, of the frames that these samples complete; after the `last` piece of all that are left."""
        self._waiting_BT = torch.cat([self._waiting_BT, x_T.unsqueeze(0)], dim=1)
        samples = self._start + self._waiting_BT.shape[1]
        complete = self._complete(samples, last=last)
        if complete <= self._given:
            return torch.zeros(1, self._front_end.bands, 0)
        first = self._start * self._up // self._down // self._front_end.hop
        mel_BMF = self._front_end(self._waiting_BT)[..., self._given - first : complete - first]
        self._given = complete
        self._forget()
        return mel_BMF

    def _complete(self, samples: int, *, last: bool) -> int:
        """How many frames of a sound are known when so many of its samples are."""
        front_end = self._front_end
        if last:
            return front_end.frames(samples / front_end.clip_rate)
        known = samples * self._up // self._down - self._after
        return known // front_end.hop + 1 if known >= 0 else 0

    def _forget(self) -> None:
        """Drop the samples that no frame to come depends on, in whole units."""
        needed = (self._given * self._front_end.hop - self._before) // self._front_end.hop  # the first frame needed
        units = max(0, needed) // self._unit_frames - self._start // self._unit_samples
        if units > 0:
            self._waiting_BT = self._waiting_BT[:, units * self._unit_samples :].clone()
            self._start += units * self._unit_samples
