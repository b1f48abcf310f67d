"""EfficientNet: timm's, with the mean over bands and frames of its last map as features (reference/cmkd.md 1.2).

CMKD's CNN: the mean pools features, not probabilities as PSLA's does. Does not depend on front ends or training.

Axes: B clips, M mel bands, F frames, D channels, C tags.
"""

from typing import Any

import timm
from torch import Tensor

from workloads.config.architectures import EfficientNet
from workloads.models.backbone import Backbone, Outputs
from workloads.models.fit import fit_head
from workloads.models.timm_features import first_step

TIMM_NAMES = {"b0": "efficientnet_b0", "b2": "efficientnet_b2", "lite0": "tf_efficientnet_lite0"}
NET, STEM = "net.", "net.conv_stem.weight"
HEAD = ("net.classifier.weight", "net.classifier.bias")


class MeanPooledEfficientNet(Backbone):
    """mel_BMF (normalised, any size) to logits_BC through one linear layer."""

    def __init__(self, arch: EfficientNet, *, num_classes: int) -> None:
        super().__init__()
        self.net: Any = timm.create_model(
            TIMM_NAMES[arch.variant],
            in_chans=1,
            num_classes=num_classes,
            drop_rate=arch.dropout,
            drop_path_rate=arch.drop_path,
        )

    def time_steps(self, frames: int, steps: int) -> tuple[float, float]:
        _, stride = super().time_steps(frames, steps)
        return first_step(self.net, round(stride)), stride

    def outputs(self, mel_BMF: Tensor) -> Outputs:
        x_BDMF = self.net.forward_features(mel_BMF.unsqueeze(1))
        embedding_BD = x_BDMF.mean((2, 3))
        logits_BC = self.net.forward_head(x_BDMF)
        return Outputs(logits_BC, embedding_BD, x_BDMF.mean(2).transpose(1, 2))


def build(arch: EfficientNet, *, bands: int, frames: int, num_classes: int) -> MeanPooledEfficientNet:
    """Build EfficientNet; it takes any `bands` and `frames`, because it pools over the whole last map."""
    return MeanPooledEfficientNet(arch, num_classes=num_classes)


def adapt_weights(
    state: dict[str, Tensor], model: MeanPooledEfficientNet, *, other_classes: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Fit timm's ImageNet weights or one of our own state dicts: the stem is summed to one channel, as timm does it.

    The head is dropped when its classes differ.
    """
    weights = {name if name.startswith(NET) else NET + name: tensor for name, tensor in state.items()}
    if STEM in weights and weights[STEM].ndim == 4:
        weights[STEM] = weights[STEM].sum(dim=1, keepdim=True)
    return fit_head(weights, model, head=HEAD, other_classes=other_classes)
