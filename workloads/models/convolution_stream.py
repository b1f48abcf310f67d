"""Streams through MobileNets: convolutions that keep what they need of the past, gates over the last seconds.

Each convolution over time keeps the columns that its next output needs and is padded at the start and the end of the
sound only, so that the stream gives the numbers of one pass over all of it, up to the order of sums. Outputs come later
than inputs by as many columns as the kernels reach into the future. What a pass over all of the sound has that a stream
cannot have is the mean over all of it, of squeeze-and-excitation: a stream takes that of the last columns, as many as a
training clip has.

Axes: B clips, D channels, M mel bands, F columns in time, P steps in time, C tags.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.ops import SqueezeExcitation

from workloads.models.backbone import NetworkStream

POINTWISE = (nn.BatchNorm2d, nn.Identity, nn.ReLU, nn.Hardswish)


class ConvolutionStream(NetworkStream):
    """Frame logits of `features`, a MobileNet's layers, whose output `to_frames` makes logits_BPC of.

    In one piece it gives what the network gives for that sound. Where there are gates, the first piece should be a
    clip, since the mean of a shorter beginning is not what they have learned from.
    """

    def __init__(self, features: nn.Sequential, to_frames: Callable[[Tensor], Tensor], *, clip_frames: int) -> None:
        self._features, self._to_frames = _Chain(features, 1, clip_frames), to_frames
        self.begins_with_clip = any(isinstance(module, SqueezeExcitation) for module in features.modules())
        # A step lies around the middle of the frame that its convolutions are centred on (`Backbone.time_steps`).
        self.look_ahead = self._features.future - (self._features.stride - 1) // 2

    def push(self, mel_BMF: Tensor, *, last: bool) -> Tensor:
        x_BDMF = self._features.push(mel_BMF.unsqueeze(1), last=last)
        return self._to_frames(x_BDMF) if x_BDMF.shape[3] else x_BDMF.new_zeros(len(x_BDMF), 0, 0)


class _Layer(ABC):
    """A layer of the stream. `stride`: input frames of the network to a column of its output; `future`: frames after
    the one that a column is centred on which it needs."""

    stride: int
    future: int = 0

    @abstractmethod
    def push(self, x_BDMF: Tensor, *, last: bool) -> Tensor:
        """The columns of the output that are complete."""


class _Pointwise(_Layer):
    def __init__(self, module: nn.Module, stride: int) -> None:
        self._module, self.stride = module, stride

    def push(self, x_BDMF: Tensor, *, last: bool) -> Tensor:
        return self._module(x_BDMF) if x_BDMF.shape[3] else x_BDMF


class _Convolution(_Layer):
    def __init__(self, conv: nn.Conv2d, stride: int) -> None:
        assert not isinstance(conv.padding, str), conv
        assert (conv.padding_mode, conv.dilation[1]) == ("zeros", 1), conv
        self._conv, self._kernel, self._step = conv, conv.kernel_size[1], conv.stride[1]
        self._padding_M, self._padding_F = int(conv.padding[0]), int(conv.padding[1])
        self.stride = stride * self._step
        self.future = stride * (self._kernel - 1 - self._padding_F)
        self._waiting_BDMF: Tensor | None = None  # columns that later outputs need

    def push(self, x_BDMF: Tensor, *, last: bool) -> Tensor:
        if self._waiting_BDMF is None:
            if not x_BDMF.shape[3]:
                return x_BDMF
            x_BDMF = nn.functional.pad(x_BDMF, (self._padding_F, 0))
        x_BDMF = _joined(self._waiting_BDMF, x_BDMF)
        if last:
            x_BDMF = nn.functional.pad(x_BDMF, (0, self._padding_F))
        outputs = max(0, (x_BDMF.shape[3] - self._kernel) // self._step + 1)
        self._waiting_BDMF = x_BDMF[..., outputs * self._step :].clone()
        if not outputs:
            return x_BDMF[..., :0]
        needed_BDMF = x_BDMF[..., : (outputs - 1) * self._step + self._kernel]
        conv = self._conv
        return nn.functional.conv2d(
            needed_BDMF, conv.weight, conv.bias, conv.stride, (self._padding_M, 0), conv.dilation, conv.groups
        )


class _Gate(_Layer):
    """Squeeze-and-excitation by the mean of the last columns."""

    def __init__(self, gate: SqueezeExcitation, stride: int, clip_frames: int) -> None:
        self._gate, self.stride, self._columns = gate, stride, -(-clip_frames // stride)
        self._heard_BDF: Tensor | None = None  # means over bands of the last columns

    def push(self, x_BDMF: Tensor, *, last: bool) -> Tensor:
        if not x_BDMF.shape[3]:
            return x_BDMF
        new_BDF = x_BDMF.mean(2)
        heard_BDF = new_BDF if self._heard_BDF is None else torch.cat([self._heard_BDF, new_BDF], dim=2)
        self._heard_BDF = heard_BDF[..., max(0, heard_BDF.shape[2] - self._columns) :].clone()
        # A piece that is longer than a clip is heard as a whole, as the network hears it.
        seen_BDF = new_BDF if new_BDF.shape[2] > self._columns else self._heard_BDF
        gate, mean_BD11 = self._gate, seen_BDF.mean(2)[..., None, None]
        return x_BDMF * gate.scale_activation(gate.fc2(gate.activation(gate.fc1(mean_BD11))))


class _Residual(_Layer):
    """A block whose input, delayed as its output is, is added to that."""

    def __init__(self, block: "_Chain") -> None:
        self._block, self.stride, self.future = block, block.stride, block.future
        self._waiting_BDMF: Tensor | None = None  # columns whose output is not complete

    def push(self, x_BDMF: Tensor, *, last: bool) -> Tensor:
        y_BDMF = self._block.push(x_BDMF, last=last)
        x_BDMF = _joined(self._waiting_BDMF, x_BDMF)
        complete = y_BDMF.shape[3]
        self._waiting_BDMF = x_BDMF[..., complete:].clone()
        return x_BDMF[..., :complete] + y_BDMF if complete else y_BDMF


class _Chain(_Layer):
    def __init__(self, modules: nn.Module, stride: int, clip_frames: int) -> None:
        self._layers: list[_Layer] = []
        self.stride = stride
        for module in modules.children():
            layer = _layer(module, self.stride, clip_frames)
            self._layers.append(layer)
            self.stride, self.future = layer.stride, self.future + layer.future

    def push(self, x_BDMF: Tensor, *, last: bool) -> Tensor:
        for layer in self._layers:
            x_BDMF = layer.push(x_BDMF, last=last)
        return x_BDMF


def _joined(waiting_BDMF: Tensor | None, x_BDMF: Tensor) -> Tensor:
    """Both in order. What holds no column may have any other shape: layers pass it on as it is."""
    if waiting_BDMF is None or not waiting_BDMF.shape[3]:
        return x_BDMF
    return torch.cat([waiting_BDMF, x_BDMF], dim=3) if x_BDMF.shape[3] else waiting_BDMF


def _layer(module: nn.Module, stride: int, clip_frames: int) -> _Layer:
    if isinstance(module, nn.Conv2d):
        over_time = module.kernel_size[1] > 1 or module.stride[1] > 1
        return _Convolution(module, stride) if over_time else _Pointwise(module, stride)
    if isinstance(module, SqueezeExcitation):
        return _Gate(module, stride, clip_frames)
    if isinstance(module, InvertedResidual):
        block = _Chain(module.block, stride, clip_frames)
        return _Residual(block) if module.use_res_connect else block
    if isinstance(module, nn.Sequential):
        return _Chain(module, stride, clip_frames)
    assert isinstance(module, POINTWISE), f"{type(module).__name__}: no MobileNet of ours has such a layer"
    return _Pointwise(module, stride)
