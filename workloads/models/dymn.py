"""DyMN: MobileNetV3-Large whose blocks compute their weights for each clip (reference/efficientat.md section 2).

Every block summarises its input once (`Context`); from that summary it mixes the kernels of its convolutions, sets the
coefficients of its activation and gates frequency and time. Does not depend on front ends or training, except for
`set_progress`, which lowers the temperature of the kernel attention: from nearly even weights towards one kernel.

Axes: B clips, M mel bands, F frames, D features or channels, C tags, Z kernels.
"""

import itertools
import operator
from functools import partial, reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.ops.misc import Conv2dNormActivation

from workloads.config.architectures import DyMN
from workloads.models.backbone import Backbone, Outputs
from workloads.models.fit import fit_head
from workloads.models.mn import block_rows, channels

HEAD = ("classifier.3.weight", "classifier.3.bias")
NUM_KERNELS = 4
NUM_LINES = 2  # whose maximum is the dynamic ReLU


class DynamicConv(nn.Module):
    """A convolution with a kernel for each clip: `NUM_KERNELS` mixed by softmax(Linear(h) / temperature).

    Pointwise convolutions are a batched matrix product, depthwise ones a single convolution with the batch folded into
    its groups; both equal a separate convolution for each clip.
    """

    def __init__(self, inputs: int, outputs: int, *, context: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = kernel > 1
        assert not self.depthwise or inputs == outputs
        self.kernel, self.stride, self.outputs = kernel, stride, outputs
        shape = (outputs, 1 if self.depthwise else inputs, kernel, kernel)
        self.weight = nn.Parameter(torch.empty(NUM_KERNELS, *shape))
        self.kernel_attention = nn.Linear(context, NUM_KERNELS)
        for kernel_weight in self.weight:
            nn.init.kaiming_normal_(kernel_weight, mode="fan_out")

    def forward(self, x_BDMF: Tensor, h_BD: Tensor, temperature: Tensor) -> Tensor:
        attention_BZ = (self.kernel_attention(h_BD) / temperature).softmax(dim=1)
        kernels = (attention_BZ @ self.weight.flatten(1)).unflatten(1, self.weight.shape[1:])
        if not self.depthwise:
            y = kernels.flatten(2) @ x_BDMF.flatten(2)
            return y.unflatten(2, x_BDMF.shape[2:])
        if torch.compiler.is_exporting():
            return shifted_depthwise(x_BDMF, kernels.squeeze(2), stride=self.stride)
        folded = x_BDMF.reshape(1, -1, *x_BDMF.shape[2:])
        y = F.conv2d(
            folded, kernels.flatten(0, 1), stride=self.stride, padding=self.kernel // 2, groups=folded.shape[1]
        )
        return y.view(*x_BDMF.shape[:2], *y.shape[2:])


def shifted_depthwise(x_BDMF: Tensor, kernels: Tensor, *, stride: int) -> Tensor:
    """A depthwise convolution with `kernels` (B, D, side, side) for each clip, as a sum of shifted, scaled maps.

    Equal to one convolution with batch times channels groups, but without a number of groups, which formats that store
    one graph for all batch sizes (ONNX) would have to fix.
    """
    side = kernels.shape[-1]
    bands, frames = ((length + stride - 1) // stride for length in x_BDMF.shape[2:])  # not -(-l // s): ONNX truncates
    padded = F.pad(x_BDMF, [side // 2] * 4)
    height, width = stride * (bands - 1) + 1, stride * (frames - 1) + 1
    return reduce(
        operator.add,
        (
            padded[:, :, row : row + height : stride, column : column + width : stride]
            * kernels[:, :, row, column, None, None]
            for row, column in itertools.product(range(side), repeat=2)
        ),
    )


class Context(nn.Module):
    """A block's summary of its input: h_BD, and gates for every band and every frame of the block's output."""

    def __init__(self, inputs: int, expanded: int, *, context: int, stride: int, momentum: float) -> None:
        super().__init__()
        self.joint_conv = Conv2dNormActivation(
            inputs, context, kernel_size=1, norm_layer=_norm(momentum), activation_layer=nn.Hardswish
        )
        self.stride = stride
        self.bands, self.frames = nn.Conv2d(context, expanded, 1), nn.Conv2d(context, expanded, 1)

    def forward(self, x_BDMF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bands = x_BDMF.shape[2]
        pooled = torch.cat([x_BDMF.mean(3, keepdim=True), x_BDMF.mean(2).unsqueeze(3)], dim=2)
        joint = self.joint_conv(pooled)  # (B, D, bands + frames, 1)
        band_context_BDM1 = self._downsample(joint[:, :, :bands])
        frame_context_BDF1 = self._downsample(joint[:, :, bands:])
        gates = (self.bands(band_context_BDM1).sigmoid(), self.frames(frame_context_BDF1.transpose(2, 3)).sigmoid())
        return joint.mean((2, 3)), *gates

    def _downsample(self, context: Tensor) -> Tensor:
        """Means of three neighbours along axis 2, one for each band or frame of the block's output."""
        if self.stride == 1:
            return context
        # A pool with a stride would save a line of code, but torch.export would fix in it whether a length is odd.
        return F.avg_pool2d(context, (3, 1), 1, (1, 0))[:, :, :: self.stride]


class DynamicReLU(nn.Module):
    """The larger of two linear functions, whose slopes and offsets are computed per clip and channel."""

    def __init__(self, num_channels: int, *, context: int) -> None:
        super().__init__()
        self.coefficients = nn.Linear(context, 2 * NUM_LINES * num_channels)

    def forward(self, x_BDMF: Tensor, h_BD: Tensor) -> Tensor:
        theta = (2 * self.coefficients(h_BD).sigmoid() - 1).view(*x_BDMF.shape[:2], 2 * NUM_LINES, 1, 1)
        slope, offset = theta[:, :, 0] + 1, theta[:, :, 2] * 0.5  # of the first line, initially near the identity
        # max(first, second) = first + relu(second - first), which avoids the backward pass of `maximum`; in place,
        # because allocating maps is slow. `make bench` compares it with the definition.
        excess = (x_BDMF * (theta[:, :, 1] - slope)).add_(theta[:, :, 3] * 0.5 - offset).relu_()
        return (x_BDMF * slope).add_(offset).add_(excess)


class DynamicBlock(nn.Module):
    """An inverted residual block with dynamic convolutions, activation and gates; no squeeze-and-excitation."""

    def __init__(self, row: InvertedResidualConfig, *, width: float, momentum: float) -> None:
        super().__init__()
        context = _clip(channels(row.expanded_channels // 4, 1), channels(32, width), channels(128, width))
        norm = _norm(momentum)
        activation = nn.Hardswish() if row.use_hs else nn.ReLU(inplace=True)
        self.residual = row.stride == 1 and row.input_channels == row.out_channels
        self.context = Context(
            row.input_channels, row.expanded_channels, context=context, stride=row.stride, momentum=momentum
        )
        self.expand = (
            DynamicConv(row.input_channels, row.expanded_channels, context=context)
            if row.expanded_channels != row.input_channels
            else None
        )
        self.expand_norm = nn.Sequential(norm(row.expanded_channels), activation) if self.expand else None
        self.depthwise = DynamicConv(
            row.expanded_channels, row.expanded_channels, context=context, kernel=row.kernel, stride=row.stride
        )
        self.depthwise_norm = norm(row.expanded_channels)
        self.relu = DynamicReLU(row.expanded_channels, context=context)
        self.project = DynamicConv(row.expanded_channels, row.out_channels, context=context)
        self.project_norm = norm(row.out_channels)

    def forward(self, x_BDMF: Tensor, temperature: Tensor) -> Tensor:
        h_BD, band_gates_BDM1, frame_gates_BD1F = self.context(x_BDMF)
        y = x_BDMF
        if self.expand is not None and self.expand_norm is not None:
            y = self.expand_norm(self.expand(y, h_BD, temperature))
        y = self.relu(self.depthwise_norm(self.depthwise(y, h_BD, temperature)), h_BD)
        y = self.project_norm(self.project(y * (band_gates_BDM1 * frame_gates_BD1F), h_BD, temperature))
        return y.add_(x_BDMF) if self.residual else y


class DynamicMobileNet(Backbone):
    """mel_BMF (normalised, any size) to logits_BC; `features` gives the last map, `classifier` is the two-layer head.

    The temperature is saved with the weights, because the mixture of kernels depends on it.
    """

    temperature: Tensor

    def __init__(self, arch: DyMN, *, num_classes: int) -> None:
        super().__init__()
        rows = block_rows(arch.width, arch.strides)
        norm, width = _norm(arch.bn_momentum), rows[-1].out_channels
        self.stem = Conv2dNormActivation(
            1, rows[0].input_channels, stride=2, norm_layer=norm, activation_layer=nn.Hardswish
        )
        self.blocks = nn.ModuleList(DynamicBlock(row, width=arch.width, momentum=arch.bn_momentum) for row in rows)
        self.last = Conv2dNormActivation(
            width, 6 * width, kernel_size=1, norm_layer=norm, activation_layer=nn.Hardswish
        )
        penultimate = channels(1280, arch.width)
        self.classifier = nn.Sequential(
            nn.Linear(6 * width, penultimate),
            nn.Hardswish(),
            nn.Dropout(arch.dropout),
            nn.Linear(penultimate, num_classes),
        )
        self.initial_temperature, self.cooled_after = arch.temperature, arch.cooled_after
        self.register_buffer("temperature", torch.tensor(float(arch.temperature)))
        for module in self.modules():
            _init(module)

    def set_progress(self, own_step: int, total: int) -> None:
        """Lower the temperature linearly from `initial_temperature` to 1, reached after `cooled_after` of all steps."""
        done = min(1.0, own_step / max(1.0, self.cooled_after * total))
        self.temperature.fill_(self.initial_temperature + (1.0 - self.initial_temperature) * done)

    def features(self, mel_BMF: Tensor) -> Tensor:
        """The last map, x_BDMF with D = 6 channels(160, width)."""
        x_BDMF = self.stem(mel_BMF.unsqueeze(1))
        for block in self.blocks:
            x_BDMF = block(x_BDMF, self.temperature)
        return self.last(x_BDMF)

    def outputs(self, mel_BMF: Tensor) -> Outputs:
        x_BDMF = self.features(mel_BMF)
        embedding_BD = x_BDMF.mean((2, 3))
        return Outputs(self.classifier(embedding_BD), embedding_BD, x_BDMF.mean(2).transpose(1, 2))


def build(arch: DyMN, *, bands: int, frames: int, num_classes: int) -> DynamicMobileNet:
    """Build DyMN; it takes any `bands` and `frames`, because it pools over the whole last map."""
    return DynamicMobileNet(arch, num_classes=num_classes)


def adapt_weights(
    state: dict[str, Tensor], model: DynamicMobileNet, *, other_classes: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Fit a state dict in our own key names; the last layer is dropped when its classes differ."""
    return fit_head(state, model, head=HEAD, other_classes=other_classes)


def _norm(momentum: float) -> partial[nn.BatchNorm2d]:
    return partial(nn.BatchNorm2d, eps=1e-3, momentum=momentum)


def _clip(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def _init(module: nn.Module) -> None:
    """As MobileNetV3: Kaiming for convolutions, N(0, 0.01) for dense layers; dynamic kernels are drawn already."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
