"""Weights that the EfficientAT project published (fschmid56/EfficientAT, reference/efficientat.md) in our terms.

MN and DyMN are distinguished by names; width, head and the axes of MN's gates follow from shapes. What the weights do
not hold is the project's default unless it is given: strides of 2, 10 ms hops, 128 bands, the maximum of several gates.
The temperature of DyMN's kernel attention is not part of its weights: it is 1 in those trained on AudioSet, and still
30 in those of ImageNet, recognised by 1000 classes.

Does not depend on files or tags, except for the strides, hops and bands in published file names.
"""

import math
import re
from typing import Literal

import torch
from torch import Tensor

from workloads.config.architectures import MN, DyMN
from workloads.config.recipe import FrontEnd, Model
from workloads.models.backbone import Backbone
from workloads.models.families import empty_backbone
from workloads.models.fit import require_fit
from workloads.models.mn import ATTENTION_HEADS, BLOCKS, channels
from workloads.models.official.converted import Converted, require_distinct_names

Strides = tuple[int, int, int, int]
DEFAULT_STRIDES: Strides = (2, 2, 2, 2)
BANDS, FRAMES, CLIP_SECONDS = 128, 1000, 10.0
IMAGENET = 1000  # classes
INITIAL_TEMPERATURE, FINAL_TEMPERATURE = 30.0, 1.0  # reference/efficientat.md 2
WIDEST = 960  # channels inside the last block at width 1
MN_MARK, DYMN_MARK = "features.15.block.0.0.weight", "layers.14.exp_norm.weight"  # with `WIDEST` rows at width 1
MARKS = (MN_MARK, DYMN_MARK)  # names by which these networks are found in a file
MN_HEADS: dict[str, Literal["mlp", "fully_convolutional", "attention"]] = {  # name of its first tensor -> head
    "classifier.5.weight": "mlp",
    "classifier.0.weight": "fully_convolutional",
    "classifier.subspace_proj.weight": "attention",
}
GATED = {str(number) for number, row in enumerate(BLOCKS, start=1) if row[4]}  # the blocks of MN that have gates
GATES = "features.15.block.2.conc_se_layers.{}.fc1.weight"
CLASSIFIER = {  # part of their names -> part of ours, here and below
    "classifier.2.": "classifier.0.",
    "classifier.5.": "classifier.3.",
    "classifier.subspace_proj.": "classifier.project.",
    "classifier.head_weight": "classifier.mix",
}
DYNAMIC = {
    "in_c.": "stem.",
    "out_c.": "last.",
    "layers.": "blocks.",
    ".context_gen.joint_conv.": ".context.joint_conv.0.",
    ".context_gen.joint_norm.": ".context.joint_conv.1.",
    ".context_gen.conv_f.": ".context.bands.",
    ".context_gen.conv_t.": ".context.frames.",
    ".exp_conv.": ".expand.",
    ".exp_norm.": ".expand_norm.0.",
    ".depth_conv.": ".depthwise.",
    ".depth_norm.": ".depthwise_norm.",
    ".depth_act.coef_net.0.": ".relu.coefficients.",
    ".proj_conv.": ".project.",
    ".proj_norm.": ".project_norm.",
    ".residuals.0.": ".kernel_attention.",
}
RELU_CONSTANTS = {"lambdas": (1.0, 1.0, 0.5, 0.5), "init_v": (1.0, 0.0, 0.0, 0.0)}  # of the dynamic ReLU


def convert(state: dict[str, Tensor], *, strides: Strides = DEFAULT_STRIDES) -> Converted:
    """Convert a state dict of MN or DyMN; every name and shape is checked.

    Raises ValueError naming what is unknown, missing or of the wrong shape, and for networks that we do not have.
    """
    if MN_MARK in state:
        return _convert_mn(state, strides)
    if DYMN_MARK in state:
        return _convert_dymn(state, strides)
    raise ValueError(f"neither {MN_MARK} nor {DYMN_MARK} is there, as in the networks of EfficientAT")


def check_file_name(file_name: str, strides: Strides) -> None:
    """ValueError where a published file's name shows another spectrogram than ours, or other strides than `strides`."""
    if other := re.search(r"_(hop|mels)_(\d+)", file_name):
        raise ValueError(
            f"{file_name}: trained on another spectrogram ({other[1]} {other[2]}); only hops of 10 ms and 128 bands "
            "can be imported"
        )
    named = re.search(r"_s([12]{4})(?![0-9])", file_name)
    if named and tuple(int(stride) for stride in named[1]) != strides:
        raise ValueError(
            f"{file_name}: its name has strides {named[1]}, which the weights do not show; add --strides {named[1]}"
        )


def _convert_mn(state: dict[str, Tensor], strides: Strides) -> Converted:
    width = _width(state, MN_MARK)
    head = next((name for name in MN_HEADS if name in state), None)
    if head is None:
        raise ValueError(f"no head: one of {', '.join(MN_HEADS)} must be there")
    axes = _gate_axes(state, width, strides)
    arch = MN(family="mn", width=width, strides=strides, head=MN_HEADS[head], se_axes=axes)
    weights = {}
    for name, tensor in state.items():
        ours, tensor = _convert_gate(_renamed(name, CLASSIFIER), tensor, axes)
        weights[ours] = tensor.flatten() if ours == "classifier.mix" else tensor
    rows = _rows(state, head)
    num_classes = rows // (2 * ATTENTION_HEADS) if arch.head == "attention" else rows
    return _checked(state, Model(arch=arch, front_end=FrontEnd(kind="efficientat128")), weights, num_classes)


def _convert_dymn(state: dict[str, Tensor], strides: Strides) -> Converted:
    if any(name.startswith("layers.0.block.") for name in state):
        raise ValueError("a DyMN with dynamic blocks in some places only (replace_se): ours has them everywhere")
    if "classifier.5.weight" not in state:
        raise ValueError("classifier.5.weight is missing: DyMN can be imported with its usual two-layer head only")
    dropped = _require_usual_relu(state)
    num_classes = _rows(state, "classifier.5.weight")
    temperature = INITIAL_TEMPERATURE if num_classes == IMAGENET else FINAL_TEMPERATURE
    arch = DyMN(family="dymn", width=_width(state, DYMN_MARK), strides=strides, temperature=temperature)
    model = Model(arch=arch, front_end=FrontEnd(kind="efficientat128"))
    shapes = {name: tensor.shape for name, tensor in _empty(model, num_classes).state_dict().items()}
    weights = {"temperature": torch.tensor(temperature)}
    for name, tensor in state.items():
        if name not in dropped:
            ours = _renamed(name, CLASSIFIER | DYNAMIC)
            shape = shapes.get(ours)
            if shape and tensor.shape == (1, 1, shape[0], math.prod(shape[1:])):
                tensor = tensor.reshape(shape)  # kernels, which are stored flat
            weights[ours] = tensor
    return _checked(state, model, weights, num_classes, dropped)


def _checked(
    state: dict[str, Tensor], model: Model, weights: dict[str, Tensor], num_classes: int, dropped: tuple[str, ...] = ()
) -> Converted:
    require_fit(weights, _empty(model, num_classes))
    require_distinct_names(state, weights, dropped, num_added=int(model.arch.family == "dymn"))  # its temperature
    return Converted(model, weights, num_classes, CLIP_SECONDS, dropped)


def _empty(model: Model, num_classes: int) -> Backbone:
    return empty_backbone(model.arch, bands=BANDS, frames=FRAMES, num_classes=num_classes)


def _width(state: dict[str, Tensor], mark: str) -> float:
    """The width, exact to two decimals: rounding to multiples of 8 moves it by at most 4 of 960 channels."""
    return round(_rows(state, mark) / WIDEST, 2)


def _gate_axes(state: dict[str, Tensor], width: float, strides: Strides) -> tuple[Literal["c", "f", "t"], ...]:
    """The axes that the gates of the last block are over, in their order, from their lengths."""
    bands, frames = BANDS, FRAMES
    for stride in (2, *strides):
        bands, frames = -(-bands // stride), -(-frames // stride)
    lengths: dict[int, Literal["c", "f", "t"]] = {frames: "t", bands: "f", channels(WIDEST, width): "c"}
    axes: list[Literal["c", "f", "t"]] = []
    while (name := GATES.format(len(axes))) in state:
        length = state[name].shape[-1] if state[name].ndim else 0
        if length not in lengths:
            known = ", ".join(f"{axis} {axis_length}" for axis_length, axis in lengths.items())
            raise ValueError(f"{name}: a gate over {length} values; clips of 10 s have {known} there. Check --strides")
        axes.append(lengths[length])
    return tuple(axes)


def _convert_gate(name: str, tensor: Tensor, axes: tuple[str, ...]) -> tuple[str, Tensor]:
    """Our name and shape of a gate: theirs are numbered, ours named by axis; torchvision's, over channels, are 1x1."""
    block = re.match(r"features\.(\d+)\.block\.2\.", name)
    # Without gates, their next layer moves to index 2; ours keeps an Identity there.
    if not axes and block and block[1] in GATED:
        return name.replace(".block.2.", ".block.3."), tensor
    gate = re.search(r"\.conc_se_layers\.(\d+)\.", name)
    if gate is None or int(gate[1]) >= len(axes):
        return name, tensor
    if axes == ("c",):
        return name.replace(gate[0], "."), tensor[..., None, None] if tensor.ndim == 2 else tensor
    return name.replace(gate[0], f".axes.{axes[int(gate[1])]}."), tensor


def _require_usual_relu(state: dict[str, Tensor]) -> tuple[str, ...]:
    """The names of the dynamic ReLUs' constants; ValueError where one differs from that of all published networks."""
    names = tuple(name for name in state if name.rsplit(".", 1)[-1] in RELU_CONSTANTS)
    for name in names:
        usual = RELU_CONSTANTS[name.rsplit(".", 1)[-1]]
        if tuple(state[name].flatten().tolist()) != usual:
            raise ValueError(f"{name} is {state[name].tolist()}: must be {usual}, which is built into our DyMN")
    return names


def _rows(state: dict[str, Tensor], name: str) -> int:
    if state[name].ndim == 0:
        raise ValueError(f"{name} is a single number: must have a row per channel or class")
    return len(state[name])


def _renamed(name: str, parts: dict[str, str]) -> str:
    for theirs, ours in parts.items():
        name = name.replace(theirs, ours)
    return name
