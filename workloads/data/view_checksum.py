"""What is heard in a view of a clip, as one number: so that a student can be shown to hear what a teacher heard.

Axes: B clips, here one, T samples.
"""

import hashlib

import numpy as np
import torch

from workloads.config.recipe import Augment
from workloads.data.augment import roll_and_amplify
from workloads.data.clip_store import ClipStore
from workloads.data.decode import BrokenClip
from workloads.data.loading import CropReader, ShardRequest
from workloads.data.samples import FULL_SCALE
from workloads.data.shard import ViewKey
from workloads.data.stored_mixtures import mix_with_partners


def heard_sha256(
    cache: ClipStore, augment: Augment, clip_id: str, view: int, *, clip_seconds: float, partner: str = ""
) -> str:
    """SHA-256 of the waveform in float32, cut, rolled, amplified and mixed with a `partner`, if there is one, and of
    where the masks are, in float64. Raises BrokenClip where the bytes of a clip are damaged."""
    length = round(clip_seconds * cache.rate)
    ids = (clip_id, partner) if partner else (clip_id,)
    crops_BT = np.empty((len(ids), length), np.int16)
    reader = CropReader(cache, augment, shard_size=len(ids), length=length)
    keys = tuple(ViewKey(own_id, view, 0) for own_id in ids)
    read = reader.read(ShardRequest(keys, tuple(cache.entry(own_id) for own_id in ids)), crops_BT)
    for reason in read.broken.values():
        raise BrokenClip(reason)
    x_BT = roll_and_amplify(torch.from_numpy(crops_BT), read.views, scale=1 / FULL_SCALE)
    x_BT = mix_with_partners(x_BT, read.views) if partner else x_BT
    masks = np.array(read.views[0].masks, "<f8")
    return hashlib.sha256(x_BT.numpy().astype("<f4").tobytes() + masks.tobytes()).hexdigest()
