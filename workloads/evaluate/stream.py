"""A tagger that hears one sound piece by piece: probabilities of steps in time, in constant memory.

Two kinds. `CarriedStream`: the network's state is carried from piece to piece (`Backbone.stream`), for recurrent
networks in one direction and convolutional ones with logits in time. `WindowStream`: any tagger hears the last
`clip_seconds` again with each piece. Both cut the sound into pieces of their own, so that its blocks do not matter.

Axes: T samples, W frames of a window, P steps in time, C tags.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workloads.config.architectures import MN, FrameMN, gives_frames
from workloads.data.decode import cut_or_pad
from workloads.evaluate.detect import MEDIAN_SECONDS
from workloads.evaluate.frames import FRAME_SECONDS, on_frames
from workloads.evaluate.median_stream import MedianStream
from workloads.evaluate.predict import BadNumbers
from workloads.models.front_end import MIN_SECONDS
from workloads.models.front_end_stream import FrontEndStream
from workloads.models.probabilities import probabilities
from workloads.models.profiles import time_grid
from workloads.models.tagger import Tagger, outputs_of_silence

CARRIED_HOP, WINDOW_HOP = 0.2, 1.0  # seconds: the cost of a window does not depend on the hop, that of a piece does
MIN_HOP = 0.02


@dataclass(frozen=True)
class Steps:
    """Probabilities p_PC of consecutive steps, and when each begins and ends, in seconds of the sound."""

    begins_P: NDArray[np.float64]
    ends_P: NDArray[np.float64]
    p_PC: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.begins_P)


class TaggerStream(ABC):
    """One sound through a tagger in eval mode; for one thread.

    Raises BadNumbers where a logit is not finite, from then on in every call: a network that carries its state would
    give no other, and the steps after a gap would lie too early.

    The steps that `push` and `finish` give are consecutive from 0 to the end of the sound. `latency`: seconds at most
    from the end of a step until enough sound has come to know it, after the first clip where `begins_with_clip`.
    """

    latency: float
    begins_with_clip: bool

    def __init__(self, tagger: Tagger, *, first_piece: float, hop: float) -> None:
        self._tagger, self._first_piece, self.hop = tagger, first_piece, hop
        self._waiting_T = torch.zeros(0)
        self._pieces, self._heard = 0, 0  # pieces and samples that the network has heard
        self._samples = 0  # that have come
        self._broken = ""  # why it cannot go on

    @property
    def seconds(self) -> float:
        """Seconds of sound that have come."""
        return self._samples / self._tagger.clip_rate

    @property
    def pieces(self) -> int:
        """Pieces that the network has heard, with the last one, which may be shorter."""
        return self._pieces

    def push(self, x_T: Tensor) -> Iterator[Steps]:
        """The steps that these samples, at the tagger's `clip_rate`, complete: one value for each piece."""
        self._samples += len(x_T)
        self._waiting_T = torch.cat([self._waiting_T, x_T])
        while (missing := self._end_of_next_piece() - self._heard) <= len(self._waiting_T):
            piece_T, self._waiting_T = self._waiting_T[:missing], self._waiting_T[missing:].clone()
            yield self._next(piece_T, last=False)

    def finish(self) -> Steps:
        """The steps that are left when no more samples come. Raises ValueError where too few have come."""
        if self.seconds < MIN_SECONDS:
            raise ValueError(f"holds {self.seconds:.3f} s of sound; a tagger needs {MIN_SECONDS} s or more")
        return self._next(self._waiting_T, last=True)

    def _end_of_next_piece(self) -> int:
        return round((self._first_piece + self._pieces * self.hop) * self._tagger.clip_rate)

    def _next(self, piece_T: Tensor, *, last: bool) -> Steps:
        if self._broken:
            raise BadNumbers(self._broken)
        if len(piece_T):
            self._pieces, self._heard = self._pieces + 1, self._heard + len(piece_T)
        with torch.no_grad():
            return self._hear(piece_T, last=last)

    @abstractmethod
    def _hear(self, piece_T: Tensor, *, last: bool) -> Steps:
        """The steps that a piece completes; the last one may be empty."""

    def _probabilities(self, logits_PC: Tensor) -> NDArray[np.float32]:
        if not bool(logits_PC.isfinite().all()):
            self._broken = "the model's logits of it are not finite: its weights are damaged or have diverged"
            raise BadNumbers(self._broken)
        p_PC: NDArray[np.float32] = probabilities(logits_PC.float(), self._tagger.labels).numpy()
        return p_PC


class CarriedStream(TaggerStream):
    """The network's state goes on from piece to piece: each second is computed once.

    Steps are the network's own, smoothed by the median filter of `detect`. Recurrent networks: the probabilities of a
    step are those of a clip that ends with it. Networks with gates over all of a clip begin with one clip as a whole.
    """

    def __init__(self, tagger: Tagger, *, hop: float = CARRIED_HOP) -> None:
        assert not why_not_carried(tagger), why_not_carried(tagger)
        network = tagger.backbone.stream(tagger.num_frames)
        assert network is not None, "why_not_carried asks the same"
        self.begins_with_clip = network.begins_with_clip
        super().__init__(tagger, first_piece=tagger.clip_seconds if self.begins_with_clip else hop, hop=hop)
        self._network, self._front_end = network, FrontEndStream(tagger.front_end)
        self._grid = time_grid(tagger, outputs_of_silence(tagger).sequence_BPD.shape[1])
        self._median = MedianStream(MEDIAN_SECONDS, self._grid.step)
        frame_s = tagger.front_end.hop / tagger.front_end.rate
        self.latency = (
            hop + self._front_end.look_ahead + network.look_ahead * frame_s + self._median.half * self._grid.step
        )
        self._given = 0  # steps

    def _hear(self, piece_T: Tensor, *, last: bool) -> Steps:
        mel_BMF = self._front_end.push(piece_T, last=last)
        logits_PC = self._network.push(self._tagger.normalise(mel_BMF), last=last)[0]
        p_PC = self._probabilities(logits_PC) if len(logits_PC) else np.zeros((0, len(self._tagger.tags)), np.float32)
        return self._placed(self._median.push(p_PC, last=last), last=last)

    def _placed(self, p_PC: NDArray[np.float32], *, last: bool) -> Steps:
        """Where these steps lie: the first one begins with the sound, the last one ends with it."""
        bounds = self._grid.first + self._grid.step * (self._given + np.arange(len(p_PC) + 1))
        if self._given == 0:
            bounds[:1] = 0
        self._given += len(p_PC)
        if last:
            bounds[-1:] = self.seconds
        bounds = np.clip(bounds, 0, self.seconds)
        return Steps(bounds[:-1], bounds[1:], p_PC)


class WindowStream(TaggerStream):
    """The last `clip_seconds` are heard again with every piece, from the first whole clip on.

    The first clip's probabilities are those of all of it; a later window's are those of its newest piece. So a tag of
    a sound that ends keeps its probability until the sound has left the window. A tagger with logits in time says more:
    of each window those frames count that are not known yet and lie one piece before its end, or as much as fits.
    A sound that is shorter than a clip is padded as `sounds.py` pads it.
    """

    begins_with_clip = True

    def __init__(self, tagger: Tagger, *, hop: float = WINDOW_HOP) -> None:
        super().__init__(tagger, first_piece=tagger.clip_seconds, hop=hop)
        self._in_time = gives_frames(tagger.model.arch) and tagger.labels == "multi"
        self._look_ahead = min(hop, tagger.clip_seconds - hop) if self._in_time else 0.0
        self._median = MedianStream(MEDIAN_SECONDS if self._in_time else 0.0, FRAME_SECONDS)
        self.latency = hop + self._look_ahead + self._median.half * FRAME_SECONDS
        self._length = round(tagger.clip_seconds * tagger.clip_rate)
        self._window_T = torch.zeros(0)
        self._known = 0  # frames that the median filter has got
        self._given = 0.0  # seconds whose steps were given

    def _hear(self, piece_T: Tensor, *, last: bool) -> Steps:
        if not len(piece_T) and not self._in_time:
            return self._up_to(self._given, np.zeros((0, len(self._tagger.tags)), np.float32))
        self._window_T = torch.cat([self._window_T, piece_T])[-self._length :]
        x_BT = cut_or_pad(self._window_T, self._length).unsqueeze(0)
        short = len(self._window_T) < self._length
        sound_BT = (torch.arange(self._length) < len(self._window_T)).unsqueeze(0) if short else None
        outputs = self._tagger.outputs(self._tagger.front_end(x_BT, sound_BT))
        if not self._in_time:
            return self._up_to(self._heard / self._tagger.clip_rate, self._probabilities(outputs.logits_BC))
        assert outputs.frames_BPC is not None, "this tagger gives frames"
        return self._frames(on_frames(self._tagger, outputs.frames_BPC)[0], last=last)

    def _frames(self, logits_WC: Tensor, *, last: bool) -> Steps:
        """The new frames of a window that can be known."""
        end = self._heard / self._tagger.clip_rate
        until = math.ceil(end / FRAME_SECONDS - 1e-6) if last else int((end - self._look_ahead) / FRAME_SECONDS + 1e-6)
        # rounded as `until` is: of windows that begin between frames, each frame belongs to just one
        first = int((end - len(self._window_T) / self._tagger.clip_rate) / FRAME_SECONDS + 1e-6)
        new_PC = logits_WC[max(0, self._known - first) : until - first]
        missing = until - max(self._known, first) - len(new_PC)  # the window begins between frames
        new_PC = torch.cat([new_PC, logits_WC[-1:].expand(max(0, missing), -1)])
        self._known = until
        p_PC = self._median.push(self._probabilities(new_PC), last=last)
        begin = round(self._given / FRAME_SECONDS)
        bounds = np.minimum(FRAME_SECONDS * (begin + np.arange(len(p_PC) + 1)), end)
        self._given = FRAME_SECONDS * (begin + len(p_PC))
        return Steps(bounds[:-1], bounds[1:], p_PC)

    def _up_to(self, end: float, p_PC: NDArray[np.float32]) -> Steps:
        """One step from where the last one ended; of none of them nothing."""
        begins, ends = np.full(len(p_PC), self._given), np.full(len(p_PC), end)
        self._given = end
        return Steps(begins, ends, p_PC)


def why_not_carried(tagger: Tagger) -> str:
    """Why the tagger cannot carry its state from piece to piece, for people; empty where it can."""
    arch, front_end = tagger.model.arch, tagger.model.front_end
    kind = getattr(arch, "variant", arch.family)
    if tagger.backbone.stream(tagger.num_frames) is None:
        return f"{kind} hears a clip as a whole and has no state to carry"
    if isinstance(arch, FrameMN | MN) and tagger.labels == "single":
        return f"{kind} with labels 'single' has probabilities of clips only, not of steps in time"
    if front_end.frames:
        return f"its clips are padded or cut to {front_end.frames} frames"
    if tagger.front_end.reach is None:
        return f"its front end, {front_end.kind}, depends on the whole clip: on its loudest sound"
    return ""


def open_stream(tagger: Tagger, *, hop: float | None = None, carry: bool | None = None) -> TaggerStream:
    """A stream through a tagger: with carried state, in windows, or by default with carried state where it can.

    `carry` needs a tagger that can. Raises ValueError for a hop that is too short or longer than a clip.
    """
    reason = why_not_carried(tagger)
    assert not (carry and reason), reason
    if hop is not None and not MIN_HOP <= hop <= tagger.clip_seconds:
        raise ValueError(f"hop = {hop:g}: must be {MIN_HOP} to {tagger.clip_seconds:g} s, the length of its clips")
    if reason or carry is False:
        return WindowStream(tagger, hop=min(WINDOW_HOP, tagger.clip_seconds) if hop is None else hop)
    return CarriedStream(tagger, hop=min(CARRIED_HOP, tagger.clip_seconds) if hop is None else hop)
