"""Batch norm folded into the convolution before it: the same logits from fewer layers."""

import pytest
import torch
from torch import nn

from tests.hearing import mels, taught
from workloads.config.architectures import AST, MN, Arch, DyMN, EfficientNet, OnDevice
from workloads.export.fold import fold_batch_norm
from workloads.models.families import build_backbone

CASES: dict[str, tuple[Arch, int]] = {  # with the number of batch norms that remain; -1: not counted
    "mn": (MN(family="mn", width=0.1), 0),
    "mn_fc": (MN(family="mn", width=0.1, head="fully_convolutional", se_axes=("c", "f")), 0),
    "dymn": (DyMN(family="dymn", width=0.1, temperature=1.0), 11 + 2 * 15),  # those after dynamic convolutions
    "efficientnet": (EfficientNet(family="efficientnet"), 49),  # timm's are a subclass
    "tc_resnet": (OnDevice(family="ondevice", variant="tc_resnet"), -1),
    "ast": (AST(family="ast", size="tiny", stride=16), 0),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_logits(name):
    arch, num_remaining = CASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_backbone(arch, bands=64, frames=100, num_classes=5)
    mel_BMF = mels(64, 100, kinds=5)
    model = taught(model, mel_BMF, kinds=5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold_batch_norm(model)
    with torch.no_grad():
        expected_BC = model(mel_BMF)
        torch.testing.assert_close(folded(mel_BMF), expected_BC, rtol=1e-4, atol=1e-5)
    assert expected_BC.std(dim=0).max() > 0.05
    if num_remaining >= 0:
        assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == num_remaining
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(AssertionError, match="eval mode"):
        fold_batch_norm(model.train())
