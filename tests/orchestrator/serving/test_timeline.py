"""A sound's answer along time, in few enough steps."""

import numpy as np
import pytest
import torch

from orchestrator.artifacts.tag import load_for_tagging
from orchestrator.serving.timeline import MOST_STEPS, PEAKS, along_time
from tests.official import waveform
from tests.serving import RATE, TAGS, publish_tagger
from workloads.evaluate.detect import MEDIAN_SECONDS, smooth
from workloads.evaluate.sounds import hear_sound


def test_neighbouring_frames_become_one_step_with_the_largest_probability(tmp_path) -> None:
    loaded = load_for_tagging(str(publish_tagger("frames", tmp_path)))
    x_T = torch.cat([waveform(10.0, RATE)[0]] * 2)[: 17 * RATE + 4]  # 17.00025 s: 426 frames, in pairs
    heard = hear_sound(loaded.tagger, x_T, "windows", frames=True)
    line = along_time(loaded.tagger, heard, ["saw", "dog"])
    p_FC = smooth(heard.frames_FC, MEDIAN_SECONDS)
    assert len(p_FC) == 426 > MOST_STEPS
    assert list(line.probabilities) == ["saw", "dog"]
    pairs = p_FC[:, TAGS.index("dog")].reshape(213, 2).max(1)
    np.testing.assert_allclose(line.probabilities["dog"], pairs, rtol=0, atol=1e-4)
    assert line.step_begins == [round(0.08 * step, 3) for step in range(213)]
    assert line.step_ends[:2] == [0.08, 0.16]
    assert line.step_ends[-1] == pytest.approx(17.0, abs=1e-3)


@pytest.mark.parametrize(("samples", "peaks"), [(RATE, PEAKS), (7, 7)])
def test_peaks_are_the_largest_amplitudes(tmp_path, samples: int, peaks: int) -> None:
    loaded = load_for_tagging(str(publish_tagger("vit", tmp_path)))
    x_T = torch.linspace(-1, 0, samples)
    line = along_time(loaded.tagger, hear_sound(loaded.tagger, x_T, "windows"), ["dog"])
    assert len(line.peaks) == peaks
    assert line.peaks[0] == 1.0
    assert line.peaks == sorted(line.peaks, reverse=True)
    assert (line.step_begins, line.step_ends) == ([0.0], [samples / RATE if samples == RATE else 0.0])
