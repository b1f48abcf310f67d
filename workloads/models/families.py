"""The model families, each built by the file of its name.

A backbone maps a normalised log-mel, or a waveform, to logits; it does not depend on front ends, tags or training. A
family's file is imported on demand, because torchvision and timm take seconds to import. Each offers `build` and
`adapt_weights`.
"""

from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from workloads.config.architectures import WAVEFORM_FAMILIES, Arch
from workloads.config.recipe import LOG_MELS, WAVEFORMS
from workloads.models.backbone import Backbone

FAMILIES = (
    "mn",
    "dymn",
    "frame_mn",
    "efficientnet",
    "vit",
    "ast",
    "passt",
    "eat",
    "ced",
    "ondevice",
    "wav2vec2",
    "timm",
)


def build_backbone(arch: Arch, *, bands: int, frames: int, num_classes: int) -> Backbone:
    """Build the family's network for mel_BMF of `bands` x `frames`; its logits_BC have C = `num_classes`.

    Raises ValueError where log-mels shall be heard by a family that hears waveforms, which are one band, or these by
    another one.
    """
    if (bands == 1) != (arch.family in WAVEFORM_FAMILIES):
        hears, kinds = ("log-mels", LOG_MELS) if bands == 1 else ("waveforms", WAVEFORMS)
        raise ValueError(f"{arch.family} hears {hears}; set front_end.kind to one of {', '.join(kinds)}")
    return _family(arch.family).build(arch, bands=bands, frames=frames, num_classes=num_classes)


def empty_backbone(arch: Arch, *, bands: int, frames: int, num_classes: int) -> Backbone:
    """The network on torch's meta device: names and shapes of its tensors, without data."""
    with torch.device("meta"):
        return build_backbone(arch, bands=bands, frames=frames, num_classes=num_classes)


def adapt_weights(
    state: dict[str, Tensor], backbone: Backbone, *, family: str, other_classes: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Fit initial weights from elsewhere to the backbone: what to load, and the names that were dropped on purpose.

    The head is dropped when its number of classes differs, or when the classes are others of the same number
    (`other_classes`).
    """
    return _family(family).adapt_weights(state, backbone, other_classes=other_classes)


def _family(name: str) -> ModuleType:
    if name not in FAMILIES:
        raise ValueError(f"family = {name!r}: no such model family; the families are {', '.join(FAMILIES)}")
    return import_module(f"workloads.models.{name}")
