"""The clips that models got most wrong: the right ones, in the order of their losses, with a sound that plays."""

import base64
import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile
import torch

from tests.commands import event_records
from workloads.data.clips import Clip
from workloads.evaluate.mistakes import BANDS, MAX_FRAMES, MAX_SECONDS, _sound, worst_clips
from workloads.train import loop

LOGIT_OF = {p: math.log(p / (1 - p)) for p in (0.1, 0.5, 0.9)}


def test_the_worst_clips_have_the_highest_mean_loss_of_the_models() -> None:
    y_NC = torch.eye(2)[[0, 1, 0]]
    sure_NC = torch.tensor([[4.0, 0.0], [0.0, 4.0], [0.0, 4.0]])  # wrong of the last one
    torn_NC = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0]])  # wrong of the first one
    assert worst_clips({"a": (sure_NC, y_NC)}, "single", count=1) == [2]
    assert worst_clips({"a": (torn_NC, y_NC)}, "single", count=2) == [0, 2]
    assert worst_clips({"a": (sure_NC, y_NC), "b": (torn_NC, y_NC)}, "single", count=3) == [2, 0, 1]
    assert worst_clips({"a": (sure_NC, y_NC)}, "single", count=0) == []


def test_unknown_labels_count_for_nothing() -> None:
    logits_NC = torch.tensor([[LOGIT_OF[0.9], LOGIT_OF[0.9]], [LOGIT_OF[0.5], LOGIT_OF[0.1]]])
    y_NC = torch.tensor([[1.0, math.nan], [1.0, 0.0]])  # losses 0.105, and (0.693 + 0.105) / 2
    assert worst_clips({"a": (logits_NC, y_NC)}, "multi", count=2) == [1, 0]


def test_ten_seconds_of_noise_stay_small_and_play(tmp_path: Path) -> None:
    """Noise is what compresses worst; a rate that MP3 has not is lowered to one that it has."""
    x_T = 0.1 * torch.randn(20 * 44_100, generator=torch.Generator().manual_seed(0))
    prepared: Any = SimpleNamespace(cache=SimpleNamespace(load=lambda clip_id: x_T, rate=44_100))
    found = _sound(Clip(clip_id="a", path="a.wav", fold=1, tags=("x",), source="a"), prepared)
    mp3 = base64.b64decode(found["audio"] + "=" * (-len(found["audio"]) % 4))
    assert len(found["audio"]) < 60_000
    heard, rate = soundfile.read(io.BytesIO(mp3))
    assert (rate, found["top_hz"]) == (32_000, 16_000)
    assert len(heard) / rate == pytest.approx(MAX_SECONDS, abs=0.1)  # MP3 has whole frames
    assert (found["seconds"], found["whole_seconds"]) == (MAX_SECONDS, 20.0)
    assert (len(found["mel"]), len(found["mel"][0])) == (BANDS, MAX_FRAMES)


def test_a_tone_is_bright_in_its_band() -> None:
    seconds_T = torch.arange(16_000) / 16_000
    tone_T = torch.sin(2 * math.pi * 1000 * seconds_T)
    prepared: Any = SimpleNamespace(cache=SimpleNamespace(load=lambda clip_id: tone_T, rate=16_000))
    mel_MF = torch.tensor(_sound(Clip(clip_id="a", path="a.wav", fold=1, tags=("x",), source="a"), prepared)["mel"])
    place = math.log10(1 + 1000 / 700) / math.log10(1 + 8000 / 700) * (BANDS + 1) - 1
    assert mel_MF.float().mean(1).argmax().item() == pytest.approx(place, abs=1)


@pytest.mark.parametrize("clips", [2, 0])
def test_a_run_records_as_many_as_its_recipe_says(tiny: Any, start: Any, clips: int) -> None:
    run = start(tiny("one-way", f"train.report_clips={clips}"))
    assert loop(run) == "done"
    records = [row for row in event_records(run) if row["kind"] == "mistakes"]
    assert len(records) == bool(clips)
    for record in records:
        assert len(record["clips"]) == clips
        for clip in record["clips"]:
            assert set(clip["models"]) == {"cnn", "vit"}
            known = {one.clip_id: one.tags for one in run.prepared.splits.test}
            assert set(clip["truth"]) == set(known[clip["clip_id"]])
            for said in clip["models"].values():
                assert len(said["said"]) == 3
                assert list(said["said"].values()) == sorted(said["said"].values(), reverse=True)
                assert set(said["truth"]) == set(clip["truth"])


def test_without_predictions_there_are_none() -> None:
    assert worst_clips({}, "multi", count=3) == []
