"""A few test clips of keywords, as a report draws them: the spectrogram, where the keyword is, when each model listens.

Values are rounded, and spectrograms small, since they are a record of the event log. Does not depend on reports.

Axes: B clips, P steps in time, F frames, M mel bands.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from workloads.data.batches import evaluation_batches
from workloads.data.clips import Clip
from workloads.data.prepare import PreparedData
from workloads.evaluate.attention_mass import holds_keywords, keyword_of
from workloads.models.front_end import build_front_end
from workloads.models.profiles import outputs_and_profile, profile_kind, time_grid
from workloads.models.tagger import Tagger

SHOWN = 3  # clips
MAX_FRAMES = 200  # of a spectrogram, of 40 bands
DARKEST, BRIGHTEST = 0.05, 0.995  # quantiles of a spectrogram that are drawn as 0 and as 99


def shown_clips(prepared: PreparedData) -> list[Clip]:
    """The first test clips of some words; none where they are no keywords."""
    first: dict[tuple[str, ...], Clip] = {}
    for clip in prepared.splits.test if holds_keywords(prepared) else ():
        first.setdefault(clip.tags, clip)
    return list(first.values())[:SHOWN]


def profiles_of(tagger: Tagger, clips: Sequence[Clip], prepared: PreparedData) -> dict[str, Any]:
    """How a tagger's profile is called, where its steps are in seconds, and for each clip the share of each step.

    The profile is that which the tagger teaches (`workloads/models/profiles.py`). The tagger is in eval mode.
    """
    device = next(tagger.parameters()).device
    ((_, shard),) = evaluation_batches(
        clips, prepared.dataset, prepared.cache, prepared.recipe.data, at_once=len(clips)
    )
    with torch.no_grad():
        shard = shard.to(device)
        outputs, p_BP = outputs_and_profile(tagger, tagger.front_end(shard.x_BT, shard.sound(tagger.front_end)))
    grid = time_grid(tagger, p_BP.shape[1])
    return {
        "profile": profile_kind(tagger, outputs),
        "first": round(grid.first, 6),
        "step": round(grid.step, 6),
        "clips": [[round(share, 6) for share in own] for own in p_BP.tolist()],
    }


def spectrograms(clips: Sequence[Clip], prepared: PreparedData) -> list[dict[str, Any]]:
    """For each clip its keyword, onset and offset in seconds, and its log-mel as integers 0 to 99, bands by frames."""
    drawn = []
    front_end = build_front_end("logmel40", clip_rate=prepared.cache.rate)
    for clip in clips:
        mel_MF = front_end(prepared.cache.load(clip.clip_id)[None], None)[0]
        event = keyword_of(clip)
        drawn.append(
            {
                "clip_id": clip.clip_id,
                "tag": event.tag,
                "onset": round(event.onset, 6),
                "offset": round(event.offset, 6),
                "mel": _small(mel_MF).tolist(),
            }
        )
    return drawn


def _small(mel_MF: Tensor) -> Tensor:
    """At most MAX_FRAMES frames, in hundred steps from dark to bright."""
    if mel_MF.shape[1] > MAX_FRAMES:
        mel_MF = F.adaptive_avg_pool1d(mel_MF, MAX_FRAMES)
    dark, bright = torch.quantile(mel_MF, torch.tensor([DARKEST, BRIGHTEST]))
    return ((mel_MF - dark) / (bright - dark).clamp(min=1e-6) * 99).round().clamp(0, 99).int()
