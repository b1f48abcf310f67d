"""What a tagger says of a sound of any length: the one place that cuts a sound into windows and joins what was heard.

`antiphon tag`, `embed` and `serve` hear through it. Pieces of several sounds can be heard in one forward. Does not
depend on where a sound comes from.

Axes: B windows of several sounds, W windows of one sound, T samples, F frames of 40 ms, C tags, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workloads.data.batches import window_starts
from workloads.data.decode import cut_or_pad
from workloads.evaluate.frames import join_windows, on_frames
from workloads.evaluate.predict import BadNumbers
from workloads.models.probabilities import merge_windows, probabilities
from workloads.models.tagger import Tagger

WINDOWS_AT_ONCE = 16  # of a long recording
BAD_NUMBERS = "the model's logits of it are not finite: its weights are damaged or have diverged"


@dataclass(frozen=True)
class SoundWindows:
    """A sound x_T as a tagger hears it: in windows of `length` samples that begin at `starts`.

    A sound shorter than a window is padded; of a longer one is heard what `long_clips` says, as in training and
    scoring.
    """

    x_T: Tensor
    length: int
    starts: tuple[int, ...]
    long_clips: str

    @property
    def sound_BT(self) -> Tensor:
        """Which samples of a window are sound, not padding: the same of all windows."""
        return (torch.arange(self.length) < len(self.x_T)).unsqueeze(0)

    def pieces(self, windows_at_once: int) -> list["Piece"]:
        """All windows in order, in pieces of so many at most."""
        count = len(self.starts)
        return [Piece(self, first, min(first + windows_at_once, count)) for first in range(0, count, windows_at_once)]


@dataclass(frozen=True)
class Piece:
    """Some consecutive windows of one sound; their samples are copied only when they are heard."""

    sound: SoundWindows
    first: int
    end: int

    def __len__(self) -> int:
        return self.end - self.first

    def x_BT(self) -> Tensor:
        sound = self.sound
        return torch.stack(
            [cut_or_pad(sound.x_T, sound.length, start) for start in sound.starts[self.first : self.end]]
        )


class HeardPiece(NamedTuple):
    """A tagger's outputs for the windows of a piece; frames and embeddings where they were asked for."""

    logits_WC: Tensor
    frames: list[Tensor]  # logits_FC of each window
    embedding_WD: Tensor | None


@dataclass(frozen=True)
class HeardSound:
    """A tagger's outputs for a whole sound: of its windows, and joined."""

    sound: SoundWindows
    logits_WC: Tensor
    logits_C: Tensor  # its probabilities are the mean of the windows'
    frames_FC: Tensor | None  # logits in time, fp16; None: not asked for
    embedding_D: Tensor | None  # the mean of the windows'; None: not asked for


def cut_windows(tagger: Tagger, x_T: Tensor, long_clips: str) -> SoundWindows:
    """The windows of a sound at the tagger's rate; `long_clips` is that of the tagger's state."""
    length = round(tagger.clip_seconds * tagger.clip_rate)
    return SoundWindows(x_T, length, tuple(window_starts(len(x_T), length, long_clips)), long_clips)


def hear_pieces(
    tagger: Tagger, pieces: Sequence[Piece], *, frames: bool = False, embeddings: bool = False
) -> list[HeardPiece]:
    """Hear pieces, of one sound or of several, in one forward; `frames` only of taggers that have them."""
    sizes = [len(piece) for piece in pieces]
    x_BT = torch.cat([piece.x_BT() for piece in pieces])
    sound_BT = None
    if any(len(piece.sound.x_T) < piece.sound.length for piece in pieces):
        sound_BT = torch.cat([piece.sound.sound_BT.expand(len(piece), -1) for piece in pieces])
    frames_BWC = embedding_BD = None
    with torch.no_grad():
        if frames or embeddings:
            outputs = tagger.outputs(tagger.front_end(x_BT, sound_BT))
            logits_BC, embedding_BD = outputs.logits_BC, outputs.embedding_BD
            if frames:
                assert outputs.frames_BPC is not None, "only taggers with frames are asked"
                frames_BWC = on_frames(tagger, outputs.frames_BPC)
        else:
            logits_BC = tagger.tag(x_BT, sound_BT)
    in_time = [()] * len(sizes) if frames_BWC is None else frames_BWC.split(sizes)
    embedded = [None] * len(sizes) if embedding_BD is None or not embeddings else embedding_BD.split(sizes)
    return [
        HeardPiece(logits_WC, list(own), embedding_WD)
        for logits_WC, own, embedding_WD in zip(logits_BC.split(sizes), in_time, embedded, strict=True)
    ]


def join_pieces(tagger: Tagger, sound: SoundWindows, heard: Sequence[HeardPiece]) -> HeardSound:
    """What was heard of all pieces of a sound, in order, joined. Raises BadNumbers where a logit is not finite."""
    logits_WC = torch.cat([piece.logits_WC for piece in heard])
    logits_C = merge_windows(logits_WC, tagger.labels)
    if not bool(logits_C.isfinite().all()):
        raise BadNumbers(BAD_NUMBERS)
    windows = [logits_FC for piece in heard for logits_FC in piece.frames]
    about: dict[str, Any] = {"rate": tagger.clip_rate, "seconds": tagger.clip_seconds, "long_clips": sound.long_clips}
    embedded = [piece.embedding_WD for piece in heard if piece.embedding_WD is not None]
    return HeardSound(
        sound,
        logits_WC,
        logits_C,
        join_windows(windows, len(sound.x_T), **about) if windows else None,
        torch.cat(embedded).mean(0) if embedded else None,
    )


def hear_sound(
    tagger: Tagger, x_T: Tensor, long_clips: str, *, frames: bool = False, embeddings: bool = False
) -> HeardSound:
    """Hear one sound at the tagger's rate, a few windows at a time. Raises BadNumbers where a logit is not finite."""
    sound = cut_windows(tagger, x_T, long_clips)
    pieces = sound.pieces(WINDOWS_AT_ONCE)
    heard = [hear_pieces(tagger, [piece], frames=frames, embeddings=embeddings)[0] for piece in pieces]
    return join_pieces(tagger, sound, heard)


def likeliest(tagger: Tagger, logits_C: Tensor, *, top: int) -> list[tuple[str, float]]:
    """The most likely tags with their probabilities, best first."""
    p_C = probabilities(logits_C.unsqueeze(0), tagger.labels)[0]
    best = p_C.topk(min(top, len(p_C)))
    return [
        (tagger.tags[index], value) for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
