"""The test clips that the models of a run got most wrong, for a report that plays them: what was said, and the sound.

A record of the event log, so it is small: few clips, at most MAX_SECONDS of each, as MP3, which every browser plays.
Leaves the machine only with the log and the report; `train.report_clips = 0` records none. Does not depend on reports.

Axes: N clips, C tags, T samples, F frames, M mel bands.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import soundfile
import torch
from torch import Tensor
from torch.nn import functional as F
from torchaudio.functional import melscale_fbanks, resample

from workloads.data.clips import Clip
from workloads.data.prepare import PreparedData
from workloads.evaluate.metrics import clip_losses
from workloads.models.probabilities import probabilities

MAX_SECONDS = 10.0
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000)  # of MPEG layer III, as far as they keep clips below 60 kB
NUM_SAID = 3  # tags of each model
BANDS, MAX_FRAMES = 64, 160
WINDOW_S, HOP_S = 0.025, 0.01
QUIETEST, LOUDEST = 0.05, 0.995  # quantiles of a spectrogram that are drawn as 0 and as 99
Predictions = Mapping[str, tuple[Tensor, Tensor]]  # model -> logits_NC, y_NC of the test clips


def worst_clips(predictions: Predictions, labels: str, *, count: int) -> list[int]:
    """The places of the clips with the highest log loss, in the mean over the models; the worst first."""
    if not predictions or not count:
        return []
    loss_N = torch.stack([clip_losses(*of_model, labels).nan_to_num() for of_model in predictions.values()]).mean(0)
    return torch.argsort(loss_N, descending=True, stable=True)[:count].tolist()


def mistakes(predictions: Predictions, prepared: PreparedData, *, count: int) -> list[dict[str, Any]]:
    """For each of the worst clips its tags, what each model said, its sound and its spectrogram.

    `truth` are the tags; `models` has for each model NUM_SAID tags with the highest probabilities, and those of the
    truth. `audio` is MP3 in base64 without padding, `mel` integers 0 to 99, bands by frames, up to `top_hz`.
    """
    labels, tags = prepared.recipe.data.labels, prepared.dataset.tags
    return [
        {
            "clip_id": prepared.splits.test[place].clip_id,
            "truth": _truth(next(iter(predictions.values()))[1][place], tags, labels),
            "models": {name: _said(*of_model, place, tags, labels) for name, of_model in predictions.items()},
            **_sound(prepared.splits.test[place], prepared),
        }
        for place in worst_clips(predictions, labels, count=count)
    ]


def _truth(y_C: Tensor, tags: Sequence[str], labels: str) -> list[str]:
    if labels == "single":
        return [tags[int(y_C.argmax())]]
    return [tag for tag, y in zip(tags, y_C.tolist(), strict=True) if y > 0.5]


def _said(logits_NC: Tensor, y_NC: Tensor, place: int, tags: Sequence[str], labels: str) -> dict[str, dict[str, float]]:
    p_C = probabilities(logits_NC[place : place + 1].double(), labels)[0]
    by_tag = dict(zip(tags, p_C.tolist(), strict=True))
    highest = sorted(by_tag, key=lambda tag: -by_tag[tag])[:NUM_SAID]
    truth = _truth(y_NC[place], tags, labels)
    return {
        part: {tag: round(by_tag[tag], 4) for tag in named} for part, named in {"said": highest, "truth": truth}.items()
    }


def _sound(clip: Clip, prepared: PreparedData) -> dict[str, Any]:
    """The clip's beginning at a rate that MP3 has, and how long the whole clip is."""
    x_T, own_rate = prepared.cache.load(clip.clip_id), prepared.cache.rate
    whole = len(x_T) / own_rate
    x_T = x_T[: math.ceil(MAX_SECONDS * own_rate)]
    rate = max((each for each in MP3_RATES if each <= own_rate), default=MP3_RATES[0])
    if rate != own_rate:
        x_T = resample(x_T, own_rate, rate)
    file = io.BytesIO()
    quality = {"bitrate_mode": "VARIABLE", "compression_level": 0.9}  # white noise of 10 s at 32 kHz has 41 kB
    soundfile.write(file, x_T.numpy(), rate, format="MP3", subtype="MPEG_LAYER_III", **quality)
    return {
        "seconds": round(len(x_T) / rate, 3),
        "whole_seconds": round(whole, 3),
        "top_hz": rate // 2,
        "audio": base64.b64encode(file.getvalue()).decode().rstrip("="),  # else it could look like a secret's name=
        "mel": _spectrogram(x_T, rate).tolist(),
    }


def _spectrogram(x_T: Tensor, rate: int) -> Tensor:
    """mel_MF of a waveform, BANDS bands of the HTK scale from 0 Hz to half the rate, in hundred steps of loudness."""
    size, hop = round(WINDOW_S * rate), round(HOP_S * rate)
    x_T = F.pad(x_T, (0, max(0, size - len(x_T))))
    power = torch.stft(x_T, size, hop, window=torch.hann_window(size), return_complex=True).abs().square()
    bands = melscale_fbanks(size // 2 + 1, 0.0, rate / 2, BANDS, rate)
    mel_MF = (bands.T @ power + 1e-10).log()
    if mel_MF.shape[1] > MAX_FRAMES:
        mel_MF = F.adaptive_avg_pool1d(mel_MF, MAX_FRAMES)
    quiet, loud = torch.quantile(mel_MF, torch.tensor([QUIETEST, LOUDEST]))
    return ((mel_MF - quiet) / (loud - quiet).clamp(min=1e-6) * 99).round().clamp(0, 99).int()
