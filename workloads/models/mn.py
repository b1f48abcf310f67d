"""MN: MobileNetV3-Large at any width, as EfficientAT trains it (reference/efficientat.md section 1).

The network is torchvision's; what differs is written here: one input channel, a plain sigmoid as the
squeeze-and-excitation gate, gates over bands and frames, three heads, batch norm's momentum, strides. Does not depend
on front ends or training.

Axes: B clips, M mel bands, F frames, D channels, C tags, H heads, P steps in time.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig, MobileNetV3
from torchvision.ops import SqueezeExcitation

from workloads.config.architectures import MN
from workloads.models.backbone import Backbone, NetworkStream, Outputs
from workloads.models.convolution_stream import ConvolutionStream
from workloads.models.fit import fit_head

HEADS = {  # tensors whose shape depends on the classes; the rows of the first are a multiple of their number
    "mlp": ("classifier.3.weight", "classifier.3.bias"),
    "fully_convolutional": tuple(
        f"classifier.{name}"
        for name in ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked")
    ),
    "attention": ("classifier.project.bias", "classifier.project.weight", "classifier.mix"),
}
ATTENTION_HEADS = 4
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
JOINS: dict[str, Callable[..., Tensor]] = {"max": torch.amax, "avg": torch.mean, "add": torch.sum, "min": torch.amin}
channels = InvertedResidualConfig.adjust_channels  # channels times a width, as the nearest multiple of 8


def block_rows(width: float, strides: tuple[int, ...]) -> list[InvertedResidualConfig]:
    """The block table at a width, with its free strides filled in."""
    values = {"1": 1} | {f"s{index}": stride for index, stride in enumerate(strides)}
    return [
        InvertedResidualConfig(*row, stride=values[stride], dilation=1, width_mult=width) for *row, stride in BLOCKS
    ]


class AxisGate(nn.Module):
    """Squeeze-and-excitation over one axis of x_BDMF, from the means over the other two."""

    def __init__(self, axis: int, size: int) -> None:
        super().__init__()
        self.axis, self.pooled_axes = axis, [other for other in (1, 2, 3) if other != axis]
        squeezed = channels(size // 4, 1)
        self.fc1, self.fc2 = nn.Linear(size, squeezed), nn.Linear(squeezed, size)

    def forward(self, x_BDMF: Tensor) -> Tensor:
        gate = self.fc2(self.fc1(x_BDMF.mean(self.pooled_axes)).relu()).sigmoid()
        shape = [x_BDMF.shape[0], 1, 1, 1]
        shape[self.axis] = x_BDMF.shape[self.axis]
        return x_BDMF * gate.view(shape)


class ConcurrentGates(nn.Module):
    """One gate per axis, all on the same input, their outputs combined element by element."""

    def __init__(self, sizes: dict[str, int], join: str) -> None:
        super().__init__()
        self.axes = nn.ModuleDict({axis: AxisGate(1 + "cft".index(axis), size) for axis, size in sizes.items()})
        self.join = JOINS[join]

    def forward(self, x_BDMF: Tensor) -> Tensor:
        return self.join(torch.stack([gate(x_BDMF) for gate in self.axes.values()]), dim=0)


class AttentionPool(nn.Module):
    """PSLA's head: per tag, attention over time with several heads, mixed linearly; bands are averaged first.

    Attention weights are sigmoids normalised to a sum of 1 over time; the scores that they weight stay linear.
    """

    def __init__(self, inputs: int, num_classes: int) -> None:
        super().__init__()
        self.project = nn.Linear(inputs, 2 * ATTENTION_HEADS * num_classes)
        self.mix = nn.Parameter(torch.full((ATTENTION_HEADS,), 1 / ATTENTION_HEADS))

    def forward(self, x_BDMF: Tensor) -> Tensor:
        projected = self.project(x_BDMF.mean(2).transpose(1, 2)).unflatten(2, (2, ATTENTION_HEADS, -1))
        weights_BPHC, scores_BPHC = projected.unbind(2)
        weights_BPHC = weights_BPHC.sigmoid().clamp(1e-7, 1 - 1e-7)
        pooled_BHC = (weights_BPHC * scores_BPHC).sum(1) / weights_BPHC.sum(1)
        return torch.einsum("bhc,h->bc", pooled_BHC, self.mix)


class MobileNet(Backbone):
    """mel_BMF (normalised, any size unless frames are gated) to logits_BC; `features` returns the last map."""

    def __init__(self, arch: MN, *, bands: int, frames: int, num_classes: int) -> None:
        super().__init__()
        rows = block_rows(arch.width, arch.strides)
        net = MobileNetV3(
            rows,
            last_channel=channels(1280, arch.width),
            num_classes=num_classes,
            block=partial(InvertedResidual, se_layer=SqueezeExcitation),  # its default gate is the plain sigmoid
            norm_layer=partial(nn.BatchNorm2d, eps=1e-3, momentum=arch.bn_momentum),
            dropout=arch.dropout,
        )
        self.head, self.features, self.se_axes = arch.head, net.features, arch.se_axes
        self.features[0][0] = one_channel(self.features[0][0])
        if arch.se_axes != ("c",):
            self._gate_axes(arch, rows, bands, frames)
        self.classifier = _head(arch.head, net, 6 * rows[-1].out_channels, num_classes)
        for module in self.modules():
            init_like_linear(module)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # trains faster: `make bench`

    def _gate_axes(self, arch: MN, rows: list[InvertedResidualConfig], bands: int, frames: int) -> None:
        """Replace torchvision's gates over channels by gates over the configured axes."""
        sides = [_strided(bands, 2), _strided(frames, 2)]
        for row, block in zip(rows, self.features[1:-1], strict=True):
            sides = [_strided(side, row.stride) for side in sides]
            sizes = {"c": row.expanded_channels, "f": sides[0], "t": sides[1]}
            for index, layer in enumerate(block.block):
                if isinstance(layer, SqueezeExcitation):
                    gated: dict[str, int] = {axis: sizes[axis] for axis in arch.se_axes}
                    block.block[index] = ConcurrentGates(gated, arch.se_join) if gated else nn.Identity()

    def outputs(self, mel_BMF: Tensor) -> Outputs:
        x_BDMF = self.features(mel_BMF.unsqueeze(1))
        embedding_BD, frames_BPC = x_BDMF.mean((2, 3)), None
        if self.head == "mlp":
            logits_BC = self.classifier(embedding_BD)
        elif self.head == "attention":
            logits_BC = self.classifier(x_BDMF)
        else:
            logits_BCMF = self.classifier(x_BDMF)
            logits_BC, frames_BPC = logits_BCMF.mean((2, 3)), logits_BCMF.mean(2).transpose(1, 2)
        return Outputs(logits_BC, embedding_BD, x_BDMF.mean(2).transpose(1, 2), frames_BPC)

    def stream(self, clip_frames: int) -> NetworkStream | None:
        """Frame logits, of the head that has them; gates over channels see the last `clip_frames`, others need all."""
        if self.head != "fully_convolutional" or not set(self.se_axes) <= {"c"}:
            return None
        return ConvolutionStream(
            self.features, lambda x_BDMF: self.classifier(x_BDMF).mean(2).transpose(1, 2), clip_frames=clip_frames
        )


def build(arch: MN, *, bands: int, frames: int, num_classes: int) -> MobileNet:
    """Build MN; it takes any number of frames unless `se_axes` gates them."""
    return MobileNet(arch, bands=bands, frames=frames, num_classes=num_classes)


def adapt_weights(
    state: dict[str, Tensor], model: MobileNet, *, other_classes: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Fit a state dict in our own key names; the head's tensors are dropped when its classes differ."""
    return fit_head(state, model, head=HEADS[model.head], other_classes=other_classes)


def _strided(side: int, stride: int) -> int:
    """The length of a side after a convolution that would keep it at stride 1."""
    return -(-side // stride)


def _head(kind: str, net: MobileNetV3, inputs: int, num_classes: int) -> nn.Module:
    """The last layers: torchvision's own two, a convolution to one map per tag, or attention over time."""
    if kind == "attention":
        return AttentionPool(inputs, num_classes)
    if kind == "fully_convolutional":
        to_tags = nn.Conv2d(inputs, num_classes, 1, bias=False)
        nn.init.kaiming_normal_(to_tags.weight, mode="fan_out")
        return nn.Sequential(to_tags, nn.BatchNorm2d(num_classes))
    return net.classifier


def one_channel(stem: nn.Conv2d) -> nn.Conv2d:
    """The same convolution over one channel; torchvision's has three."""
    conv = nn.Conv2d(1, stem.out_channels, kernel_size=3, stride=2, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return conv


def init_like_linear(module: nn.Module) -> None:
    """EfficientAT draws Linear weights from N(0, 0.01), also the gates', which are 1x1 convolutions in torchvision."""
    if isinstance(module, SqueezeExcitation):
        layers = [module.fc1, module.fc2]
    elif isinstance(module, AxisGate | AttentionPool):
        layers = [layer for layer in module.children() if isinstance(layer, nn.Linear)]
    else:
        return
    for layer in layers:
        nn.init.normal_(layer.weight, 0, 0.01)
        nn.init.zeros_(layer.bias)
