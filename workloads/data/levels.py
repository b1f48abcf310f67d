"""How loud the decoded clips of a data set are: which of them are silent, and which were clipped by their recorder.

Axes: T samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from workloads.data.clip_store import ClipStore
from workloads.data.clips import Clip

SILENT_DB = -60.0  # peak relative to full scale, below which a clip is silent
FULL_SCALE_FROM = 0.9995  # amplitude from which a sample counts as one at full scale
CLIPPED_RUN = 3  # samples in a row at full scale: fewer are a peak, as a normalised file has one


@dataclass(frozen=True)
class Levels:
    """Number of clips that were heard, and the ids of the silent and of the clipped ones, in their order."""

    clips: int
    silent: tuple[str, ...]
    clipped: tuple[str, ...]


def levels(clips: Sequence[Clip], cache: ClipStore) -> Levels:
    """The levels of whole clips as the cache holds them: at the rate of the run, channels averaged."""
    silent, clipped = [], []
    for clip, _ in zip(clips, cache.ahead([cache.entry(clip.clip_id) for clip in clips]), strict=True):
        x_T = cache.load(clip.clip_id).abs()
        if len(x_T) == 0 or float(x_T.max()) < 10 ** (SILENT_DB / 20):
            silent.append(clip.clip_id)
        elif _is_clipped(x_T):
            clipped.append(clip.clip_id)
    return Levels(len(clips), tuple(silent), tuple(clipped))


def _is_clipped(amplitude_T: Tensor) -> bool:
    """Whether CLIPPED_RUN samples in a row are at full scale."""
    full_T = amplitude_T >= FULL_SCALE_FROM
    return len(full_T) >= CLIPPED_RUN and bool(full_T.unfold(0, CLIPPED_RUN, 1).all(dim=1).any())
