"""Logits in time of a trained tagger, and how well they say when tags sound.

Frames of 40 ms from the start of a clip, whatever the steps of the network are, so that models can be compared; the
network's steps are averaged or interpolated to them. Does not depend on training.

Axes: W frames of a window, F frames of a clip, C tags; X frames of all clips.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workloads.config.architectures import gives_frames
from workloads.data.batches import window_starts
from workloads.data.clips import Clip, Dataset
from workloads.distill.frames import frames_on_grid
from workloads.models.profiles import TimeGrid, time_grid
from workloads.models.tagger import Tagger

FRAME_SECONDS = 0.04


def clips_with_frames(tagger: Tagger, clips: Sequence[Clip]) -> list[Clip]:
    """The clips on which the tagger's frames can be scored: none where it has none, or nobody knows when tags sound.

    With one tag a clip logits are compared between tags: their level in a frame says nothing of when.
    """
    if not gives_frames(tagger.model.arch) or tagger.labels == "single":
        return []
    return [clip for clip in clips if clip.events is not None]


def on_frames(tagger: Tagger, frames_BPC: Tensor) -> Tensor:
    """The logits of a tagger's steps on frames of 40 ms of its window, logits_BWC float32."""
    count = math.ceil(tagger.clip_seconds / FRAME_SECONDS - 1e-6)
    return frames_on_grid(
        frames_BPC.float(), time_grid(tagger, frames_BPC.shape[1]), TimeGrid(0.0, FRAME_SECONDS, count)
    )


def join_windows(windows: Sequence[Tensor], samples: int, *, rate: int, seconds: float, long_clips: str) -> Tensor:
    """logits_FC fp16 of a recording from those of its windows; where two overlap, the mean of their logits.

    Padding has no frames. With `long_clips` = "start" only the first window is heard, and has frames.
    """
    length = round(seconds * rate)
    starts = window_starts(samples, length, long_clips)
    heard = min(samples, length) if long_clips == "start" else samples
    count = max(1, math.ceil(heard / rate / FRAME_SECONDS - 1e-6))
    sum_FC, windows_F1 = torch.zeros(count, windows[0].shape[1]), torch.zeros(count, 1)
    for start, logits_WC in zip(starts, windows, strict=True):
        first = round(start / rate / FRAME_SECONDS)
        own = logits_WC[: count - first]
        sum_FC[first : first + len(own)] += own
        windows_F1[first : first + len(own)] += 1
    mean_FC = sum_FC / windows_F1.clamp(min=1)
    covered = int(windows_F1.sum(1).bool().sum())  # windows begin between frames, so the last frame may be in none
    mean_FC[covered:] = mean_FC[covered - 1]
    return mean_FC.half()


def frame_labels(clip: Clip, frames: int, columns: Mapping[str, int]) -> NDArray[np.bool_]:
    """y_FC: which of a clip's tags sound in a frame; an event counts from the frame of its onset to that of its end."""
    y_FC = np.zeros((frames, len(columns)), np.bool_)
    for event in clip.events or ():
        first, last = math.floor(event.onset / FRAME_SECONDS + 1e-6), math.ceil(event.offset / FRAME_SECONDS - 1e-6)
        y_FC[first:last, columns[event.tag]] = True
    return y_FC


def frame_targets(frames: Sequence[Tensor], clips: Sequence[Clip], dataset: Dataset) -> NDArray[np.float32]:
    """y_XC of all frames of the clips: 1 where a tag sounds, else 0, NaN where that is not known."""
    targets = []
    for own, clip, known_C in zip(frames, clips, known_in_time(clips, dataset), strict=True):
        y_FC = frame_labels(clip, len(own), dataset.columns).astype(np.float32)
        y_FC[:, ~known_C] = np.nan
        targets.append(y_FC)
    return np.concatenate(targets)


def score_frames(frames: Sequence[Tensor], clips: Sequence[Clip], dataset: Dataset) -> dict[str, float]:
    """frame_mAP: the mean over tags of the average precision of all frames of the clips whose label is known.

    Over the tags with frames both with and without them; empty where there is none.
    """
    from sklearn.metrics import average_precision_score

    if not clips:
        return {}
    y_XC, logits_XC, precisions = frame_targets(frames, clips, dataset), torch.cat(list(frames)).numpy(), []
    for tag in range(y_XC.shape[1]):
        known_X = ~np.isnan(y_XC[:, tag])
        y_X = y_XC[known_X, tag]
        if y_X.any() and not y_X.all():
            precisions.append(average_precision_score(y_X, logits_XC[known_X, tag].astype(np.float32)))
    return {"frame_mAP": float(np.mean(precisions))} if precisions else {}


def known_in_time(clips: Sequence[Clip], dataset: Dataset) -> NDArray[np.bool_]:
    """known_NC: of which tags of each clip it is known when they sound, not of one that it has and no event of."""
    y_NC = dataset.targets(clips)
    silent_NC = np.ones(y_NC.shape, bool)
    for row, clip in enumerate(clips):
        silent_NC[row, [dataset.columns[event.tag] for event in clip.events or ()]] = False
    known_NC: NDArray[np.bool_] = ~np.isnan(y_NC) & ~(silent_NC & (y_NC == 1))
    return known_NC
