"""DyMN: MobileNetV3-Large whose blocks choose their weights clip by clip (reference/efficientat.md section 2).

Every block looks at its input once (`Context`); from that it mixes the kernels of its convolutions, bends its
activation and gates frequency and time. Knows no front end and no training, but for `set_progress`, which cools the
choice of kernels down from "all of them a little" to "one of them".

Axes: B clips, M mel bands, F frames, C channels (or tags, in logits_BC), H context, K kernels.
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
KERNELS = 4
PIECES = 2  # of the bent activation


class DynamicConv(nn.Module):
    """A convolution whose kernel is a mixture of `KERNELS`, weighed for every clip by softmax(Linear(h) / temperature).

    Pointwise ones are a batched matrix product, depthwise ones one convolution with the batch folded into its groups:
    equal to a convolution for each clip of its own.
    """

    def __init__(self, inputs: int, outputs: int, *, context: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = kernel > 1
        assert not self.depthwise or inputs == outputs
        self.kernel, self.stride, self.outputs = kernel, stride, outputs
        shape = (outputs, 1 if self.depthwise else inputs, kernel, kernel)
        self.weight = nn.Parameter(torch.empty(KERNELS, *shape))
        self.choice = nn.Linear(context, KERNELS)
        for single in self.weight:
            nn.init.kaiming_normal_(single, mode="fan_out")

    def forward(self, x_BCMF: Tensor, h_BH: Tensor, temperature: Tensor) -> Tensor:
        share_BK = (self.choice(h_BH) / temperature).softmax(dim=1)
        kernels = (share_BK @ self.weight.flatten(1)).unflatten(1, self.weight.shape[1:])
        if not self.depthwise:
            y_BCN = kernels.flatten(2) @ x_BCMF.flatten(2)
            return y_BCN.unflatten(2, x_BCMF.shape[2:])
        if torch.compiler.is_exporting():
            return shifted_depthwise(x_BCMF, kernels.squeeze(2), stride=self.stride)
        folded = x_BCMF.reshape(1, -1, *x_BCMF.shape[2:])
        y = F.conv2d(
            folded, kernels.flatten(0, 1), stride=self.stride, padding=self.kernel // 2, groups=folded.shape[1]
        )
        return y.view(*x_BCMF.shape[:2], *y.shape[2:])


def shifted_depthwise(x_BCMF: Tensor, kernels_BCKK: Tensor, *, stride: int) -> Tensor:
    """Each clip's own depthwise convolution as a sum of shifted, scaled maps.

    The same numbers as one convolution with batch times channels groups, but without a number of groups: formats that
    write it down once for all batch sizes (ONNX) need this form.
    """
    side = kernels_BCKK.shape[-1]
    bands, frames = ((length + stride - 1) // stride for length in x_BCMF.shape[2:])  # ONNX divides towards zero
    padded = F.pad(x_BCMF, [side // 2] * 4)
    height, width = stride * (bands - 1) + 1, stride * (frames - 1) + 1
    return reduce(
        operator.add,
        (
            padded[:, :, row : row + height : stride, column : column + width : stride]
            * kernels_BCKK[:, :, row, column, None, None]
            for row, column in itertools.product(range(side), repeat=2)
        ),
    )


class Context(nn.Module):
    """What a block sees of its input: h_BH, and gates for every band and every frame of the block's output."""

    def __init__(self, inputs: int, expanded: int, *, context: int, stride: int, momentum: float) -> None:
        super().__init__()
        self.look = Conv2dNormActivation(
            inputs, context, kernel_size=1, norm_layer=_norm(momentum), activation_layer=nn.Hardswish
        )
        self.stride = stride
        self.bands, self.frames = nn.Conv2d(context, expanded, 1), nn.Conv2d(context, expanded, 1)

    def forward(self, x_BCMF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bands = x_BCMF.shape[2]
        both = torch.cat([x_BCMF.mean(3, keepdim=True), x_BCMF.mean(2).unsqueeze(3)], dim=2)
        seen_BHL1 = self.look(both)
        of_bands, of_frames = self._thinned(seen_BHL1[:, :, :bands]), self._thinned(seen_BHL1[:, :, bands:])
        gates = (self.bands(of_bands).sigmoid(), self.frames(of_frames.transpose(2, 3)).sigmoid())
        return seen_BHL1.mean((2, 3)), *gates

    def _thinned(self, seen_BHL1: Tensor) -> Tensor:
        """Means of three neighbours, one for each place of the block's output."""
        if self.stride == 1:
            return seen_BHL1
        # A pool with a stride would be shorter by a line, but torch.export takes an odd length for a rule in it.
        return F.avg_pool2d(seen_BHL1, (3, 1), 1, (1, 0))[:, :, :: self.stride]


class DynamicReLU(nn.Module):
    """The larger of two straight lines, whose slopes and offsets every clip chooses for every channel."""

    def __init__(self, num_channels: int, *, context: int) -> None:
        super().__init__()
        self.lines = nn.Linear(context, 2 * PIECES * num_channels)

    def forward(self, x_BCMF: Tensor, h_BH: Tensor) -> Tensor:
        theta = (2 * self.lines(h_BH).sigmoid() - 1).view(*x_BCMF.shape[:2], 2 * PIECES, 1, 1)
        slope, offset = theta[:, :, 0] + 1, theta[:, :, 2] * 0.5  # of the first line, which starts near the identity
        # The larger of two lines is the first and what the second has over it, which spares the backward pass of
        # `maximum`; in place, because new maps are slow to come by. `make bench` compares it with the definition.
        over = (x_BCMF * (theta[:, :, 1] - slope)).add_(theta[:, :, 3] * 0.5 - offset).relu_()
        return (x_BCMF * slope).add_(offset).add_(over)


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

    def forward(self, x_BCMF: Tensor, temperature: Tensor) -> Tensor:
        h_BH, bands_BCM1, frames_BC1F = self.context(x_BCMF)
        y = x_BCMF
        if self.expand is not None and self.expand_norm is not None:
            y = self.expand_norm(self.expand(y, h_BH, temperature))
        y = self.relu(self.depthwise_norm(self.depthwise(y, h_BH, temperature)), h_BH)
        y = self.project_norm(self.project(y * (bands_BCM1 * frames_BC1F), h_BH, temperature))
        return y.add_(x_BCMF) if self.residual else y


class DynamicMobileNet(Backbone):
    """mel_BMF (normalised, any size) to logits_BC; `features` gives the last map, `classifier` is the two-layer head.

    The temperature is saved with the weights: it belongs to how the kernels are mixed.
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
        self.hottest, self.cooled_after = arch.temperature, arch.cooled_after
        self.register_buffer("temperature", torch.tensor(float(arch.temperature)))
        for module in self.modules():
            _init(module)

    def set_progress(self, own_step: int, total: int) -> None:
        """Cool down on a straight line from `temperature` to 1, which is reached after `cooled_after` of all steps."""
        done = min(1.0, own_step / max(1.0, self.cooled_after * total))
        self.temperature.fill_(self.hottest + (1.0 - self.hottest) * done)

    def features(self, mel_BMF: Tensor) -> Tensor:
        """The last map, x_BCMF with C = 6 c(160)."""
        x_BCMF = self.stem(mel_BMF.unsqueeze(1))
        for block in self.blocks:
            x_BCMF = block(x_BCMF, self.temperature)
        return self.last(x_BCMF)

    def outputs(self, mel_BMF: Tensor) -> Outputs:
        x_BCMF = self.features(mel_BMF)
        embedding_BD = x_BCMF.mean((2, 3))
        return Outputs(self.classifier(embedding_BD), embedding_BD, x_BCMF.mean(2).transpose(1, 2))


def build(arch: DyMN, *, bands: int, frames: int, num_classes: int) -> DynamicMobileNet:
    """Build DyMN; `bands` and `frames` are free because it pools over whatever map is left."""
    return DynamicMobileNet(arch, num_classes=num_classes)


def adapt_weights(
    state: dict[str, Tensor], model: DynamicMobileNet, *, other_classes: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Take a state dict in our own key names; the last layer is dropped when it tells other classes apart."""
    return fit_head(state, model, head=HEAD, other_classes=other_classes)


def _norm(momentum: float) -> partial[nn.BatchNorm2d]:
    return partial(nn.BatchNorm2d, eps=1e-3, momentum=momentum)


def _clip(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def _init(module: nn.Module) -> None:
    """As MobileNetV3's: Kaiming for convolutions, N(0, 0.01) for dense layers; dynamic kernels have theirs already."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
