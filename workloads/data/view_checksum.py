"""The waveform of a view as one number, so that a student's can be compared with that which its teachers got.

Axes: B clips, here one, T samples.
"""

import hashlib

import numpy as np
import torch

from workloads.config.recipe import Augment
from workloads.data.augment import roll_and_amplify
from workloads.data.clip_store import ClipStore, Entry
from workloads.data.decode import BrokenClip
from workloads.data.loading import CropReader, ShardRequest
from workloads.data.samples import FULL_SCALE
from workloads.data.shard import ViewKey
from workloads.data.stored_mixtures import mix_with_partners


def view_sha256(
    store: ClipStore, augment: Augment, clip: Entry, view: int, *, clip_seconds: float, partner: Entry | None = None
) -> str:
    """SHA-256 of the waveform in float32, cut, rolled, amplified and mixed with a `partner`, if there is one, and of
    where the masks are, in float64. Raises BrokenClip where the bytes of a clip are damaged."""
    length = round(clip_seconds * store.rate)
    clips = (clip, partner) if partner is not None else (clip,)
    crops_BT = np.empty((len(clips), length), np.int16)
    reader = CropReader(store, augment, shard_size=len(clips), length=length)
    read = reader.read(ShardRequest(tuple(ViewKey(own.clip_id, view, 0) for own in clips), clips), crops_BT)
    for reason in read.broken.values():
        raise BrokenClip(reason)
    x_BT = roll_and_amplify(torch.from_numpy(crops_BT), read.views, scale=1 / FULL_SCALE)
    x_BT = mix_with_partners(x_BT, read.views) if partner is not None else x_BT
    masks = np.array(read.views[0].masks, "<f8")
    return hashlib.sha256(x_BT.numpy().astype("<f4").tobytes() + masks.tobytes()).hexdigest()
