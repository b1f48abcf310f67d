"""Where networks say that the steps of their sequences are, against what each step's gradient reaches."""

import pytest
import torch
from torch import nn

from workloads.config.recipe import Arch, restore
from workloads.models.families import build_backbone

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
