"""Where networks say that the steps of their sequences are, against what each step's gradient reaches."""

import numpy as np
import pytest
import torch
from torch import nn

from workloads.config.recipe import Arch, restore
from workloads.models.families import build_backbone
from workloads.models.front_end import KINDS, build_front_end

FRAMES = 512


@pytest.mark.parametrize(
    "arch",
    [
        {"family": "efficientnet", "variant": "b0"},
        {"family": "efficientnet", "variant": "lite0"},
        {"family": "mn", "width": 0.2, "se_axes": []},
        {"family": "frame_mn", "width": 0.2},
    ],
    ids=lambda arch: " ".join(str(value) for value in arch.values()),
)
def test_steps_are_where_their_frames_are(arch):
    torch.manual_seed(0)  # in double: what drawn networks compute is tiny
    model: nn.Module = build_backbone(restore(Arch, arch), bands=64, frames=FRAMES, num_classes=4).double().eval()
    mel_BMF = torch.randn(2, 64, FRAMES, dtype=torch.double, requires_grad=True)
    sequence_BPD = model.outputs(mel_BMF).sequence_BPD
    steps = sequence_BPD.shape[1]
    first, length = model.time_steps(FRAMES, steps)
    (gradient_BMF,) = torch.autograd.grad(sequence_BPD[:, steps // 2].square().sum(), mel_BMF)
    weights_F = gradient_BMF.abs().sum((0, 1)) ** 2  # gates over the whole clip reach all frames a little
    centre = float((weights_F * torch.arange(FRAMES)).sum() / weights_F.sum())
    assert centre == pytest.approx(first + (steps // 2 + 0.5) * length - 0.5, abs=length / 4)


@pytest.mark.parametrize("kind", [kind for kind, front_end in KINDS.items() if front_end.bands > 1])
def test_frames_are_around_their_windows_to_within_10_ms(kind):
    """Of clicks at many places: the middle of what hears one, where frames count as k to k + 1 hops."""
    rate = KINDS[kind](clip_rate=16_000).rate
    front_end, distances = build_front_end(kind, clip_rate=rate), []
    for place in np.arange(0.5, 0.56, 0.0013):
        x_BT = torch.zeros(1, rate)
        x_BT[0, round(place * rate)] = 1.0
        mel_MF = front_end(x_BT)[0]
        power_F = (10 ** (mel_MF / 10) if kind == "ced64" else mel_MF.exp()).sum(0)
        power_F = (power_F - power_F.median()).clamp(min=0)
        middle = float((power_F * (torch.arange(len(power_F)) + 0.5)).sum() / power_F.sum())
        distances.append(middle * front_end.hop / rate - place)
    expected = -0.75 if kind == "kaldi128" else 0.5  # hops
    assert np.mean(distances) == pytest.approx(expected * front_end.hop / rate, abs=1e-3)
    assert abs(np.mean(distances)) <= 0.0105
