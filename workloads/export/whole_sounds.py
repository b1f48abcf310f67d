"""A tagger as it hears waveforms of any length, in one graph: what an exported file with its front end inside holds.

As `antiphon tag` does (`workloads/evaluate/sounds.py`): a waveform shorter than the tagger's clips is padded, of a
longer one all windows are heard, or the first, and the windows' probabilities are averaged. The network only ever hears
windows of its own length, so every family can be exported. Does not depend on formats.

Axes: B waveforms, W windows of one of them, T samples, L samples of a window, C tags.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workloads.models.probabilities import merge_all_windows
from workloads.models.tagger import Tagger


class Windows(nn.Module):
    """Windows x_NL, at the tagger's rate, to logits_NC; sound_L says which samples of all of them are sound.

    Front ends that hear padding as silence leave sound_L unread, so that their graphs have no masks.
    """

    def __init__(self, tagger: Tagger) -> None:
        super().__init__()
        self.tagger = tagger

    def forward(self, x_NL: Tensor, sound_NL: Tensor) -> Tensor:
        return self.tagger.tag(x_NL, None if self.tagger.front_end.hears_padding else sound_NL)


class WholeSounds(nn.Module):
    """x_BT of any length from 1 on to logits_BC, by the rule `long_clips`: "windows" or "start"."""

    def __init__(self, tagger: Tagger, *, long_clips: str) -> None:
        super().__init__()
        self.windows, self.labels, self.long_clips = Windows(tagger), tagger.labels, long_clips
        self.length = round(tagger.clip_seconds * tagger.clip_rate)

    def forward(self, clips: Tensor) -> Tensor:
        samples, length = clips.shape[1], self.length
        position_L = torch.arange(length, device=clips.device)
        padded_BT = F.pad(clips, (0, length))
        if self.long_clips == "start":
            return self.windows(padded_BT[:, :length], (position_L < samples).expand(clips.shape[0], length))
        count = (samples + length - 1) // length
        # One after the other, the last ending with the waveform; the only one of a short waveform begins at 0.
        first_W = torch.arange(count, device=clips.device) * length
        first_W = torch.minimum(first_W, torch.full_like(first_W, samples - length)).clamp(min=0)
        x_BWL = padded_BT[:, first_W[:, None] + position_L]
        sound_NL = (position_L < samples).expand(clips.shape[0] * count, length)
        logits_NC = self.windows(x_BWL.flatten(0, 1), sound_NL)
        return merge_all_windows(
            logits_NC.unflatten(0, (clips.shape[0], count)), self.labels, only_one=first_W[-1] == 0
        )
