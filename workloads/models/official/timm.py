"""Weights of timm's networks in our terms (reference/cmkd.md 1.2 and 2.1).

Weights trained on images make no tagger, because their classes are not sounds; a recipe's `init` reads them directly.
Only networks that were trained on sound, with one input channel, can be imported: any that a hub folder describes, and
ViT and EfficientNet from a state dict alone. What a state dict does not
hold is assumed: AST's front end (128 bands, AudioSet's mean and deviation) with mel as height and time as width, clips
of 10 s where the network takes any length, timm's usual number of attention heads for a width, timm's default pooling,
and `efficientnet` rather than `tf_efficientnet`, which pads differently. Does not depend on files or tags.
"""

import json
import re
from dataclasses import asdict
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor

from workloads.config.architectures import AST, TIMM_SETS, Arch, EfficientNet, Timm, ViT
from workloads.config.recipe import FrontEnd, Model, restore
from workloads.models.efficientnet import NET
from workloads.models.families import adapt_weights, build_backbone, empty_backbone
from workloads.models.fit import require_fit
from workloads.models.official.ast import WIDTHS, seconds_of
from workloads.models.official.converted import Converted, rows_or_one
from workloads.models.patches import GRID, POSITIONS, STEM
from workloads.models.vit import DISTILLED

CONV_STEM, CONV_HEAD = "conv_stem.weight", "conv_head.weight"
MARKS = (CONV_STEM, STEM)  # names by which these networks are found in a file
VARIANTS: dict[int, Literal["b0", "b2"]] = {1280: "b0", 1408: "b2"}  # channels of EfficientNet's last map
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # of timm's ViT by width: tiny, small, base, large, huge
BANDS, FRAMES = 128, 1024  # FRAMES where the network takes any number


class Described(NamedTuple):
    """What a hub folder of timm's says of its network; `size` are channels, height (mel) and width (time)."""

    name: str
    args: dict[str, Any]
    size: tuple[int, int, int]
    num_classes: int


def convert(state: dict[str, Tensor], *, described: Described | None = None) -> Converted:
    """Convert a state dict of timm's with one input channel; all names and shapes are checked.

    Without a description only ViT and EfficientNet are recognised, as the families of these names. Raises ValueError
    for weights of images, with the recipe that starts from them; for a distilled DeiT, whose two heads have no
    counterpart here; and naming what is unknown, missing or of the wrong shape.
    """
    if described is not None:
        return _convert_described(state, described)
    arch = _arch(state)
    channels = state[CONV_STEM if arch.family == "efficientnet" else STEM].shape[1]
    if channels != 1:
        _refuse_images(state, arch, channels)
    if isinstance(arch, ViT):
        return _convert_vit(state, arch)
    if isinstance(arch, EfficientNet):
        return _convert_efficientnet(state, arch)
    raise ValueError(
        f"{DISTILLED}: a distilled DeiT has a head for each of two tokens, AST one for their mean, so that its logits "
        f"cannot be kept; {_init_advice(arch)}"
    )


def _convert_described(state: dict[str, Tensor], described: Described) -> Converted:
    """The network that a hub folder names, as family `timm`."""
    args = {key: value for key, value in described.args.items() if key not in TIMM_SETS and value is not None}
    arch = restore(Timm, {"family": "timm", "name": described.name, "args": args})
    channels, bands, frames = described.size
    if channels != 1:
        raise ValueError(f"weights of images ({channels} channels) are no tagger; {_init_advice(arch)}")
    if bands != BANDS:
        raise ValueError(f"config.json: input_size {described.size}: kaldi128, which is assumed, has {BANDS} bands")
    with torch.random.fork_rng(devices=[]):  # its first weights are all replaced
        backbone = build_backbone(arch, bands=bands, frames=frames, num_classes=described.num_classes)
    weights, dropped = adapt_weights(state, backbone, family="timm")
    if dropped:
        raise ValueError(f"config.json: num_classes = {described.num_classes}: the head has another number")
    model = Model(arch=arch, front_end=FrontEnd(kind="kaldi128", frames=frames))
    return Converted(model, weights, described.num_classes, seconds_of(frames), dropped=())


def _arch(state: dict[str, Tensor]) -> Arch:
    """The network's architecture; ValueError where we have none like it."""
    if _is_convolution(state, CONV_STEM) and _is_convolution(state, CONV_HEAD):
        width = state[CONV_HEAD].shape[0]
        if width not in VARIANTS:
            raise ValueError(f"{CONV_HEAD} is {width} wide: known are {VARIANTS}, of timm's efficientnet_b0 and b2")
        return EfficientNet(family="efficientnet", variant=VARIANTS[width])
    if not _is_convolution(state, STEM):
        raise ValueError(f"neither {CONV_STEM} nor {STEM}, as in timm's EfficientNet, ViT and DeiT")
    dim, patch = state[STEM].shape[0], state[STEM].shape[-1]
    if DISTILLED in state:
        if dim not in WIDTHS:
            raise ValueError(f"{STEM} is {dim} wide: distilled DeiTs are {WIDTHS}")
        return AST(family="ast", size=WIDTHS[dim])
    if dim not in HEADS:
        raise ValueError(
            f"{STEM} is {dim} wide: the number of attention heads is known for {', '.join(map(str, HEADS))} only"
        )
    depth = len({match[1] for name in state if (match := re.match(r"blocks\.(\d+)\.", name))})
    return ViT(family="vit", dim=dim, depth=depth, heads=HEADS[dim], patch=patch, stride=patch)


def _is_convolution(state: dict[str, Tensor], name: str) -> bool:
    return name in state and state[name].ndim == 4


def _refuse_images(state: dict[str, Tensor], arch: Arch, channels: int) -> NoReturn:
    """Raise with advice on weights of images; where a recipe could not start from them either, with the reason."""
    backbone = empty_backbone(arch, bands=BANDS, frames=FRAMES, num_classes=1)
    adapt_weights(state, backbone, family=arch.family, other_classes=True)
    raise ValueError(f"weights of images (a stem of {channels} channels) are no tagger; {_init_advice(arch)}")


def _init_advice(arch: Arch) -> str:
    """How a recipe starts from these weights, in TOML."""
    values = ", ".join(f"{name} = {json.dumps(value)}" for name, value in asdict(arch).items() if value != {})
    return (
        f"to start from them, put init = 'FILE' in the recipe's model beside arch = {{{values}}}: "
        "a safetensors file of timm's is read directly"
    )


def _convert_vit(state: dict[str, Tensor], arch: ViT) -> Converted:
    """ViT; the number of frames follows from that of its positions."""
    rows = BANDS // arch.patch
    patches = state[POSITIONS].shape[1] - 1 if POSITIONS in state and state[POSITIONS].ndim == 3 else 0
    if not rows or patches <= 0 or patches % rows:
        raise ValueError(
            f"{POSITIONS}: {patches} positions of patches beside the class token's are no {rows} rows, which {BANDS} "
            f"bands have in patches of {arch.patch}"
        )
    frames = patches // rows * arch.patch
    weights = state | {GRID: torch.tensor([rows, patches // rows], dtype=torch.float32)}
    return _checked(arch, weights, head="head.weight", frames=frames, seconds=seconds_of(frames))


def _convert_efficientnet(state: dict[str, Tensor], arch: EfficientNet) -> Converted:
    """EfficientNet, which takes any number of frames."""
    weights = {NET + name: tensor for name, tensor in state.items()}
    return _checked(arch, weights, head=NET + "classifier.weight", frames=0, seconds=seconds_of(FRAMES))


def _checked(arch: Arch, weights: dict[str, Tensor], *, head: str, frames: int, seconds: float) -> Converted:
    """The network of these weights; ValueError where they do not fit it."""
    num_classes = rows_or_one(weights, head)
    require_fit(weights, empty_backbone(arch, bands=BANDS, frames=frames or FRAMES, num_classes=num_classes))
    model = Model(arch=arch, front_end=FrontEnd(kind="kaldi128", frames=frames))
    return Converted(model, weights, num_classes, seconds, dropped=())
