"""Weights of the AST project (YuanGongND/ast, reference/cmkd.md section 2) in our terms.

A state dict holds neither the stride nor the number of frames, only the number of positions: with 128 bands, stride 10
makes 12 rows of patches and stride 16 makes 8. Nor does it hold the normalisation: that is known for the data sets that
AST has recipes for, recognised by frames and classes; for all others AudioSet's is used. Does not depend on files or
tags.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from workloads.config.architectures import AST
from workloads.config.recipe import FrontEnd, Model
from workloads.models.ast import PATCH, SIZES
from workloads.models.families import empty_backbone
from workloads.models.fit import require_fit
from workloads.models.official.converted import Converted, require_distinct_names, rows_or_one
from workloads.models.official.transformers_names import AST_MARK, ast_names
from workloads.models.patches import GRID, POSITIONS

PREFIX, HEAD = "v.", "mlp_head.1.weight"
MARKS = (PREFIX + POSITIONS, AST_MARK)  # names by which these networks are found in a file: theirs, transformers'
UNUSED = ("v.head.", "v.head_dist.")  # DeiT's own heads, which AST keeps but does not use
BANDS = 128
WIDTHS = {width: size for size, (width, _) in SIZES.items()}
ROWS: dict[Literal[10, 16], int] = {10: 12, 16: 8}  # stride -> rows of patches
USUAL_FRAMES = (1024, 512, 128)  # AudioSet, ESC-50, Speech Commands
LOST_FRAMES = 2  # that a clip has fewer than 10 ms: the last window must lie in it
STRIDES = range(10, PATCH + 1)  # of AST's settings, one for each axis
RECIPES = {  # (frames, classes) -> mean and standard deviation of the data set (reference/cmkd.md 2.3)
    (512, 50): (-6.6268077, 5.358466),  # ESC-50
    (128, 35): (-6.845978, 5.5654526),  # Speech Commands
}


class KnownSettings(NamedTuple):
    """What a folder of transformers' says beside the weights; of mean and std None is AudioSet's."""

    stride: Literal[10, 16]
    frames: int
    seconds: float | None  # of a clip, which antiphon's own folders say
    mean: float | None
    std: float | None  # by which the log-mel is divided


def convert(state: dict[str, Tensor], *, known: KnownSettings | None = None) -> Converted:
    """Convert a state dict of AST, of its own project or of transformers; every name and shape is checked.

    Without `known` size, stride and frames follow from its shapes. DeiT's two heads are dropped. Raises ValueError
    naming what is unknown, missing or of the wrong shape, and where the number of positions fits neither supported
    stride, or both, or not what is known.
    """
    if AST_MARK in state:
        state = ast_names(state)
    stride, columns = _grid(state) if known is None else _known_grid(state, known)
    frames = _frames(stride, columns) if known is None else known.frames
    num_classes = rows_or_one(state, HEAD)
    mean, std = _normalisation(frames, num_classes) if known is None else (known.mean, known.std)
    front_end = FrontEnd(kind="kaldi128", frames=frames, mean=mean, std=std)
    model = Model(arch=AST(family="ast", size=_size(state), stride=stride), front_end=front_end)
    seconds = (known.seconds if known else None) or seconds_of(frames)
    dropped = tuple(name for name in state if name.startswith(UNUSED))
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name not in dropped}
    weights[GRID] = torch.tensor([ROWS[stride], columns], dtype=torch.float32)
    require_fit(weights, empty_backbone(model.arch, bands=BANDS, frames=frames, num_classes=num_classes))
    require_distinct_names(state, weights, dropped, num_added=1)
    return Converted(model, weights, num_classes, seconds, dropped, _labels(frames, num_classes))


def _normalisation(frames: int, num_classes: int) -> tuple[float | None, float | None]:
    mean, std = RECIPES.get((frames, num_classes), (None, None))
    return mean, None if std is None else 2 * std


def _labels(frames: int, num_classes: int) -> Literal["single", "multi"]:
    """ESC-50's clips have one tag each; Speech Commands' network was trained with sigmoids (reference/cmkd.md 2.4)."""
    return "single" if (frames, num_classes) == (512, 50) else "multi"


def seconds_of(frames: int) -> float:
    """The clip length for which a number of 10 ms frames is meant: whole seconds, as 10 s make 998, padded to 1024.

    Where half a second or more of the frames would be padding, or as much as a patch of the clip would be cut off, the
    length of which they are all the frames.
    """
    whole = (frames + LOST_FRAMES + 50) // 100
    padded = frames + LOST_FRAMES - 100 * whole
    return float(whole) if whole and -PATCH < padded < 50 else (frames + LOST_FRAMES) / 100


def _grid(state: dict[str, Tensor]) -> tuple[Literal[10, 16], int]:
    """Stride and columns of patches from the number of positions; ValueError where ambiguous or unsupported."""
    patches = _positions(state).shape[1] - 2  # without class and distillation token
    candidates = {stride: patches // rows for stride, rows in ROWS.items() if patches > 0 and patches % rows == 0}
    usual = {stride: columns for stride, columns in candidates.items() if _frames(stride, columns) in USUAL_FRAMES}
    if not usual and patches in OTHERS:
        rows, columns = OTHERS[patches]
        raise ValueError(
            f"{PREFIX}{POSITIONS}: {patches} positions of patches are those of strides {rows} and {columns}, or of an "
            "unusual length; only strides 10 and 16, the same on both axes, can be imported"
        )
    matches = list((usual or candidates).items())  # 600 is rather 12 x 50 of 512 frames than 8 x 75 of 1200
    if len(matches) != 1:
        both, and_ = ("both", "and") if matches else ("neither", "nor")
        raise ValueError(
            f"{PREFIX}{POSITIONS}: {patches} positions of patches are {both} 12 rows (stride 10) {and_} 8 rows (stride "
            f"16) of {BANDS} bands; at 1024 frames these strides make 1212 and 512, other strides cannot be imported"
        )
    return matches[0]


def _known_grid(state: dict[str, Tensor], known: KnownSettings) -> tuple[Literal[10, 16], int]:
    patches, rows = _positions(state).shape[1] - 2, ROWS[known.stride]
    columns = _num_patches(known.frames, known.stride)
    if patches != rows * columns:
        raise ValueError(
            f"{PREFIX}{POSITIONS}: {patches} positions of patches are not the {rows} x {columns} of stride "
            f"{known.stride} over {known.frames} frames, which its config.json says"
        )
    return known.stride, columns


def _num_patches(length: int, stride: int) -> int:
    """Number of patches along an axis of `length` bands or frames."""
    return (length - PATCH) // stride + 1


OTHERS = {  # number of positions at a usual length -> its strides of bands and frames, other than the supported ones
    _num_patches(BANDS, rows) * _num_patches(frames, columns): (rows, columns)
    for frames in USUAL_FRAMES
    for rows in STRIDES
    for columns in STRIDES
    if (rows, columns) not in {(stride, stride) for stride in ROWS}
}


def _frames(stride: int, columns: int) -> int:
    """The number of frames that makes this many columns: a usual one if possible, else the smallest."""
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
        raise ValueError(f"{name} is missing or has not three axes, which it has in AST's networks")
    return state[name]
