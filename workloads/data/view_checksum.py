"""What is heard in a view of a clip, as one number: so that a student can be shown to hear what a teacher heard.

Axes: B clips, here one, T samples.
"""

import hashlib

import numpy as np
import torch

from workloads.config.recipe import Augment
from workloads.data.augment import roll_and_amplify
from workloads.data.clip_store import ClipStore
from workloads.data.loading import CropReader, ShardRequest
from workloads.data.samples import FULL_SCALE
from workloads.data.shard import ViewKey


def heard_sha256(cache: ClipStore, augment: Augment, clip_id: str, view: int, *, clip_seconds: float) -> str:
    """SHA-256 of the waveform in float32, cut, rolled and amplified, and of where the masks are, in float64."""
    length = round(clip_seconds * cache.rate)
    crops_BT = np.empty((1, length), np.int16)
    reader = CropReader(cache, augment, shard_size=1, length=length)
    read = reader.read(ShardRequest((ViewKey(clip_id, view, 0),), (cache.entry(clip_id),)), crops_BT)
    x_BT = roll_and_amplify(torch.from_numpy(crops_BT), read.views, scale=1 / FULL_SCALE)
    masks = np.array(read.views[0].masks, "<f8")
    return hashlib.sha256(x_BT.numpy().astype("<f4").tobytes() + masks.tobytes()).hexdigest()
