"""The model families: which file builds which.

A backbone maps a normalised log-mel to logits; it knows no front end, no tags and no training. A family's file is
imported when the family is asked for: torchvision and timm cost seconds. Each offers `build` and `adapt_weights`.
"""

from collections.abc import Callable
from types import ModuleType

from torch import Tensor, nn

from workloads.config import MN, DyMN, ViT


def _mn() -> ModuleType:
    from workloads.models import mn

    return mn


def _dymn() -> ModuleType:
    from workloads.models import dymn

    return dymn


def _vit() -> ModuleType:
    from workloads.models import vit

    return vit


FAMILIES: dict[str, Callable[[], ModuleType]] = {"mn": _mn, "dymn": _dymn, "vit": _vit}


def build_backbone(arch: MN | DyMN | ViT, *, bands: int, frames: int, num_classes: int) -> nn.Module:
    """Build the family's network for mel_BMF of `bands` x `frames`; it returns logits_BC with C = `num_classes`."""
    return _family(arch.family).build(arch, bands=bands, frames=frames, num_classes=num_classes)


def adapt_weights(
    state: dict[str, Tensor], backbone: nn.Module, *, family: str, other_classes: bool = False
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Fit foreign initial weights to the backbone: what to load, and the names that were dropped on purpose.

    The head is dropped when it tells another number of classes apart, or `other_classes` in the same number.
    """
    return _family(family).adapt_weights(state, backbone, other_classes=other_classes)


def _family(name: str) -> ModuleType:
    if name not in FAMILIES:
        raise ValueError(f"family = {name!r}: no such model family; the families are {', '.join(FAMILIES)}")
    return FAMILIES[name]()
