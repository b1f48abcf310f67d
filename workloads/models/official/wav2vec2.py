"""Pretrained wav2vec 2.0 in our terms, from files of fairseq, torchaudio or Hugging Face's transformers.

These networks know no tags: they become the initial weights of a recipe's model, no tagger. Names and shapes show all
but the number of attention heads, which is the width over 64 but for XLS-R's two largest, and whether the network hears
waveforms of variance 1: fairseq's settings do so for those with layer norms in the convolutions. Does not depend on
files.
"""

import re
from dataclasses import replace

from torch import Tensor

from workloads.config.architectures import Wav2Vec2
from workloads.config.recipe import FrontEnd, Model
from workloads.models.families import empty_backbone
from workloads.models.fit import require_fit
from workloads.models.official.converted import ConvertedEncoder
from workloads.models.wav2vec2 import HEAD, our_names

# names by which these networks are found in a file: fairseq's, torchaudio's, transformers'
MARKS = (
    "post_extract_proj.weight",
    "encoder.transformer.pos_conv_embed.conv.bias",
    "encoder.pos_conv_embed.conv.bias",
)
PROJECTION, FIRST = "encoder.feature_projection.projection.weight", "feature_extractor.conv_layers.0.conv.weight"
HEAD_WIDTH, HEADS = 64, {1280: 16, 1920: 16}  # by width: XLS-R of 1 and 2 billion parameters
SECOND = 16_000  # samples


def convert(state: dict[str, Tensor]) -> ConvertedEncoder:
    """Convert a state dict of wav2vec 2.0; ValueError naming what is unknown, missing or of the wrong shape."""
    weights, unused = our_names(state)
    arch = _arch(weights)
    front_end = FrontEnd(kind="waveform16k_norm") if arch.norm == "layer" else FrontEnd(kind="waveform16k")
    model = Model(arch=arch, front_end=front_end)
    require_fit(weights, empty_backbone(arch, bands=1, frames=SECOND, num_classes=1), without=HEAD)
    return ConvertedEncoder(model, weights, unused)


def _arch(weights: dict[str, Tensor]) -> Wav2Vec2:
    for name, axes in ((PROJECTION, 2), (FIRST, 3)):
        if name not in weights or weights[name].ndim != axes:
            raise ValueError(f"{name} is missing or has not {axes} axes, which it has in wav2vec 2.0")
    dim, channels = weights[PROJECTION].shape
    if dim % HEAD_WIDTH or (dim > 1024 and dim not in HEADS):
        raise ValueError(f"{PROJECTION} is {dim} wide: no published network is, so its number of heads is not known")
    layers = {found[1] for name in weights if (found := re.match(r"encoder\.transformer\.layers\.(\d+)\.", name))}
    arch = Wav2Vec2(
        family="wav2vec2", dim=dim, depth=len(layers), heads=HEADS.get(dim, dim // HEAD_WIDTH), channels=channels
    )
    return replace(arch, norm="layer") if "feature_extractor.conv_layers.1.layer_norm.weight" in weights else arch
