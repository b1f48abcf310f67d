"""MN: MobileNetV3-Large at any width, as EfficientAT trains it (reference/efficientat.md section 1).

The network is torchvision's; what differs is written here: one input channel, a plain sigmoid as the
squeeze-and-excitation gate, batch norm's momentum, strides. Knows no front end and no training.

Axes: B clips, M mel bands, F frames, C tags.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig, MobileNetV3
from torchvision.ops import SqueezeExcitation

from workloads.config import MN
from workloads.models.fit import require_fit

HEAD = ("classifier.3.weight", "classifier.3.bias")
# in, kernel, expanded, out, squeeze-and-excitation, activation, stride (a letter: taken from `strides`)
BLOCKS: tuple[tuple[int, int, int, int, bool, str, str], ...] = (
    (16, 3, 16, 16, False, "RE", "1"),
    (16, 3, 64, 24, False, "RE", "s0"),
    (24, 3, 72, 24, False, "RE", "1"),
    (24, 5, 72, 40, True, "RE", "s1"),
    (40, 5, 120, 40, True, "RE", "1"),
    (40, 5, 120, 40, True, "RE", "1"),
    (40, 3, 240, 80, False, "HS", "s2"),
    (80, 3, 200, 80, False, "HS", "1"),
    (80, 3, 184, 80, False, "HS", "1"),
    (80, 3, 184, 80, False, "HS", "1"),
    (80, 3, 480, 112, True, "HS", "1"),
    (112, 3, 672, 112, True, "HS", "1"),
    (112, 5, 672, 160, True, "HS", "s3"),
    (160, 5, 960, 160, True, "HS", "1"),
    (160, 5, 960, 160, True, "HS", "1"),
)


class MobileNet(MobileNetV3):
    """mel_BMF (normalised, any size) to logits_BC; `features` gives the maps, `classifier` is the two-layer head."""

    def __init__(self, arch: MN, *, num_classes: int) -> None:
        strides = {"1": 1} | {f"s{index}": stride for index, stride in enumerate(arch.strides)}
        blocks = [
            InvertedResidualConfig(*row, stride=strides[stride], dilation=1, width_mult=arch.width)
            for *row, stride in BLOCKS
        ]
        super().__init__(
            blocks,
            last_channel=InvertedResidualConfig.adjust_channels(1280, arch.width),
            num_classes=num_classes,
            block=partial(InvertedResidual, se_layer=SqueezeExcitation),  # its own gate is the plain sigmoid
            norm_layer=partial(nn.BatchNorm2d, eps=1e-3, momentum=arch.bn_momentum),
            dropout=arch.dropout,
        )
        self.features[0][0] = _one_channel(self.features[0][0])
        for module in self.modules():
            if isinstance(module, SqueezeExcitation):
                _init_like_linear(module)
        self.to(memory_format=torch.channels_last)  # depthwise convolutions: a training step takes 0.55-0.6 of the time

    def forward(self, mel_BMF: Tensor) -> Tensor:
        return super().forward(mel_BMF.unsqueeze(1))


def build(arch: MN, *, bands: int, frames: int, num_classes: int) -> MobileNet:
    """Build MN; `bands` and `frames` are free because it pools over whatever map is left."""
    return MobileNet(arch, num_classes=num_classes)


def adapt_weights(
    state: dict[str, Tensor], model: MobileNet, *, other_classes: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Take a state dict in our own key names; the last layer is dropped when it tells other classes apart."""
    other_classes |= HEAD[0] in state and len(state[HEAD[0]]) != model.classifier[3].out_features
    dropped = HEAD if other_classes else ()
    weights = {name: tensor for name, tensor in state.items() if name not in dropped}
    require_fit(weights, model, without=dropped)
    return weights, dropped


def _one_channel(stem: nn.Conv2d) -> nn.Conv2d:
    """The same convolution over one channel; torchvision writes three."""
    conv = nn.Conv2d(1, stem.out_channels, kernel_size=3, stride=2, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return conv


def _init_like_linear(gate: SqueezeExcitation) -> None:
    """EfficientAT writes these 1x1 convolutions as Linear, and starts Linear at N(0, 0.01)."""
    for layer in (gate.fc1, gate.fc2):
        nn.init.normal_(layer.weight, 0, 0.01)
