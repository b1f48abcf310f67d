"""Weights of the AST project (YuanGongND/ast, reference/cmkd.md section 2) in our terms.

A state dict tells neither the stride nor the number of frames, only how many positions there are: with 128 bands,
stride 10 makes 12 rows of patches and stride 16 makes 8. Nor does it tell the normalisation: that is known for the data
sets that AST has recipes for, recognised by frames and classes, and AudioSet's is taken for all others. Knows no files
and no tags.
"""

from typing import Literal

import torch
from torch import Tensor

from workloads.config.architectures import AST
from workloads.config.recipe import FrontEnd, Model
from workloads.models.ast import PATCH
from workloads.models.families import build_backbone
from workloads.models.fit import require_fit
from workloads.models.official.converted import Converted
from workloads.models.patches import GRID, POSITIONS

PREFIX, HEAD = "v.", "mlp_head.1.weight"
UNUSED = ("v.head.", "v.head_dist.")  # DeiT's own heads, which AST keeps and never asks
BANDS = 128
WIDTHS: dict[int, Literal["tiny", "small", "base"]] = {192: "tiny", 384: "small", 768: "base"}
ROWS: dict[Literal[10, 16], int] = {10: 12, 16: 8}  # stride -> rows of patches
USUAL_FRAMES = (1024, 512, 128)  # AudioSet, ESC-50, Speech Commands
STRIDES = range(10, PATCH + 1)  # of AST's settings, one for each axis
RECIPES = {  # (frames, classes) -> mean and standard deviation of the data set (reference/cmkd.md 2.3)
    (512, 50): (-6.6268077, 5.358466),  # ESC-50
    (128, 35): (-6.845978, 5.5654526),  # Speech Commands
}


def convert(state: dict[str, Tensor]) -> Converted:
    """Take a state dict of AST: size, stride and frames are read off its shapes, and every name and shape is checked.

    DeiT's two heads are dropped. Raises ValueError naming what is unknown, missing or of the wrong shape, and where the
    number of positions fits no stride of ours or two of them.
    """
    stride, columns = _grid(state)
    frames = _frames(stride, columns)
    num_classes = state[HEAD].shape[0] if HEAD in state and state[HEAD].ndim else 1  # without it the head is missing
    mean, std = RECIPES.get((frames, num_classes), (None, None))
    front_end = FrontEnd(kind="kaldi128", frames=frames, mean=mean, std=None if std is None else 2 * std)
    model = Model(arch=AST(family="ast", size=_size(state), stride=stride), front_end=front_end)
    with torch.device("meta"):  # shapes without numbers
        backbone = build_backbone(model.arch, bands=BANDS, frames=frames, num_classes=num_classes)
    dropped = tuple(name for name in state if name.startswith(UNUSED))
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name not in dropped}
    weights[GRID] = torch.tensor([ROWS[stride], columns], dtype=torch.float32)
    require_fit(weights, backbone)
    if len(weights) + len(dropped) < len(state) + 1:  # the grid was added
        raise ValueError("two tensors go by names of the same part: this file is no whole state dict of one network")
    return Converted(model, weights, num_classes, seconds_of(frames), dropped, _labels(frames, num_classes))


def _labels(frames: int, num_classes: int) -> Literal["single", "multi"]:
    """ESC-50's clips have one tag each; Speech Commands' network was trained with sigmoids (reference/cmkd.md 2.4)."""
    return "single" if (frames, num_classes) == (512, 50) else "multi"


def seconds_of(frames: int) -> float:
    """The clip that so many frames of 10 ms were meant for: whole seconds, as 10 s make 998 frames, filled to 1024."""
    return float(round(frames / 100) or frames / 100)


def _grid(state: dict[str, Tensor]) -> tuple[Literal[10, 16], int]:
    """Stride and columns of patches from the number of positions; ValueError where it is not the one or the other."""
    patches = _positions(state).shape[1] - 2  # without class and distillation token
    fits = {stride: patches // rows for stride, rows in ROWS.items() if patches > 0 and patches % rows == 0}
    usual = {stride: columns for stride, columns in fits.items() if _frames(stride, columns) in USUAL_FRAMES}
    if not usual and patches in OTHERS:
        rows, columns = OTHERS[patches]
        raise ValueError(
            f"{PREFIX}{POSITIONS}: {patches} positions of patches are those of strides {rows} and {columns}, or of a "
            "length that nobody takes; only strides 10 and 16, the same on both axes, can be imported"
        )
    found = list((usual or fits).items())  # 600 positions are 12 x 50 of 512 frames sooner than 8 x 75 of 1200
    if len(found) != 1:
        both, and_ = ("both", "and") if found else ("neither", "nor")
        raise ValueError(
            f"{PREFIX}{POSITIONS}: {patches} positions of patches are {both} 12 rows (stride 10) {and_} 8 rows (stride "
            f"16) of {BANDS} bands; at 1024 frames these strides make 1212 and 512, other strides cannot be imported"
        )
    return found[0]


def _cuts(length: int, stride: int) -> int:
    """How many patches a stride makes of so many bands or frames."""
    return (length - PATCH) // stride + 1


OTHERS = {  # positions at a usual length -> the strides of bands and frames that make them, other than ours
    _cuts(BANDS, rows) * _cuts(frames, columns): (rows, columns)
    for frames in USUAL_FRAMES
    for rows in STRIDES
    for columns in STRIDES
    if (rows, columns) not in {(stride, stride) for stride in ROWS}
}


def _frames(stride: int, columns: int) -> int:
    """How many frames make so many columns: a usual number where one does, else the smallest."""
    fewest = PATCH + stride * (columns - 1)
    return next((frames for frames in USUAL_FRAMES if fewest <= frames < fewest + stride), fewest)


def _size(state: dict[str, Tensor]) -> Literal["tiny", "small", "base"]:
    width = _positions(state).shape[2]
    if width not in WIDTHS:
        raise ValueError(f"{PREFIX}{POSITIONS} is {width} wide: AST's networks are {WIDTHS}")
    return WIDTHS[width]


def _positions(state: dict[str, Tensor]) -> Tensor:
    name = PREFIX + POSITIONS
    if name not in state or state[name].ndim != 3:
        raise ValueError(f"{name} is missing or has not three axes: these are no weights of AST's")
    return state[name]
