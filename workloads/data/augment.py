"""Views of a clip: how they are drawn, and their effect on a waveform and on a log-mel.

Every draw is keyed by (view_seed, clip_id, view, purpose), and by the occurrence where a clip is drawn again in an
epoch, so a view can be computed again from its key.
Mixup is applied in `batches.py`, which has the other clips; this file only draws the weight.

Axes: B clips of a batch, T samples, M mel bands, F frames, 4 masks (time start, time width, mel start, mel width).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workloads.config.recipe import Augment
from workloads.runtime.rng import keyed_generator

# Of the code that draws views and applies them to clips and log-mels; stores of teacher outputs name it. Raise it when
# the same recipe, clip and view number would be heard differently: a student must not learn from what a teacher said of
# another sound. tests/workloads/data/test_augment.py notices such a change.
VIEW_VERSION = 1


@dataclass(frozen=True)
class View:
    """How one view of a clip differs from the clip."""

    crop: float = 0.0  # where a longer clip is cut: 0 its start, towards 1 its end
    roll: float = 0.0  # shift to the right, as a share of the cut clip, wrapped around
    gain_db: float = 0.0
    mix_weight: float = 1.0  # of the clip itself in a mixture; 1: not mixed
    time_start: float = 0.0  # masks: shares of the duration and of the mel scale
    time_width: float = 0.0
    mel_start: float = 0.0
    mel_width: float = 0.0

    @property
    def masks(self) -> tuple[float, float, float, float]:
        return self.time_start, self.time_width, self.mel_start, self.mel_width

    def crop_start(self, samples: int, *, length: int) -> int:
        """Where the `length` samples that are heard begin in a whole clip; 0 in a shorter one, which is padded."""
        return int(self.crop * (max(0, samples - length) + 1))


def clean_view() -> View:
    """The view without any augmentation: the start of the clip."""
    return View()


@dataclass(frozen=True)
class StoredViews:
    """The views, `count` of each clip, of which stores that teach a run hold rows: epochs go round them."""

    count: int
    whole: bool  # clips are heard in these views; else only cut where these are, and augmented anew in every epoch


def stored_number(view: int, occurrence: int, *, count: int) -> int:
    """Which of `count` stored views belongs to this draw of a clip; the row of a store and what is heard follow it."""
    return (view + occurrence) % count


def draw_view(
    augment: Augment, clip_id: str, view: int, occurrence: int = 0, *, stored: StoredViews | None = None
) -> View:
    """View number `view` of a clip; each later occurrence of the clip in the same epoch has another view.

    With `stored` views the clip is cut as in one of these, and if they are heard whole also shifted, amplified and
    masked as in it; weights of mixtures are drawn anew, since rows of stores are of single clips. Each purpose has its
    own generator: enabling one augmentation does not change the draws of another.
    """
    # the key of the first occurrence must not change: runs are resumed
    anew = (view, (occurrence,) if occurrence else ())
    as_stored = (stored_number(view, occurrence, count=stored.count), ()) if stored else anew
    augmented = as_stored if stored and stored.whole else anew

    def generator(purpose: str, drawn_as: tuple[int, tuple[int, ...]]) -> np.random.Generator:
        number, repeat = drawn_as
        return keyed_generator(augment.view_seed, clip_id, number, purpose, *repeat)

    def uniform(purpose: str) -> list[float]:
        return generator(purpose, augmented).random(2).tolist()

    def mask(purpose: str, widest: float) -> tuple[float, float]:
        width, start = uniform(purpose)
        return start * (1 - width * widest), width * widest

    drawn = {"crop": float(generator("crop", as_stored).random())}
    if augment.roll:
        drawn["roll"] = augment.roll * (2 * uniform("roll")[0] - 1)
    if augment.gain_db:
        drawn["gain_db"] = augment.gain_db * (2 * uniform("gain")[0] - 1)
    if augment.mixup:
        drawn["mix_weight"] = _draw_mix_weight(augment, generator("mixup", anew))
    if augment.mask_time:
        drawn["time_start"], drawn["time_width"] = mask("mask_time", augment.mask_time)
    if augment.mask_mel:
        drawn["mel_start"], drawn["mel_width"] = mask("mask_mel", augment.mask_mel)
    return View(**drawn)


def draw_partner(augment: Augment, clip_id: str, view: int, *, place: int, clips: int) -> int:
    """The place of a clip's partner in a view among the `clips` clips of a store, two or more in the order of their
    names; its own `place` where it is not mixed.
    """
    if _draw_mix_weight(augment, keyed_generator(augment.view_seed, clip_id, view, "mixup")) == 1:
        return place
    other = int(keyed_generator(augment.view_seed, clip_id, view, "partner").integers(clips - 1))
    return other + (other >= place)


def _draw_mix_weight(augment: Augment, generator: np.random.Generator) -> float:
    """The weight of the clip itself; 1 where it is not mixed."""
    chance = float(generator.random())
    # Drawn even when unused: the weight of a mixed clip must not depend on the probability of mixup.
    weight = float(generator.beta(augment.mixup_alpha, augment.mixup_alpha))
    return weight if chance < augment.mixup else 1.0


def roll_and_amplify(x_BT: Tensor, views: Sequence[View], *, scale: float = 1.0) -> Tensor:
    """What the views do to the waveforms of their crops, as float32: each rolled, amplified, and multiplied by `scale`.

    On the device of `x_BT`, which may hold integers. `scale` must be a power of two, so that it rounds nothing.
    """
    length = x_BT.shape[1]
    heard_BT = torch.empty(x_BT.shape, device=x_BT.device)
    # Clip by clip: two copies each take a sixth of the time that one torch.gather of the whole shard takes on a CPU.
    for x_T, heard_T, view in zip(x_BT, heard_BT, views, strict=True):
        shift = shift_of_view(view, length=length)
        heard_T[shift:] = x_T[: length - shift]
        heard_T[:shift] = x_T[length - shift :]
    factor_B1 = torch.tensor([[10 ** (view.gain_db / 20)] for view in views]) * scale
    return heard_BT.mul_(factor_B1.to(x_BT.device, non_blocking=True))


def sound_of_view(samples: int, view: View, *, length: int) -> tuple[int, int]:
    """Where the sound is in this view of a clip of `samples`: its first sample and its number of samples.

    The rest of the `length` samples is padding; a sound that is rolled over the end goes on at the beginning.
    """
    return shift_of_view(view, length=length), min(samples, length)


def shift_of_view(view: View, *, length: int) -> int:
    """By how many of `length` samples this view of a clip is rolled to the right."""
    return round(view.roll * length) % length


def sound_mask(sound_B2: Tensor, length: int) -> Tensor:
    """Which samples are sound (True), not padding: sound_BT, from `sound_of_view` of each clip."""
    position_T = torch.arange(length, device=sound_B2.device)
    return (position_T - sound_B2[:, :1]) % length < sound_B2[:, 1:]


def mask_mel(mel_BMF: Tensor, masks_B4: Tensor, *, value: float) -> Tensor:
    """A copy in which the cells with their centre in the clip's time or mel mask are set to `value`.

    A single band is a waveform, which has no mel scale: only the time mask applies.
    """
    _, bands, frames = mel_BMF.shape

    def covered(cells: int, first: int) -> Tensor:
        """Which of `cells` equal cells the mask in columns `first` and `first + 1` covers, clip by clip."""
        centres = (torch.arange(cells, device=mel_BMF.device) + 0.5) / cells
        start_B1, width_B1 = masks_B4[:, first : first + 1], masks_B4[:, first + 1 : first + 2]
        return (centres >= start_B1) & (centres < start_B1 + width_B1)

    if bands == 1:
        return mel_BMF.masked_fill(covered(frames, 0)[:, None, :], value)
    return mel_BMF.masked_fill(covered(frames, 0)[:, None, :] | covered(bands, 2)[:, :, None], value)
