"""Frame mAP of a student and its control: the score itself, and intervals that draw whole clips."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from workloads.evaluate.bootstrap import Pair
from workloads.evaluate.frame_bootstrap import what_teaching_did_in_time


def random_frames(*, clips: int = 30, frames: int = 20, tags: int = 3) -> tuple[Tensor, Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    y_XC = (torch.rand(clips * frames, tags, generator=generator) < 0.3).float()
    y_XC[:frames, 0] = torch.nan
    clip_X = torch.arange(clips, dtype=torch.int32).repeat_interleave(frames)
    noise = [torch.randn(y_XC.shape, generator=generator) for _ in range(2)]
    weak, strong = (own + y_XC.nan_to_num() * strength for own, strength in zip(noise, (0.5, 1.5), strict=True))
    return y_XC, clip_X, [weak.half(), strong.half()]


def frame_map(frames: Tensor, y_XC: Tensor) -> float:
    known = ~y_XC.isnan()
    columns = range(y_XC.shape[1])
    return float(
        np.mean([average_precision_score(y_XC[known[:, c], c], frames[known[:, c], c].float()) for c in columns])
    )


def test_the_scores_are_frame_maps_and_more_is_better() -> None:
    y_XC, clip_X, (weak, strong) = random_frames()
    found = what_teaching_did_in_time([Pair(strong, weak)], y_XC, clip_X)
    assert found["taught"] == pytest.approx(frame_map(strong, y_XC), abs=1e-12)
    assert found["untaught"] == pytest.approx(frame_map(weak, y_XC), abs=1e-12)
    assert found["difference"] == pytest.approx(found["taught"] - found["untaught"], abs=1e-12)
    low, high = found["interval"]
    assert 0 < low < found["difference"] < high
    swapped = what_teaching_did_in_time([Pair(weak, strong)], y_XC, clip_X)
    assert swapped["interval"] == pytest.approx([-high, -low], abs=1e-12)


def test_equal_models_differ_by_nothing() -> None:
    y_XC, clip_X, (weak, _) = random_frames()
    found = what_teaching_did_in_time([Pair(weak, weak), Pair(weak, weak)], y_XC, clip_X)
    assert (found["difference"], found["interval"]) == (0.0, [0.0, 0.0])


def test_frames_of_a_clip_are_drawn_together() -> None:
    """Twenty times the same frame in each clip says no more than one: the interval is that of the clips."""
    y_XC, _, (weak, strong) = random_frames(clips=30, frames=1)
    y_XC = y_XC.nan_to_num()
    one = what_teaching_did_in_time([Pair(strong, weak)], y_XC, torch.arange(30))
    many = what_teaching_did_in_time(
        [Pair(strong.repeat_interleave(20, 0), weak.repeat_interleave(20, 0))],
        y_XC.repeat_interleave(20, 0),
        torch.arange(30).repeat_interleave(20),
    )
    assert many["interval"] == pytest.approx(one["interval"], abs=1e-9)
