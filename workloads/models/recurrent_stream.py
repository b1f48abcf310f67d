"""Streams through recurrent networks that hear time in one direction. Does not depend on any family.

Axes: B clips, M mel bands, F frames, P steps in time, C tags.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from workloads.models.backbone import NetworkStream

State = tuple[Tensor, ...]
CarryOn = Callable[[Tensor, State | None], tuple[Tensor, State]]


class RecurrentStream(NetworkStream):
    """Logits of every step, equal to those of the whole sound up to it.

    `carry_on(mel_BMF, state)` gives logits_BPC and the new state, of as many steps as `frames_of_first_step` unpadded
    frames and each frame after them make; that many frames less one are heard again with the next piece.
    """

    def __init__(self, carry_on: CarryOn, *, frames_of_first_step: int, look_ahead: int) -> None:
        self._carry_on, self._overlap = carry_on, frames_of_first_step - 1
        self.look_ahead = look_ahead
        self._state: State | None = None
        self._waiting_BMF: Tensor | None = None  # frames that the next piece is joined to

    def push(self, mel_BMF: Tensor, *, last: bool) -> Tensor:
        if self._waiting_BMF is not None:
            mel_BMF = torch.cat([self._waiting_BMF, mel_BMF], dim=2)
        if mel_BMF.shape[2] <= self._overlap:
            self._waiting_BMF = mel_BMF
            return mel_BMF.new_zeros(len(mel_BMF), 0, 0)
        self._waiting_BMF = mel_BMF[:, :, mel_BMF.shape[2] - self._overlap :].clone()
        logits_BPC, self._state = self._carry_on(mel_BMF, self._state)
        return logits_BPC
