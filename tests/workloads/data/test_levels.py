"""Which clips are silent, and which are clipped."""

from pathlib import Path

import numpy as np
import soundfile

from workloads.config.data import Data
from workloads.data.cache import ClipCache
from workloads.data.clips import Clip
from workloads.data.levels import Levels, levels
from workloads.runtime.opener import LocalFiles


def test_silence_and_clipping_are_told_from_quiet_and_loud_sound(tmp_path: Path) -> None:
    tone_T = np.sin(2 * np.pi * 440 / 16_000 * np.arange(8000))
    peak_T = 0.5 * tone_T
    peak_T[[100, 101]] = 1.0
    waves = {
        "clipped": np.clip(1.5 * tone_T, -1, 1),
        "full scale": tone_T,
        "just quiet": 0.0011 * tone_T,
        "just silent": 0.0009 * tone_T,
        "nothing": np.zeros(8000),
        "two samples": peak_T,
    }
    for name, wave in waves.items():
        soundfile.write(tmp_path / f"{name}.wav", wave, 16_000)
    clips = [Clip(name, f"{name}.wav", ("t",), 1, name) for name in waves]
    cache = ClipCache(tmp_path / "cache", rate=16_000, limit_gb=1.0)
    cache.prepare(clips, Data(format="manifest", root=str(tmp_path), manifest="unused.csv"), LocalFiles())
    assert levels(clips, cache) == Levels(6, silent=("just silent", "nothing"), clipped=("clipped",))
