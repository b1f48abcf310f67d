"""What a tagger says of a sound along time, in few enough steps for a picture.

Axes: F frames of 40 ms, W windows, P steps in time, C tags, T samples.
"""

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.serving.answers import Timeline
from workloads.evaluate.detect import MEDIAN_SECONDS, smooth
from workloads.evaluate.frames import FRAME_SECONDS
from workloads.evaluate.sounds import HeardSound
from workloads.models.probabilities import probabilities
from workloads.models.tagger import Tagger

MOST_STEPS = 400
PEAKS = 600


def along_time(tagger: Tagger, heard: HeardSound, tags: list[str]) -> Timeline:
    """The probabilities of `tags` in steps: of the frames that events are made of where it was heard with them, else of
    windows. Where there are too many steps, neighbours become one, with the largest probability."""
    seconds = len(heard.sound.x_T) / tagger.clip_rate
    if heard.frames_FC is not None:
        begins_P = FRAME_SECONDS * np.arange(len(heard.frames_FC))
        ends_P, p_PC = np.minimum(begins_P + FRAME_SECONDS, seconds), smooth(heard.frames_FC, MEDIAN_SECONDS)
    else:
        begins_P = np.array(heard.sound.starts) / tagger.clip_rate
        ends_P = np.minimum(begins_P + tagger.clip_seconds, seconds)
        p_PC = probabilities(heard.logits_WC, tagger.labels).numpy()
    together = math.ceil(len(p_PC) / MOST_STEPS)
    firsts = np.arange(0, len(p_PC), together)
    lasts = np.minimum(firsts + together, len(p_PC)) - 1
    columns = [tagger.tags.index(tag) for tag in tags]
    p_PC = np.maximum.reduceat(p_PC[:, columns], firsts)
    return Timeline(
        step_begins=np.round(begins_P[firsts], 3).tolist(),
        step_ends=np.round(ends_P[lasts], 3).tolist(),
        probabilities={tag: np.round(p_P, 4).tolist() for tag, p_P in zip(tags, p_PC.T, strict=True)},
        peaks=np.round(_peaks(heard.sound.x_T), 3).tolist(),
    )


def _peaks(x_T: Tensor) -> NDArray[np.float32]:
    """The largest amplitude in each of PEAKS equal parts; of a very short sound each sample's."""
    loud_T = x_T.abs().numpy()
    edges = np.unique(np.linspace(0, len(loud_T), PEAKS, endpoint=False).astype(int))
    peaks: NDArray[np.float32] = np.maximum.reduceat(loud_T, edges)
    return peaks
