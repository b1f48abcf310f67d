"""FrameMN: MobileNetV3-Large with a logit for every tag and step of four frames (reference/frames.md section 5).

MN's blocks with other strides: time is halved twice only, frequency until one row of 128 bands is left. The head is one
linear layer over each step. Does not depend on front ends or training.

Axes: B clips, M mel bands, F frames, P steps in time (F / 4, rounded up), D channels, C tags.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig, MobileNetV3
from torchvision.ops import SqueezeExcitation

from workloads.config.architectures import FrameMN
from workloads.models.backbone import Backbone, NetworkStream, Outputs
from workloads.models.convolution_stream import ConvolutionStream
from workloads.models.fit import fit_head
from workloads.models.frame_pooling import pool_frames
from workloads.models.mn import BLOCKS, init_like_linear, one_channel

# Of each block; before them the stem halves both.
MEL_STRIDES = (1, 2, 2, 1, 1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 2)
TIME_STRIDES = (1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
HEAD = ("head.weight", "head.bias")
CLIP_HEAD = ("clip_head.weight", "clip_head.bias")
MN_HEAD = "classifier."  # of weights of MN, whose other tensors have the same names and shapes


class FrameMobileNet(Backbone):
    """mel_BMF (normalised, any size) to logits_BC and frames_BPC; rows of frequency that are left are averaged."""

    def __init__(self, arch: FrameMN, *, num_classes: int) -> None:
        super().__init__()
        strides = list(zip(MEL_STRIDES, TIME_STRIDES, strict=True))
        rows = [
            InvertedResidualConfig(*row[:-1], stride=max(both), dilation=1, width_mult=arch.width)
            for row, both in zip(BLOCKS, strides, strict=True)
        ]
        net = MobileNetV3(
            rows,
            last_channel=1,  # of the classifier, which is not used
            num_classes=1,
            block=partial(InvertedResidual, se_layer=SqueezeExcitation),
            norm_layer=partial(nn.BatchNorm2d, eps=1e-3, momentum=arch.bn_momentum),
        )
        self.frame_pool, self.features = arch.frame_pool, net.features
        self.features[0][0] = one_channel(self.features[0][0])
        for block, both in zip(self.features[1:-1], strides, strict=True):
            _depthwise(block).stride = both
        channels = 6 * rows[-1].out_channels
        self.head = _linear(channels, num_classes)
        if arch.frame_pool == "own_head":
            self.clip_head = _linear(channels, num_classes)
        for module in self.modules():
            init_like_linear(module)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def outputs(self, mel_BMF: Tensor) -> Outputs:
        sequence_BPD = self.features(mel_BMF.unsqueeze(1)).mean(2).transpose(1, 2)
        embedding_BD, frames_BPC = sequence_BPD.mean(1), self.head(sequence_BPD)
        own_head = self.frame_pool == "own_head"
        logits_BC = self.clip_head(embedding_BD) if own_head else pool_frames(frames_BPC, self.frame_pool)
        return Outputs(logits_BC, embedding_BD, sequence_BPD, frames_BPC)

    def stream(self, clip_frames: int) -> NetworkStream:
        """Frame logits; the gates, which in a clip see all of it, see the last `clip_frames`."""
        return ConvolutionStream(
            self.features, lambda x_BDMF: self.head(x_BDMF.mean(2).transpose(1, 2)), clip_frames=clip_frames
        )


def build(arch: FrameMN, *, bands: int, frames: int, num_classes: int) -> FrameMobileNet:
    """Build FrameMN; it takes any number of bands and frames."""
    return FrameMobileNet(arch, num_classes=num_classes)


def adapt_weights(
    state: dict[str, Tensor], model: FrameMobileNet, *, other_classes: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Fit a state dict in our own key names, or MN's of the same width without its head.

    Both heads are dropped when their classes differ.
    """
    head = (*HEAD, *CLIP_HEAD) if model.frame_pool == "own_head" else HEAD
    weights = {name: tensor for name, tensor in state.items() if not name.startswith(MN_HEAD)}
    return fit_head(weights, model, head=head, other_classes=other_classes)


def _depthwise(block: InvertedResidual) -> nn.Conv2d:
    """The convolution of a block that has its stride."""
    return next(layer for layer in block.modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1)


def _linear(inputs: int, num_classes: int) -> nn.Linear:
    layer = nn.Linear(inputs, num_classes)
    nn.init.normal_(layer.weight, 0, 0.01)
    nn.init.zeros_(layer.bias)
    return layer
